"""Shared by all tests: where public data may lie, one thread a test process unless told otherwise, and no GPU but for
`pytest -m gpu`: what the others promise, bit for bit, is of a CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Small models on two threads that share their cores with other work are slower, not faster. Set before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch loads, and for what tests start


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of public data sets; tests that want it skip without it."""
    folder = Path(os.environ.get("TALARIA_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no public data at {folder}; set TALARIA_DATA")
    return folder
