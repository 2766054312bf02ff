"""The C allocator of a process that trains: told to keep the memory that a step frees, since the next step wants it."""

from __future__ import annotations

import ctypes
import sys

# <malloc.h> of glibc
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

_NEVER = 2**31 - 1
_LARGEST_FROM_THE_HEAP = (1 << 30, 32 << 20)
"""Bytes; releases before glibc 2.35 take no more than the second."""
_GROW_BY = 64 << 20


def keep_freed_memory() -> None:
    """Let freed memory stay with this process, up to the most it ever held. Does nothing without glibc.

    By default glibc gives large blocks back as they are freed, and every tensor of a step is taken anew from the
    system, which clears it page by page: of a small model's step, a tenth. What was freed before goes back first:
    making a tokenizer leaves a hundred megabytes, which a plan of the training cannot know of.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    mallopt, trim = getattr(libc, "mallopt", None), getattr(libc, "malloc_trim", None)
    if mallopt is None or trim is None:
        return
    trim(0)
    any(mallopt(_M_MMAP_THRESHOLD, largest) for largest in _LARGEST_FROM_THE_HEAP)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
    mallopt(_M_TOP_PAD, _GROW_BY)
