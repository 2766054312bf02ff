"""Where commands tell what they did: standard error, so that standard output holds results alone."""

from __future__ import annotations

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)  # a path can be copied whole
