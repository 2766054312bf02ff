"""A listening process around the application: where it listens, what it warns of, how it stops.

run_server(app)          # until SIGTERM or Ctrl-C
"""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from talaria.errors import UsageError, UserError

try:
    import uvicorn
    from fastapi import FastAPI
except ImportError:
    raise UserError("serving needs FastAPI and uvicorn; install them with: pip install 'talaria-lm[serve]'") from None

from talaria.feedback.collect import add_known_items, answer_prompts
from talaria.feedback.prompts import read_prompts
from talaria.feedback.queue import AnnotationQueue, Kind
from talaria.feedback.settings import CollectSettings
from talaria.feedback.store import FeedbackStore
from talaria.files import atomic_write
from talaria.infer.engine import Engine
from talaria.infer.load import load
from talaria.serve.annotate import GUIDELINES, create_annotation_app
from talaria.serve.app import create_app
from talaria.serve.keys import Keyring
from talaria.serve.limits import Gate
from talaria.serve.prompt_log import open_prompt_log
from talaria.serve.settings import AnnotateSettings, ServeSettings

KNOWN: tuple[Kind, ...] = ("qualification", "hidden")
logger = logging.getLogger("talaria.serve")


def serve_models(models: Sequence[str], keys: Path | None, settings: ServeSettings, dtype: str = "float32") -> None:
    """Check names, address and keys, read the models, then serve until SIGTERM or Ctrl-C.

    `models` are paths or NAME=PATH; `keys` None asks nobody for a key; `dtype` is that of `load`. Raises UserError
    before anything listens.
    """
    paths = named_models(models)
    if warning := check_address(settings, with_keys=keys is not None):
        print(f"warning: {warning}", file=sys.stderr)
    if settings.prompt_log is not None:
        os.close(open_prompt_log(settings.prompt_log))
        print(f"every chat is written to {settings.prompt_log}; tell those who use the server", file=sys.stderr)
    keyring = None if keys is None else Keyring(keys)
    listener = bind(settings)  # before the models are read, which takes a while
    store = None if settings.feedback is None else FeedbackStore(settings.feedback)
    app = create_app({name: load(path, dtype=dtype) for name, path in paths.items()}, keyring, settings, store)
    log_to_stderr()
    run_server(app, listener)


def serve_annotation(
    models: Sequence[str],
    location: str | None,
    keys: Path | None,
    files: Mapping[str, Path | None],
    settings: AnnotateSettings,
    limits: ServeSettings,
) -> None:
    """Fill the queue of the store at `location`, then serve the annotation page until SIGTERM or Ctrl-C.

    `location` None is feedback.db in the first model's run folder. `files`: "prompts" to be answered, "qualification"
    and "hidden" items with known rankings, "guidelines"; each may be None. Raises UserError before anything listens.
    """
    paths = named_models(models)
    if warning := check_address(limits, with_keys=keys is not None):
        print(f"warning: {warning}", file=sys.stderr)
    keyring = None if keys is None else Keyring(keys)
    listener = bind(limits)
    folder = next((path for path in paths.values() if path.is_dir()), Path())
    queue = AnnotationQueue(FeedbackStore(location or folder / "feedback.db"), settings.queue)
    for kind in KNOWN:
        if (file := files.get(kind)) is not None:
            print(f"{file}: {add_known_items(queue, file, kind)} new {kind} items", file=sys.stderr)
    engines = {name: load(path) for name, path in paths.items()}
    if (file := files.get("prompts")) is not None:
        counts = _answer(queue, engines, file, settings.collect)
        print(f"{file}: " + ", ".join(f"{n} prompts {what}" for what, n in counts.items()), file=sys.stderr)
    guidelines = _guidelines(folder, files.get("guidelines"))
    app = create_annotation_app(queue, keyring, engines, settings, limits, guidelines)
    log_to_stderr()
    print(f"annotation page: http://{limits.host}:{listener.getsockname()[1]}/", file=sys.stderr)
    run_server(app, listener)


def _answer(
    queue: AnnotationQueue, engines: Mapping[str, Engine], file: Path, settings: CollectSettings
) -> dict[str, int]:
    asked = read_prompts(file)
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("answering prompts", total=len(asked))
        return answer_prompts(
            queue,
            engines,
            asked,
            f"prompts:{file.name}",
            settings,
            lambda done, of: bar.update(task, completed=done, total=of),
        )


def _guidelines(folder: Path, given: Path | None) -> dict[str, Path]:
    """The guidelines by language: the file given for all, else those of the folder, copied there to be edited."""
    if given is not None:
        if not given.is_file():
            raise UserError(f"{given}: no such file; write the guidelines there, or leave --guidelines out")
        return dict.fromkeys(GUIDELINES, given)
    for name in GUIDELINES.values():
        if not (folder / name).exists():
            atomic_write(folder / name, (resources.files("talaria.serve") / name).read_bytes())
    return {language: folder / name for language, name in GUIDELINES.items()}


def named_models(arguments: Sequence[str]) -> dict[str, Path]:
    """Models by the names that clients ask for: NAME=PATH, or a path, whose last part is the name."""
    models: dict[str, Path] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or Path(argument).exists():
            name, path = Path(argument).resolve().name, argument
        if not name or name in models:
            raise UsageError(f"{argument}: {name!r} names two models; name one of them: NAME={path}")
        models[name] = Path(path)
    return models


def log_to_stderr() -> None:
    """Write the server's own lines, one a request, beside uvicorn's."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def check_address(settings: ServeSettings, with_keys: bool) -> str | None:
    """A warning where others than this machine can reach `host`; refused where no key would keep them out."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(f"--host {settings.host}: no such address ({error.strerror}); use 127.0.0.1") from None
    if all(ipaddress.ip_address(address[4][0]).is_loopback for address in found):
        return None
    if not with_keys:
        raise UsageError(f"--no-keys with --host {settings.host}: anybody could use the model; drop one of the two")
    return (
        f"listening on {settings.host}: other machines can reach this server, and keys and answers travel unencrypted; "
        "put a proxy with TLS before it"
    )


def bind(settings: ServeSettings) -> socket.socket:
    """The socket that will listen. Raises UserError where the address is taken or not this machine's."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(found[0], socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[4])
    except OSError as error:
        raise UserError(
            f"{settings.host}:{settings.port}: cannot listen there ({error.strerror}); choose another --host or --port"
        ) from None
    # Connections inherit these. On Linux the kernel then ends one whose other end takes nothing or answers no probe,
    # also where this process has closed it with bytes left to send.
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        seconds = math.ceil(settings.stalled_seconds)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000)
    return listener


def run_server(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; a second one does not wait for the answers under way."""
    gate: Gate = app.state.gate
    # The last seconds are for connections whose answers have ended; the wait for answers is on_tick's.
    config = uvicorn.Config(app, log_level="info", access_log=False, timeout_graceful_shutdown=1, server_header=False)
    _Server(config, gate).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Goes on listening after SIGTERM, so that new work is told 503 and not a closed port, until answers have ended."""

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self._gate = gate
        self._stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stop_at is not None:
            super().handle_exit(sig, frame)
            return
        self._gate.stopping = True
        self._stop_at = time.monotonic() + self._gate.settings.stop_seconds

    async def on_tick(self, counter: int) -> bool:
        if self._stop_at is not None and (self._gate.active == 0 or time.monotonic() > self._stop_at):
            return True
        return await super().on_tick(counter)
