"""Text and bytes in, token ids out, and back.

A `Tokenizer` wraps one of the `tokenizers` library together with what a model needs to know beside it: which ids begin
and end a text, and the chat template. It is learned from text (`Tokenizer.train`), read from a Hugging Face folder
(`Tokenizer.load`) or put together from parts (`Tokenizer.from_parts`); `save` writes a folder that transformers loads.

    tokenizer = Tokenizer.train(texts, TokenizerSettings(vocab_size=4096))
    tokenizer.decode(tokenizer.encode("Hello"))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import AddedToken, models, processors

from talaria.errors import UserError
from talaria.files import atomic_write, read_json, to_json
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.vocabulary import (
    BYTE_TO_CHARACTER,
    CHARACTER_TO_BYTE,
    DOCUMENT,
    END_OF_TURN,
    Sample,
    train_bpe,
    train_characters,
    whole,
)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# End-of-turn and end-of-text tokens of published models, where their folder does not list them all.
KNOWN_STOPS = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<|endoftext|>", "<|end|>", "</s>"}
)


class Tokenizer:
    """Encodes and decodes. Make one with `train`, `load` or `from_parts`.

    `bos_id`: put before a document in pretraining, or None. `eos_id`: ends an answer, or None. `pad_id`: fills
    the rows of a batch, `eos_id` unless a folder names another. `stop_ids`: every id that ends a generation.
    `prompt_prefix_ids`: what is put before a plain prompt. `special_ids`: name to id.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        chat_template: str | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        stop_tokens: Iterable[str] = (),
        prompt_prefix_ids: Sequence[int] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._config = dict(config or {})  # what else stood in tokenizer_config.json; kept for saving
        self.chat_template = chat_template
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.bos_id = self._known_id(bos_token, "bos_token")
        self.eos_id = self._known_id(eos_token, "eos_token")
        pad = backend.token_to_id(_token_text(self._config.get("pad_token")) or "")
        self.pad_id: int | None = self.eos_id if pad is None else pad
        added = backend.get_added_tokens_decoder()
        # A control token counts as special even where a folder forgot to mark it so: text must not contain it.
        self.special_ids: dict[str, int] = {
            token.content: id
            for id, token in sorted(added.items())
            if token.special
            or token.content in (bos_token, eos_token)
            or (token.content.strip() and token.content in (chat_template or ""))
        }
        self._special_tokens = {token.content: token for token in added.values() if token.content in self.special_ids}
        self._special_id_set = frozenset(self.special_ids.values())
        stops = {*stop_tokens, *(KNOWN_STOPS & self.special_ids.keys())} | ({eos_token} if eos_token else set())
        self.stop_ids: frozenset[int] = frozenset(
            id for id in (backend.token_to_id(stop) for stop in stops) if id is not None
        )
        self.prompt_prefix_ids: list[int] = (
            list(prompt_prefix_ids) if prompt_prefix_ids is not None else _prefix_of(backend)
        )
        self._plain = self._without_special_tokens()
        self._characters = _character_table(backend)

    # ------------------------------------------------------------------------------- making one

    @classmethod
    def train(cls, texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
        """Learn a vocabulary from the first `settings.train_characters` of `texts`.

        Raises UserError where there is no text, or where BPE is asked to do without special tokens.
        """
        sample = Sample(texts, settings.train_characters)
        if settings.kind == "character":
            backend = train_characters(sample, settings)
        elif settings.special_tokens:
            backend = train_bpe(sample, settings)
        else:
            raise UserError('tokenizer.special_tokens = false needs tokenizer.kind = "character"')
        if sample.characters == 0:
            raise UserError("the tokenizer's training text is empty; check corpus.paths and the counts in corpus.json")
        if not settings.special_tokens:
            return cls(backend)
        bos = backend.token_to_id(DOCUMENT)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{DOCUMENT} $A", pair=f"{DOCUMENT} $A {DOCUMENT} $B", special_tokens=[(DOCUMENT, bos)]
        )
        return cls(backend, chat_template=CHAT_TEMPLATE, bos_token=DOCUMENT, eos_token=END_OF_TURN)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a folder with tokenizer.json and, beside it, tokenizer_config.json (ours or any Hugging Face folder)."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; give a folder that holds a tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception for a file it cannot read
            raise UserError(f"{path}: not a tokenizer ({error}); fetch or make the file again") from None
        config = _optional_json(folder / "tokenizer_config.json")
        special_map = _optional_json(folder / "special_tokens_map.json")
        generation = _optional_json(folder / "generation_config.json")
        bos, eos = (
            _token_text(config[key] if key in config else special_map.get(key)) for key in ("bos_token", "eos_token")
        )
        stops = generation.get("eos_token_id") or []
        stops = [backend.id_to_token(id) for id in (stops if isinstance(stops, list) else [stops])]
        prefix = _prefix_of(backend)
        if config.get("add_bos_token") is not None and bos is not None:
            prefix = [id for id in [backend.token_to_id(bos)] if id is not None] if config["add_bos_token"] else []
        return cls(
            backend,
            chat_template=_chat_template(folder, config),
            bos_token=bos,
            eos_token=eos,
            stop_tokens=[stop for stop in stops if stop],
            prompt_prefix_ids=prefix,
            config=config,
        )

    @classmethod
    def from_parts(
        cls,
        backend: tokenizers.Tokenizer,
        *,
        chat_template: str | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        stop_tokens: Iterable[str] = (),
        prompt_prefix_ids: Sequence[int] | None = None,
    ) -> Tokenizer:
        """Wrap a `tokenizers.Tokenizer`. `prompt_prefix_ids=None` takes what its post-processor puts before a text."""
        return cls(
            backend,
            chat_template=chat_template,
            bos_token=bos_token,
            eos_token=eos_token,
            stop_tokens=stop_tokens,
            prompt_prefix_ids=prompt_prefix_ids,
        )

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (with the chat template)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = self._config | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "chat_template": self.chat_template,
            "clean_up_tokenization_spaces": False,
        }
        config.setdefault("pad_token", self.eos_token)
        config.setdefault("model_max_length", 10**30)
        atomic_write(folder / "tokenizer.json", self._backend.to_str(pretty=True))
        atomic_write(
            folder / "tokenizer_config.json",
            to_json({key: value for key, value in config.items() if value is not None}),
        )

    # ------------------------------------------------------------------------------- text to ids

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone: nothing is put before it, and "<|end|>" in it is ordinary text.

        A lone surrogate (half a character, from a damaged JSON escape) is read as U+FFFD. A character tokenizer raises
        UserError for a character that its training text did not have.
        """
        if self._characters is not None:
            return self._encode_characters(text)
        return self._plain.encode(whole(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        if self._characters is not None:
            return [self._encode_characters(text) for text in texts]
        clean = [whole(text) for text in texts]
        return [encoding.ids for encoding in self._plain.encode_batch_fast(clean, add_special_tokens=False)]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes; where they are not UTF-8, one token a byte. `decode_bytes` gives them back."""
        ids: list[int] = []
        for part in re.split("([\udc80-\udcff])", data.decode("utf-8", errors="surrogateescape")):
            if len(part) == 1 and "\udc80" <= part <= "\udcff":
                ids.append(self._byte_id(ord(part) - 0xDC00))
            elif part:
                ids += self.encode(part)
        return ids

    # ------------------------------------------------------------------------------- ids to text

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
        if self._style == "pieces":
            return self._backend.decode(list(ids), skip_special_tokens=True)
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Bytes of `ids`, special tokens left out."""
        table = self._bytes_of_ids
        try:
            return b"".join([table[id] for id in ids])
        except KeyError as error:
            raise ValueError(f"token id {error} is not in the vocabulary of {self.vocab_size} tokens") from None

    def token_bytes(self, id: int) -> bytes:
        """The bytes that token `id` adds to a text; none for a special token. A character may span two tokens."""
        return self.decode_bytes((id,))

    def token_to_id(self, token: str) -> int | None:
        """Id of a token by its name in the vocabulary, as for special tokens."""
        return self._backend.token_to_id(token)

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The `tokenizers` object below, which recognises special tokens in a text."""
        return self._backend

    @property
    def special_tokens(self) -> Mapping[str, AddedToken]:
        """The control tokens, with the library's notes on the white space around them (lstrip, rstrip)."""
        return self._special_tokens

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Finds control tokens in a template's text, the longest first; its one group is the token."""
        names = sorted(self.special_ids, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names))})" if names else "((?!))")

    # ------------------------------------------------------------------------------- inside

    def _known_id(self, token: str | None, role: str) -> int | None:
        if token is None:
            return None
        id = self._backend.token_to_id(token)
        if id is None:
            raise UserError(f"{role} {token!r} is not in the tokenizer's vocabulary; mend tokenizer_config.json")
        return id

    def _without_special_tokens(self) -> tokenizers.Tokenizer:
        """A second tokenizer that reads special tokens in a text as ordinary characters."""
        plain = tokenizers.Tokenizer.from_str(self._backend.to_str())
        unmarked = [token for token in self._special_tokens.values() if not token.special]
        if unmarked:
            plain.add_special_tokens([AddedToken(token.content, special=True, normalized=False) for token in unmarked])
        plain.encode_special_tokens = True
        return plain

    def _encode_characters(self, text: str) -> list[int]:
        assert self._characters is not None
        try:
            return [self._characters[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise UserError(
                f"character {character!r} (U+{ord(character):04X}) at place {text.index(character)} is not among the "
                f"{len(self._characters)} characters that this tokenizer learned; leave it out, or train with it"
            ) from None

    def _byte_id(self, byte: int) -> int:
        name = BYTE_TO_CHARACTER[byte] if self._style == "bytes" else f"<0x{byte:02X}>"
        id = self._backend.token_to_id(name)
        if id is None:
            raise UserError(f"byte 0x{byte:02X} is no UTF-8 text and this tokenizer has no token for single bytes")
        return id

    @cached_property
    def _style(self) -> str:
        """How entries are spelled: "bytes" (GPT-2's byte alphabet), "characters" or "pieces" (SentencePiece)."""
        if self._characters is not None:
            return "characters"
        return "bytes" if "ByteLevel" in str(self._backend.decoder) else "pieces"

    @cached_property
    def _bytes_of_ids(self) -> dict[int, bytes]:
        added = self._backend.get_added_tokens_decoder()
        table: dict[int, bytes] = {}
        for token, id in self._backend.get_vocab(with_added_tokens=True).items():
            if id in self._special_id_set:
                table[id] = b""
            elif id in added or self._style == "characters":
                table[id] = token.encode()
            elif self._style == "bytes":
                table[id] = bytes(CHARACTER_TO_BYTE[character] for character in token)
            elif re.fullmatch(r"<0x[0-9A-F]{2}>", token):
                table[id] = bytes([int(token[3:5], 16)])
            else:
                table[id] = token.replace("▁", " ").encode()
        return table


def _character_table(backend: tokenizers.Tokenizer) -> dict[str, int] | None:
    """Character to id where the tokenizer is one token a character (BPE without merges or pieces), else None."""
    if backend.pre_tokenizer or backend.normalizer or not isinstance(backend.model, models.BPE):
        return None
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=False)
    table = {token: id for token, id in vocabulary.items() if len(token) == 1}
    added = backend.get_added_tokens_decoder()
    return table if all(len(token) == 1 or id in added for token, id in vocabulary.items()) else None


def _prefix_of(backend: tokenizers.Tokenizer) -> list[int]:
    """Ids that the tokenizer's own post-processor puts before a text."""
    probe = "a"
    if not backend.encode(probe, add_special_tokens=False).ids:  # a character tokenizer may not know it
        probe = min(backend.get_vocab(with_added_tokens=False), default="")
    bare = backend.encode(probe, add_special_tokens=False).ids
    full: list[int] = backend.encode(probe, add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if bare and full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def _optional_json(path: Path) -> dict[str, Any]:
    return cast(dict[str, Any], read_json(path)) if path.is_file() else {}


def _token_text(token: Any) -> str | None:
    """A token in tokenizer_config.json is a string or a table with `content`."""
    return cast("str | None", token["content"] if isinstance(token, dict) else token)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template of a folder: its own file, or the field, which may be a list of named templates."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template
