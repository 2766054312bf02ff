"""How the server listens and what one answer may cost. No torch."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from talaria.config import Settings


class ServeSettings(Settings):
    """Where to listen, and the answer's length where a request leaves it out."""

    host: str = "127.0.0.1"
    """Reached from this machine only; an address of the network opens it to others, who still need a key."""
    port: int = Field(default=8000, ge=0, le=65535)
    max_tokens: PositiveInt = 512
