"""Log-probabilities of tokens in OpenAI's two shapes: ids with their numbers in, JSON out.

    ChatLogProbs(tokenizer).of(chunk)      # {"content": [{"token", "logprob", "bytes", "top_logprobs"}, ...], ...}
    TextLogProbs(tokenizer).of(chunk)      # {"tokens", "token_logprobs", "top_logprobs", "text_offset"}, lists all

One object an answer, fed in order: offsets go on from chunk to chunk. Every token that was generated is told, the one
that ended the answer included. A token that is no whole character is spelled as its bytes, bytes:\\xe4\\xbd; a control
token by its name.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Any, Protocol

from talaria.infer.contract import Chunk, TopLogProbs
from talaria.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Echo:
    """A prompt as the first piece of its answer: its text, ids, and what each had for a log-probability, all but the
    first, which nothing stands before. Without numbers where nobody asked for them."""

    text: str
    token_ids: list[int]
    log_probs: list[float | None]
    top_log_probs: list[TopLogProbs]


class LogProbs(Protocol):
    """What both shapes do."""

    def of(self, piece: Chunk | Echo) -> dict[str, Any]:
        """The field `logprobs` of a choice."""


class ChatLogProbs:
    """As /v1/chat/completions tells them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def of(self, piece: Chunk | Echo) -> dict[str, Any]:
        tops = piece.top_log_probs or [[] for _ in piece.token_ids]
        content = [
            {**self._entry(token, log_prob), "top_logprobs": [self._entry(*pair) for pair in top]}
            for token, log_prob, top in zip(piece.token_ids, piece.log_probs, tops, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, log_prob: float | None) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token)
        return {"token": spelled(self._tokenizer, token), "logprob": log_prob, "bytes": list(data)}


class TextLogProbs:
    """As /v1/completions tells them; offsets count characters from the beginning of the text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def of(self, piece: Chunk | Echo) -> dict[str, Any]:
        offsets = []
        for token in piece.token_ids:
            data, begun = self._tokenizer.token_bytes(token), self._decoder.getstate()[0]
            # A character that was begun and does not go on becomes U+FFFD, which stands before this token.
            is_broken = bool(begun) and bool(data) and not 0x80 <= data[0] < 0xC0
            offsets.append(self._length + (len(begun.decode(errors="replace")) if is_broken else 0))
            self._length += len(self._decoder.decode(data))
        tops = [{spelled(self._tokenizer, token): value for token, value in top} or None for top in piece.top_log_probs]
        return {
            "tokens": [spelled(self._tokenizer, token) for token in piece.token_ids],
            "token_logprobs": list(piece.log_probs),
            "top_logprobs": tops or None,
            "text_offset": offsets,
        }


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token as a string that tells it from every other."""
    data = tokenizer.token_bytes(token)
    if not data:
        return tokenizer.backend.id_to_token(token) or ""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
