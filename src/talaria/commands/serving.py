"""The served API, and the keys that it asks for."""

from __future__ import annotations

from pathlib import Path

from talaria.commands.console import console
from talaria.config import apply_overrides, resolve


def serve(models: list[str], keys: Path | None, overrides: list[str], dtype: str) -> None:
    """Serve models, each a path or NAME=PATH, until SIGTERM or Ctrl-C. `keys` None asks nobody for a key."""
    from talaria.serve.server import serve_models
    from talaria.serve.settings import ServeSettings

    serve_models(models, keys, resolve(ServeSettings, apply_overrides({}, overrides), "--set"), dtype)


def change_keys(path: Path, add: str | None = None, revoke: str | None = None) -> None:
    """Make a key (printed to stdout alone, so that a command can keep it) or make one worthless; without, list all."""
    from talaria.serve.keys import make_key, read_keys, revoke_key

    if add is not None:
        key = make_key(path, add)
        console.print(f"shown only now; {path} keeps its hash:")
        print(key)
    elif revoke is not None:
        revoke_key(path, revoke)
        console.print(f"{revoke} is revoked; a running server refuses it from now on")
    else:
        for known in read_keys(path):
            print(f"{known.created_at}  {known.name}")
