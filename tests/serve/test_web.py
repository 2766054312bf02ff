"""The chat page's files: open, unable to reach anything else, and complete."""

from __future__ import annotations

import re
from importlib import resources
from urllib.parse import unquote

import pytest

from serve.tiny_server import Server, drive

FILES = sorted(file.name for file in (resources.files("talaria.serve") / "page").iterdir())
POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
}


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES)])
def test_every_file_of_the_page_is_open_and_confined(server, path):
    response = Server(server.app, None).call("GET", path)
    assert response.status_code == 200
    directives = set(response.headers["content-security-policy"].split("; "))
    assert directives >= POLICY and "unsafe" not in response.headers["content-security-policy"]
    assert {name.split()[0] for name in directives - POLICY} == {"require-trusted-types-for", "trusted-types"}
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "": "text/html"}
    assert response.headers["content-type"].startswith(kind[path.rpartition(".")[2].strip("/")])


@pytest.mark.parametrize(
    "path",
    [
        "/page/../keys.py",
        "/page/..%2Fkeys.py",
        "/page/%2e%2e/keys.py",
        "/page/..%5Ckeys.py",
        "/page//etc/passwd",
        "/page/%2Fetc%2Fpasswd",
        "/page/./page.js",
        "/page/page.js%00",
        "/page/",
        "/page/../v1/models",
    ],
)
def test_nothing_but_the_pages_files_is_reached_below_page(server, path):
    """Sent as written: a client would tidy the path before it leaves."""
    told = []

    async def send(message):
        told.append(message)

    server.run(drive(server.app, b" ", None, None, send, path=unquote(path), method="GET"))
    assert told[0]["status"] == 404


@pytest.mark.parametrize("name", ["index.html", "annotate.html"])
def test_the_page_names_only_its_own_files_and_runs_nothing_inline(name):
    page = resources.files("talaria.serve") / "page"
    html = (page / name).read_text(encoding="utf-8")
    places = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert places and {place.removeprefix("page/") for place in places} <= set(FILES)
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", html)
    for name in FILES:
        text = (page / name).read_text(encoding="utf-8")
        if name.endswith(".js"):
            imported = re.findall(r'^(?:import|export) .*from "\./([^"]*)"', text, re.MULTILINE)
            assert set(imported) <= set(FILES)
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
        outside = re.findall(r"https?://[\w.]+", text)
        assert set(outside) <= {"http://www.w3.org"}, "the name of SVG, which nobody fetches"


def test_every_word_is_there_in_both_languages():
    page = resources.files("talaria.serve") / "page"
    words = (page / "words.js").read_text(encoding="utf-8")
    table = words[words.index("const WORDS") : words.index("const LANGUAGES")]
    known = dict(re.findall(r"^  (\w+): \[\s*(.*?)\s*,?\s*\],$", table, re.MULTILINE | re.DOTALL))
    asked = set()
    for name in FILES:
        text = (page / name).read_text(encoding="utf-8")
        asked |= set(re.findall(r'data-(?:words|label|placeholder)="(\w+)"', text))
        asked |= set(re.findall(r'\bwords\("(\w+)"', text))
    assert len(asked) > 40 and asked <= set(known)
    for key, pair in known.items():
        english, chinese = re.findall(r'"((?:[^"\\]|\\.)*)"', pair)
        assert english.count("{}") == chinese.count("{}"), key
        assert key in ("topP", "otherLanguage", "otherLanguageName") or re.search(r"[\u4e00-\u9fff]", chinese), key
        assert key in ("otherLanguage", "otherLanguageName") or not re.search(r"[\u4e00-\u9fff]", english), key
