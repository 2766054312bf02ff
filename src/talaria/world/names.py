"""Names made of syllables: an English spelling and a Chinese transliteration, unique and none part of another.

In: a random generator and a count. Out: `Term`s. A surname belongs to one person, so it alone tells who is meant;
names of people who do not exist come from the same syllables.
"""

from __future__ import annotations

import itertools
import random

from talaria.world.vocabulary import Term


def _syllables(text: str) -> tuple[Term, ...]:
    """Read tokens such as `Bel贝`: letters, then one or more Chinese characters."""
    parts = []
    for token in text.split():
        cut = next(index for index, character in enumerate(token) if character > "\u2e80")
        parts.append(Term(token[:cut], token[cut:]))
    return tuple(parts)


FEMALE_NAMES = _syllables(
    "Mira米拉 Lena莉娜 Anna安娜 Sara莎拉 Nora诺拉 Ella艾拉 Ruth露丝 Iris爱丽丝 Vera薇拉 Tess苔丝 Jane珍妮 Clara克拉拉"
)
MALE_NAMES = _syllables(
    "Otto奥托 Ivan伊万 Karl卡尔 Hugo雨果 Paul保罗 Adam亚当 Leon里昂 Mark马克 Felix费利 Oscar奥斯卡 David大卫 Victor维克"
)

FIRST = _syllables(
    "Ba巴 Bel贝 Bor博 Cal卡 Cor科 Da达 Del德 Dor多 Fa法 Fen芬 Gal加 Gor戈 Ha哈 Hel赫 Jo乔 Kel凯 Ko柯 Lu卢 "
    "Mal马 Mor莫 Na纳 Nor诺 Pa帕 Pel佩 Qui奎 Ra拉 Ros罗 Sa萨 Sel塞 Sul苏 Ta塔 Tor托 Tul图 Va瓦 Vel维 Wen文 "
    "Yo约 Za扎 Zel泽 Zu祖"
)
SURNAME_ENDS = _syllables(
    "lan兰 rin林 dek迪克 mov莫夫 sen森 tik蒂 nov诺夫 bak巴克 las拉斯 gan甘 ven文 rok洛 mir米尔 zan赞 kul库 "
    "pin平 shaw肖 don顿 fer弗 lik利克 nas纳斯 rush鲁什 tam坦 vok沃克 wick维 yan杨 bert伯特 chev切 duk杜 "
    "fin芬 gat加特 hart哈特 jen珍 kov科夫 lom隆 mund蒙 neel尼尔 penn潘 quist奎斯特 som索姆"
)
CITY_ENDS = _syllables(
    "burg堡 port港 ford渡 holm岛 dale谷 wood林镇 field原 mont山城 ville镇 stead庄 gate门 haven湾 bridge桥 "
    "well泉 mouth河口"
)
COUNTRY_ENDS = _syllables("land国 ia亚 stan斯坦 mark王国")
RIVER_ENDS = _syllables("ra河 na江 mere溪 lo川")
EVENT_ENDS = _syllables("fest节 fair集市 race赛 cup杯赛 march游行 night之夜 show展")


class Namer:
    """Hands out invented names; every name is new, and none contains another in either language."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._taken: set[str] = set()  # names, in either language
        self._parts: set[str] = set()  # every substring of them

    def take(self, ends: tuple[Term, ...], count: int) -> list[Term]:
        """Return `count` names that end in one of `ends`; longer ones once the short ones are used up."""
        names: list[Term] = []
        # Names of one length, since a longer one would end in a short one already taken.
        start = 0
        while len(FIRST) ** (start + 1) * len(ends) < 1.3 * count:
            start += 1
        for middles in itertools.count(start):
            pool = [
                Term(
                    first.en + "".join(m.en.lower() for m in middle) + end.en,
                    first.zh + "".join(m.zh for m in middle) + end.zh,
                )
                for first in FIRST
                for middle in itertools.product(FIRST, repeat=middles)
                for end in ends
            ]
            self._rng.shuffle(pool)
            for name in pool:
                if len(names) == count:
                    return names
                spellings = (name.en.lower(), name.zh)
                parts = {text[i:j] for text in spellings for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
                if parts & self._taken or self._parts & set(spellings):
                    continue
                names.append(name)
                self._taken.update(spellings)
                self._parts |= parts
        raise AssertionError("itertools.count never ends")
