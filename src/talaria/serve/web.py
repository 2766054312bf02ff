"""The chat page or the annotation page at `/`: the files of `page/` as they are, each with a policy that lets
nothing else run or load.

    add_page(app)          # GET / and GET /page/NAME, without a key: they compute nothing and tell nothing

The files are read once and asked for by name in a dictionary, so no path of a request ever reaches the file system.
"""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import Response

PAGE = "/page/"
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            # The page writes no markup; with these the browser refuses it to.
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI, first: str = "index.html") -> None:
    """Serve the page's files, and the one named `first` at `/`."""
    files = {
        file.name: (file.read_bytes(), _MEDIA_TYPES[f".{file.name.rpartition('.')[2]}"])
        for file in (resources.files("talaria.serve") / "page").iterdir()
    }

    @app.get("/")
    async def index() -> Response:
        return await page_file(first)

    @app.get(PAGE + "{name:path}")
    async def page_file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "no such file of the page")
        content, media_type = files[name]
        return Response(content, media_type=media_type, headers=_HEADERS)
