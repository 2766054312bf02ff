"""The chat page's server with answers that a test knows beforehand, and what a person does on the page."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from serve.tiny_server import CHAT, tiny_engine
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.chromium import Page
from talaria.feedback.store import FeedbackStore
from talaria.serve.app import create_app
from talaria.serve.keys import Keyring, make_key
from talaria.serve.limits import Refusal
from talaria.serve.settings import ServeSettings

LONG = "".join(f"line {n}\n\n" for n in range(400))
HOSTILE = """<script>window.ran = 1</script><img src=x onerror="window.ran = 2"><svg onload="window.ran = 3">
<iframe src="javascript:parent.ran = 4"></iframe><style>body {{ display: none }}</style>

[click](javascript:window.ran=5) [tab](java\tscript:window.ran=6) [data](data:text/html,<script>window.ran=7</script>)
[relative](/v1/models) [good](https://good.invalid/a_(b)?c=1 "title") ![picture](https://outside.invalid/x.png)
<https://bare.invalid/> mailto and [mail](mailto:ann@good.invalid) [[[[ **open *and _unclosed ~~marks

| {head} |
|{rule}|
| {row} |

`<b>code</b>` and **<i>bold</i>**

{quotes} deep

{items}- deep

> ```js
> window.ran = 8 // {wide}

```html
<script>window.ran = 9</script>""".format(
    head=" | ".join(f"column {n}" for n in range(60)),
    rule="|".join(["---"] * 60),
    row=" | ".join(["<img src=x onerror=window.ran=10>"] * 60),
    quotes=">" * 3000,
    items="".join(f"{'  ' * n}- a\n" for n in range(60)),
    wide="w" * 3000,
)
SCRIPT = {
    "tell me at length": LONG,
    "be hostile": HOSTILE,
    "be brief": "Brief **indeed**.",
    "be briefer": "Brief.",
    "break off": "half an ans",
}


class Scripted:
    """Before the application: known questions get their answer from SCRIPT, after the application's own gate.

    What is asked is kept; the rest, tokens of a random model included, is the application's.
    """

    def __init__(self, app: Any) -> None:
        self.app: ASGIApp = app
        self.gate = app.state.gate
        self.asked: list[dict[str, Any]] = []
        self.left = 0
        self.busy = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != CHAT:
            await self.app(scope, receive, send)
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked = json.loads(body)
        self.asked.append(asked)
        question = asked["messages"][-1]["content"]
        if self.busy:
            told = json.dumps({"error": {"message": "full", "type": "x", "param": None, "code": None}}).encode()
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"2")]
            await send({"type": "http.response.start", "status": 429, "headers": headers})
            await send({"type": "http.response.body", "body": told})
        elif question in SCRIPT:
            try:
                self.gate.admit(scope)
            except Refusal as refusal:
                await refusal.response()(scope, receive, send)
            else:
                await self._tell(SCRIPT[question], question != "break off", receive, send)
        else:
            replayed: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def again() -> Message:
                return replayed.pop() if replayed else await receive()

            await self.app(scope, again, send)

    async def _tell(self, text: str, ends: bool, receive: Receive, send: Send) -> None:
        leaving = asyncio.ensure_future(receive())
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        size = 9 if text == LONG else 701
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        for piece in pieces:
            if leaving.done():
                self.left += 1
                return
            await send(_event({"delta": {"content": piece}, "finish_reason": None}))
            await asyncio.sleep(0.02)
        leaving.cancel()
        if ends:
            await send(_event({"delta": {}, "finish_reason": "stop"}))
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _event(choice: dict[str, Any]) -> Message:
    data = f"data: {json.dumps({'choices': [{'index': 0, **choice}]})}\n\n"
    return {"type": "http.response.body", "body": data.encode(), "more_body": True}


class Served:
    """The application on a socket of this machine, with one key."""

    def __init__(self, folder: Path) -> None:
        self.keys, self.store = folder / "keys.json", FeedbackStore(folder / "feedback.db")
        self.key = make_key(self.keys, "ann")
        self.engine = tiny_engine(context=4096)
        engines = {"tiny": self.engine, "other": tiny_engine(seed=1, context=4096)}
        self.scripted = Scripted(create_app(engines, Keyring(self.keys), ServeSettings(), self.store))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}/"
        self.server: uvicorn.Server
        self.thread: threading.Thread
        self.start()

    def start(self) -> None:
        config = uvicorn.Config(self.scripted, log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.listener.close()


def enter_key(page: Page, key: str) -> None:
    page.wait("document.querySelector('#key-dialog').open")
    assert "talaria keys add" in page.text("#key-dialog")
    page.click("#key-dialog [name=key]")
    page.type(key)
    page.press("Enter")
    page.wait("document.querySelector('#model').value === 'tiny'")


def ask(page: Page, text: str, wait: bool = True) -> None:
    page.click("#text")
    page.type(text)
    page.press("Enter")
    if wait:
        settle(page)


def settle(page: Page) -> None:
    page.wait("!document.querySelector('.running') && document.querySelector('#stop').hidden")


def messages(page: Page) -> list[list[str]]:
    """Who said what, as it stands on the page."""
    return page.run(  # type: ignore[no-any-return]
        "[...document.querySelectorAll('.message')].map(node =>"
        " [node.classList.contains('user') ? 'user' : 'answer', node.querySelector('.body').innerText])"
    )


def stored(page: Page) -> list[dict[str, Any]]:
    """The conversations in the browser's storage."""
    keys = "Object.keys(localStorage).filter(key => key.startsWith('talaria.conversation.'))"
    return [json.loads(text) for text in page.run(f"{keys}.map(key => localStorage[key])")]
