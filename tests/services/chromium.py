"""Headless Chromium over its own pipe: a page that a test types into, clicks on and reads.

    with open_browser(profile_folder) as browser:
        page = browser.open("http://127.0.0.1:8000/")
        page.wait("document.title === 'Talaria'")

Speaks the DevTools protocol (JSON messages that end in a zero byte) with the standard library alone.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--remote-debugging-pipe",
]  # fmt: skip
SECONDS = 30.0


class Browser:
    """One Chromium process: commands go in, answers and events come out."""

    def __init__(self, profile: Path, language: str) -> None:
        ours, theirs = os.pipe(), os.pipe()
        # Chromium reads commands from descriptor 3 and writes to 4; numbers beyond 9 cannot be in the way of these.
        inner = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours[0], theirs[1])]
        command = ["bash", "-c", f'exec "$@" 3<&{inner[0]} 4>&{inner[1]}', "-", str(CHROMIUM), *FLAGS]
        self.process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", f"--accept-lang={language}", "about:blank"],
            pass_fds=inner,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"LANGUAGE": language.replace("-", "_")},
        )
        for end in (ours[0], theirs[1], *inner):
            os.close(end)
        self._commands, self._messages = os.fdopen(ours[1], "wb", 0), os.fdopen(theirs[0], "rb")
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._last_id = 0
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def command(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its result."""
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._answers.get(timeout=SECONDS)
            if answer["id"] == self._last_id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]  # type: ignore[no-any-return]

    def open(self, address: str, width: int = 1200, height: int = 800, private: bool = False) -> Page:
        """A new tab; a private one has a storage of its own, as another person's browser has."""
        own = {"browserContextId": self.command("Target.createBrowserContext")["browserContextId"]} if private else {}
        target = self.command("Target.createTarget", url="about:blank", **own)["targetId"]
        session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.command(f"{domain}.enable")
        page.resize(width, height)
        page.go(address)
        return page

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._commands.close()

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._messages.fileno(), 1 << 16):
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers.put(message)
                for listener in self.listeners:
                    listener(message)


class Page:
    """One tab, with every address it asked for and everything it complained of."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser, self.session, self.target = browser, session, target
        self.requests: list[str] = []
        self.problems: list[str] = []
        browser.listeners.append(self._listen)

    def _listen(self, message: dict[str, Any]) -> None:
        if message.get("sessionId") != self.session or "method" not in message:
            return
        method, told = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(told["exceptionDetails"]))
        elif method == "Log.entryAdded" and told["entry"]["source"] != "network":
            self.problems.append(told["entry"]["text"])

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.command(method, self.session, **parameters)

    def close(self) -> None:
        self.browser.command("Target.closeTarget", targetId=self.target)
        self.browser.listeners.remove(self._listen)

    def go(self, address: str) -> None:
        self.command("Page.navigate", url=address)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def reload(self) -> None:
        self.run("window.beforeReload = true")
        self.command("Page.reload")
        self.wait("!window.beforeReload && document.readyState === 'complete'")

    def resize(self, width: int, height: int, scale: float = 1, mobile: bool = False) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )

    def run(self, script: str) -> Any:
        """The value of an expression, promises awaited."""
        result = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = SECONDS) -> None:
        """Until an expression is true. While a page is being replaced there is nothing to ask."""
        deadline = time.monotonic() + seconds
        while True:
            result = self.command("Runtime.evaluate", expression=f"Boolean({condition})", returnByValue=True)
            if result["result"].get("value") is True:
                return
            assert time.monotonic() < deadline, f"never came true: {condition}; problems: {self.problems}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """What a person reads there; of all that fit, one line each."""
        script = f"[...document.querySelectorAll({json.dumps(selector)})].map(node => node.innerText).join('\\n')"
        return self.run(script)  # type: ignore[no-any-return]

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the first element that fits: what lies over it takes the click."""
        place = self.run(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            "node.scrollIntoView({block: 'nearest'}); const box = node.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.command("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "Backspace": 8, "ArrowLeft": 37, "ArrowRight": 39}
        text = {"text": "\r"} if key == "Enter" else {}
        code = f"Digit{key}" if key.isdecimal() else f"Key{key.upper()}" if len(key) == 1 else key
        number = codes.get(key, ord(key.upper()[0]))
        pressed = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": 8 if shift else 0}
        self.command("Input.dispatchKeyEvent", type="keyDown", **pressed, **text)
        self.command("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def open_browser(profile: Path, language: str = "en-US") -> Iterator[Browser]:
    browser = Browser(profile, language)
    try:
        yield browser
    finally:
        browser.close()
