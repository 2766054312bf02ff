"""Settings of the tokens room: the recipe's [tokenizer] table. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from talaria.config import Settings


class TokenizerSettings(Settings):
    """How the vocabulary is learned and how documents become train and validation tokens."""

    kind: Literal["bpe", "character"] = "bpe"
    """Byte-level BPE, or one token per distinct character of the training text."""
    vocab_size: int = Field(default=4096, ge=261)
    """Upper limit for BPE (256 bytes and 5 special tokens are always in it); a small corpus gives fewer tokens."""
    special_tokens: bool = True
    """Without them (character level only) documents are not separated and there is no chat."""
    train_characters: PositiveInt = 200_000_000
    """The vocabulary is learned from the first documents of the corpus, up to this many characters."""
    max_token_bytes: PositiveInt = 16
    """No learned token is longer than this many bytes: about 5 Chinese characters, 15 letters and a space."""
    validation: Literal["hash", "tail"] = "hash"
    """"hash" draws whole documents by a hash of their text; "tail" takes the last share of the tokens, in order."""
    validation_fraction: float = Field(default=0.01, ge=0, lt=1)
    shard_tokens: PositiveInt = 100_000_000
    """A new shard file is begun once a file holds this many tokens."""
