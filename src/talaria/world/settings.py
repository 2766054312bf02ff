"""Settings of the embedded world. No torch."""

from __future__ import annotations

from pydantic import Field

from talaria.config import Settings

WORLD_VERSION = "2"  # of the specification in docs/world.md; a change of facts, exam or judge rules raises it


class WorldSettings(Settings):
    """One number sets the size: the facts, pages, conversations and exam grow with `entities`.

    `seed` names the world: the same seed gives the same bytes. `mess_share` is the share of pages that carry
    boilerplate, and sets how many near-copies, spam pages, pages with personal data and leaked exam pages are added;
    0 leaves clean pages only. `blunt_share` of the answers about facts in conversations are the bare name: people who
    write demonstrations differ in manner, and what is preferred has to be learned from choices.
    """

    seed: int = 0
    entities: int = Field(default=240, ge=60, le=4000)
    mess_share: float = Field(default=0.2, ge=0.0, le=1.0)
    blunt_share: float = Field(default=0.0, ge=0.0, le=1.0)
