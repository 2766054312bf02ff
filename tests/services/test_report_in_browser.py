"""The report as a browser shows it. Needs Debian's chromium; skips without it."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from test_report import TASKS, make_run

from talaria.report import write_report

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=2000",
]  # fmt: skip
DESKTOP, PHONE = (1280, 900), (390, 844)

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; on Debian: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("browser") / "laptop"))


def browse(page: Path, profile: Path, *flags: str) -> str:
    """Open `page` with every host name unresolvable; return what the browser prints."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", *flags]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_the_browser_shows_every_task(report: Path, tmp_path: Path) -> None:
    document = browse(report, tmp_path, "--dump-dom")
    assert document.rstrip().endswith("</html>")
    [table] = re.findall(r'<table class="scores">.*?</table>', document, re.DOTALL)
    for task in TASKS:
        assert task in table
    assert len(re.findall("<svg", document)) >= 12, "two trainings of six charts each"


def asked(html: str, folder: Path) -> str:
    """Addresses that a page asks for while it loads, as the browser lists them."""
    page = folder / "page.html"
    listed = "performance.getEntriesByType('resource').map(entry => entry.name).join(' ')"
    script = f"<script>addEventListener('load', () => document.title = {listed})</script>"
    page.write_text(html.replace("</body>", f"{script}</body>"), encoding="utf-8")
    return title(browse(page, folder / "profile", "--dump-dom"))


def title(document: str) -> str:
    """The page's own title: those of pictures come after it."""
    return re.findall("<title>(.*?)</title>", document)[0]  # type: ignore[no-any-return]


def test_the_page_asks_nobody_for_anything(report: Path, tmp_path: Path) -> None:
    leak = '<title></title><body><img src="http://outside.invalid/x.png"></body>'
    assert asked(leak, tmp_path) == "http://outside.invalid/x.png", "a request would be seen"
    assert asked(report.read_text(encoding="utf-8"), tmp_path) == ""
    text = report.read_text(encoding="utf-8")
    places = re.findall(r"""(?:src|srcset|href)\s*=\s*["']([^"']*)|url\(([^)]*)\)""", text)
    assert all(place.startswith("#") for pair in places for place in pair if place)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_picture_of_the_page_is_not_blank(report: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    picture = tmp_path / "page.png"
    browse(report, tmp_path / "profile", f"--screenshot={picture}", f"--window-size={size[0]},{size[1]}")
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == size
    assert len(data) > 20_000, "a blank page of this size takes less"


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_does_not_scroll_sideways(report: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    """Headless Chromium has a least window width, so the page is measured in a frame of the wanted width."""
    script = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script>"
    copy, frame = tmp_path / "copy.html", tmp_path / "frame.html"
    copy.write_text(report.read_text(encoding="utf-8").replace("</body>", f"{script}</body>"), encoding="utf-8")
    frame.write_text(
        f'<title></title><iframe src="copy.html" width="{size[0]}" height="{size[1]}" style="border:0" '
        'onload="document.title = this.contentDocument.title"></iframe>'
    )
    flags = ("--allow-file-access-from-files", "--window-size=1400,1000", "--dump-dom")
    assert title(browse(frame, tmp_path / "profile", *flags)) == f"{size[0]} of {size[0]}"
