"""What a command printed and the pictures it drew, as one offline page: no script, no outside resource.

write_picture_page("points.csv", fit_summary(fit), [folder / "chinchilla_fit.png"], folder / "report.html")
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.console import Console, RenderableType

from talaria.files import atomic_write
from talaria.report.style import STYLE

_WIDTH = 96


def write_picture_page(title: str, told: RenderableType, pictures: Sequence[Path], page: Path) -> Path:
    """Write `page`; the pictures, PNG files, are held in it. Returns its path."""
    text = io.StringIO()
    Console(file=text, width=_WIDTH, force_terminal=False, color_system=None).print(told)
    images = "".join(
        f'<section><h2>{escape(picture.stem)}</h2><img style="max-width:100%" alt="{escape(picture.stem)}" '
        f'src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"></section>'
        for picture in pictures
    )
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - Talaria</title><style>{STYLE}</style></head><body><main>"
        f'<header><h1>{escape(title)}</h1></header><div class="wide"><pre>{escape(text.getvalue())}</pre></div>'
        f"{images}</main></body></html>\n"
    )
    atomic_write(page, html)
    return page
