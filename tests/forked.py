"""Processes for tests that are forked from one which has loaded the package, so that none loads it again for itself.

That process is one for all tests of a pytest process and keeps what the first of them asks it to load: hence one list.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

_LOADED = [
    "pytest",
    "torch._dynamo",  # torch's compiler, which nothing here uses and every optimizer of torch loads: four seconds
    "talaria.eval.rounds",
    "talaria.pipeline",
    "talaria.study.conduct",
    *(f"talaria.train.{name}" for name in ("pretrain", "sft", "reward", "dpo", "grpo", "ppo")),
]


def forked() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LOADED)
    return context
