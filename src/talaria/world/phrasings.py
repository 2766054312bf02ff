"""All phrasings by language."""

from talaria.world.phrasing import Phrasing
from talaria.world.phrasings_en import PHRASINGS_EN
from talaria.world.phrasings_zh import PHRASINGS_ZH

PHRASINGS: dict[str, dict[str, Phrasing]] = {"en": PHRASINGS_EN, "zh": PHRASINGS_ZH}
