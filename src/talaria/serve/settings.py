"""How the server listens and what one client may cost it. No torch."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from talaria.config import Settings
from talaria.feedback.settings import CollectSettings, QueueSettings


class AnnotateSettings(Settings):
    """What annotators are given and how the models answer them."""

    queue: QueueSettings = QueueSettings()
    collect: CollectSettings = CollectSettings()


class ServeSettings(Settings):
    """Where to listen, and every limit."""

    host: str = "127.0.0.1"
    """Reached from this machine only; an address of the network opens it to others, who still need a key."""
    port: int = Field(default=8000, ge=0, le=65535)
    requests_per_minute: PositiveInt = 600
    """Of one key; as many may come at once, then one each 60/N seconds."""
    body_bytes: PositiveInt = 1 << 20
    inputs: PositiveInt = 32
    """Prompts, or texts to embed, in one request."""
    prompt_tokens: PositiveInt | None = None
    """None: what the model's context leaves."""
    max_tokens: PositiveInt = 4096
    default_max_tokens: PositiveInt = 512
    """Where a request leaves max_tokens out."""
    request_seconds: PositiveFloat = 300.0
    """From the request's arrival to its answer's end, the wait for its turn included."""
    stalled_seconds: PositiveFloat = 20.0
    """A client that sends its request, or reads its answer, more slowly than this is dropped."""
    running: PositiveInt = 64
    """Answers made at the same time, a model: each step of the engine gives all of them a token."""
    waiting: NonNegativeInt = 64
    """Answers that wait for their turn, a model; beyond them a request is refused with status 429."""
    stop_seconds: PositiveFloat = 30.0
    """After SIGTERM answers under way have this long to finish."""
    log_prompts: bool = False
    prompt_log: str | None = None
    """A file that gets every chat's messages and the name of its key, a JSON line each; `talaria prompts` reads it. Off
    unless asked for: tell those who use the server."""
    feedback: str | None = "talaria-feedback.db"
    """Where the chat page's thumbs are kept: a path (SQLite) or a database URL; none keeps nothing."""
