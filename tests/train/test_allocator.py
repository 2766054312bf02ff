from __future__ import annotations

import os
import subprocess
import sys

import pytest

ROUNDS = """
import resource
import torch
from talaria.train.allocator import keep_freed_memory
keep_freed_memory()
def round():
    for n_bytes in (3 << 20, 96 << 20):
        torch.ones(n_bytes, dtype=torch.uint8).add_(1)
for _ in range(3):
    round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


FREED = """
from pathlib import Path
from talaria.train.allocator import keep_freed_memory
def resident():
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line).split()[1])
kept = [bytes(1000) for _ in range(200_000)]
pin = bytes(1000)
del kept
before = resident()
keep_freed_memory()
print((before - resident()) * 1024)
"""
glibc = pytest.mark.skipif(
    "glibc" not in getattr(os, "confstr", lambda name: "")("CS_GNU_LIBC_VERSION"), reason="no glibc"
)


@glibc
def test_what_was_freed_before_training_is_given_back() -> None:
    """The bug: what making a tokenizer freed stays with the process, and training takes as much more as planned."""
    ran = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(ran.stdout) > 100e6


@glibc
def test_a_step_reuses_the_memory_of_the_last() -> None:
    # Without the setting (and without huge pages), every round touches all pages of its blocks anew.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run([sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True, env=environment)
    assert int(ran.stdout) < 10 * (96 << 20) // 4096 / 100
