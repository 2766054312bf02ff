"""Text in, a vocabulary out: byte-level BPE, or one token a character."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from talaria.tokens.settings import TokenizerSettings

DOCUMENT = "<|endoftext|>"  # before every document, and before a conversation
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
END_OF_TURN = "<|end|>"
SPECIAL_TOKENS = (DOCUMENT, *ROLES, END_OF_TURN)
# What plain text, in one language or another, has where a conversation has a control token.
CONTROL_WORDS = {"<|user|>": ("User:", "用户："), "<|assistant|>": ("Assistant:", "助手：")}

_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
# The text is first cut into pieces, and merges never cross a cut. In the manner of GPT-4's pattern, with these
# differences: digits stand alone; Chinese and Japanese runs are not joined to Latin letters; a run of spaces is a piece
# of its own, so that indentation has tokens of 2, 4, 8 and 16 spaces; punctuation is not joined to the word after it.
PIECES = "|".join(
    (
        r"'(?i:[sdmt]|ll|ve|re)(?!\p{L})",  # English contractions
        r"\p{N}",
        rf"[{_CJK}]+",
        rf" ?(?:(?![{_CJK}])[\p{{L}}\p{{M}}])+",
        r" {2,}",
        r"\t+",
        r"[\r\n]+",
        r" ?[^\s\p{L}\p{M}\p{N}]+",
        r"\s+",
    )
)
_SPACE_RUNS = (2, 4, 8, 16)


def train_bpe(texts: Iterable[str], settings: TokenizerSettings) -> tokenizers.Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2). Ids: special tokens, bytes, space runs, merges."""
    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pieces
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(CHARACTER_TO_BYTE),
        max_token_length=settings.max_token_bytes,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    space = BYTE_TO_CHARACTER[ord(" ")]
    space_merges = [(space * (run // 2), space * (run // 2)) for run in _SPACE_RUNS]
    tokens = [*SPECIAL_TOKENS, *(BYTE_TO_CHARACTER[byte] for byte in range(256))]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for left, right in [*space_merges, *learned]:
        if len(vocabulary) < settings.vocab_size and left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pieces
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return backend


def train_characters(texts: Iterable[str], settings: TokenizerSettings) -> tokenizers.Tokenizer:
    """One token per distinct character, in the order of code points, after the special tokens if there are any."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    special = SPECIAL_TOKENS if settings.special_tokens else ()
    vocabulary = {token: id for id, token in enumerate([*special, *sorted(characters)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return backend


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


BYTE_TO_CHARACTER = _byte_alphabet()
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


class Sample:
    """Passes texts on until `limit` characters have gone by, and counts them."""

    def __init__(self, texts: Iterable[str], limit: int) -> None:
        self._texts, self._limit, self.characters = texts, limit, 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            if self.characters >= self._limit:
                return
            self.characters += len(text)
            yield whole(text)


def whole(text: str) -> str:
    """`text` with every lone surrogate replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", text)
    return text
