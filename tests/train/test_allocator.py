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


@pytest.mark.skipif("glibc" not in getattr(os, "confstr", lambda name: "")("CS_GNU_LIBC_VERSION"), reason="no glibc")
def test_a_step_reuses_the_memory_of_the_last() -> None:
    # Without the setting (and without huge pages), every round touches all pages of its blocks anew.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run([sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True, env=environment)
    assert int(ran.stdout) < 10 * (96 << 20) // 4096 / 100
