"""Settings of the study of curves. No torch."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal

from pydantic import Field, model_validator

from talaria.config import Settings
from talaria.world.symbols import SYMBOLS_VERSION

Corpus = Literal["whole", "no-code", "no-steps"]
Width = Annotated[int, Field(ge=16, le=4096, multiple_of=8)]


class ArmSettings(Settings):
    """One model of the study: its text, its size, its seed, and everything else that decides its scores."""

    corpus: Corpus
    width: Width
    seed: int = Field(ge=0)
    """Of the world, the text, the weights and the items: arms of one seed are asked the same."""
    depth: int = Field(ge=1)
    tokens: int = Field(ge=1)
    batch_tokens: int
    context: int
    learning_rate: float
    names: int
    items: int
    checkpoints: int
    tasks_version: str = SYMBOLS_VERSION

    @property
    def name(self) -> str:
        return f"{self.corpus}-{self.width}-seed-{self.seed}"


class StudySettings(Settings):
    """The ladder: every width, on every corpus, for every seed, all else alike."""

    widths: list[Width] = Field(default=[16, 24, 32, 48, 64, 96])
    """Of the models; their depth is the same."""
    corpora: list[Corpus] = Field(default=["whole", "no-code", "no-steps"])
    seeds: int = Field(default=3, ge=1)
    first_seed: int = Field(default=0, ge=0)
    depth: int = Field(default=3, ge=1)
    tokens: int = Field(default=600_000, ge=1)
    """That every arm is trained on."""
    batch_tokens: int = Field(default=2048, ge=1)
    context: int = Field(default=64, ge=24)
    learning_rate: float = Field(default=3e-3, gt=0)
    names: int = Field(default=200, ge=10, le=1000)
    """Facts of the world."""
    items: int = Field(default=100, ge=10)
    """Questions of each task, asked at every checkpoint."""
    checkpoints: int = Field(default=8, ge=2)
    """Scores over training, spaced evenly in the log of the tokens, from a 64th on."""

    @model_validator(mode="after")
    def _check(self) -> StudySettings:
        if len(set(self.widths)) < 2 or self.widths != sorted(set(self.widths)):
            raise ValueError(f"widths {self.widths}: give two or more, each once, in ascending order")
        if "whole" not in self.corpora or len(set(self.corpora)) < len(self.corpora):
            raise ValueError(f"corpora {self.corpora}: name each once, whole among them")
        if self.batch_tokens % self.context:
            raise ValueError(f"batch_tokens {self.batch_tokens}: not a multiple of context {self.context}")
        if self.tokens < 64 * self.batch_tokens:
            raise ValueError(f"tokens {self.tokens}: fewer than 64 batches of {self.batch_tokens}; give more tokens")
        return self

    def arms(self) -> list[ArmSettings]:
        """Every arm, a seed after another, small before large."""
        shared = self.model_dump(exclude={"widths", "corpora", "seeds", "first_seed"})
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [
            ArmSettings(corpus=corpus, width=width, seed=seed, **shared)
            for seed, width, corpus in product(seeds, self.widths, self.corpora)
        ]
