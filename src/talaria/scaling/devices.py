"""Named devices and what they reach, for plans of machines that are not at hand; a machine at hand is measured
instead."""

from __future__ import annotations

import difflib

from talaria.errors import UsageError

PEAK_FLOPS = {
    "v100": 125e12,
    "a100": 312e12,
    "a10g": 70e12,
    "l4": 121e12,
    "l40s": 362e12,
    "rtx3090": 71e12,
    "rtx4090": 165e12,
    "h100": 989e12,
    "h200": 989e12,
    "b200": 2250e12,
    "tpuv4": 275e12,
    "tpuv5e": 197e12,
    "tpuv5p": 459e12,
}
"""Dense FLOP/s in bf16 (V100: fp16) by the makers' data sheets; of one chip, without sparsity."""
UTILISATION = 0.4
"""The share of it that training reaches: 0.3 to 0.6 in published runs (Chowdhery et al. 2022, table 3, has 0.46 for
PaLM)."""
HERE = "here"


def device_flops(name: str, utilisation: float = UTILISATION) -> float:
    """FLOP/s that training reaches on a named device."""
    if name not in PEAK_FLOPS:
        near = difflib.get_close_matches(name, PEAK_FLOPS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PEAK_FLOPS)}"
        raise UsageError(f"--device {name}: unknown; {hint} {HERE!r} measures this machine")
    if not 0 < utilisation <= 1:
        raise UsageError(f"--utilisation {utilisation:g}: give a share above 0 and up to 1, e.g. 0.4")
    return utilisation * PEAK_FLOPS[name]
