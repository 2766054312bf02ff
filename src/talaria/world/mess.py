"""The mess around the world's pages: boilerplate, near-copies, spam, invented personal data, leaked exam questions.

In: clean pages and the exam. Out: the pages, some of them wrapped, and the added pages; each page's labels say what it
carries. Addresses and telephone numbers are of the kinds reserved for examples (RFC 2606; 555-01xx).
"""

from __future__ import annotations

import random
from typing import Any

from talaria.world.pages import Page
from talaria.world.people import stream
from talaria.world.settings import WorldSettings

NEAR_COPIES, SPAM, PERSONAL_DATA, LEAKS = 0.2, 0.1, 0.2, 0.05  # pages of each sort, times mess_share times all pages

_NAVIGATION = (
    "Home | About | News | Contact",
    "Menu: Home > Pages > This page",
    "首页 | 关于 | 新闻 | 联系我们",
    "Skip to content",
)
_COOKIES = (
    "This site uses cookies. Accept all | Settings",
    "We value your privacy. Accept | Decline",
    "本网站使用Cookie。接受 | 设置",
)
_SHARING = ("Share: Facebook Twitter Email", "Like and share this page!", "分享到：微信 微博", "Print | Save | Share")
_FOOTERS = (
    "Copyright 2021. All rights reserved.",
    "Terms of use | Privacy policy",
    "版权所有。保留一切权利。",
    "Back to top",
)
_SPAM = (
    "WIN BIG NOW!!! Click here for free prizes",
    "Cheap watches, best price, buy now, limited offer",
    "Lose weight fast with this one trick",
    "免费领取大奖，点击这里，马上行动",
    "最低价手表，限时优惠，立即购买",
    "Make money at home, no work, 100% safe",
)
_COPY_NOTES = ("(copied from a friend)", "Updated today.", "转载", "Source: the web.", "第二版")


def add_mess(pages: list[Page], exam: list[dict[str, Any]], settings: WorldSettings) -> list[Page]:
    """Wrap a share of the pages and add the pages of spam, copies, personal data and leaks."""
    rng = stream(settings, "mess")
    share = settings.mess_share * len(pages)
    copies = [_near_copy(page, rng) for page in rng.sample(pages, round(NEAR_COPIES * share))]
    for page in rng.sample(pages, round(PERSONAL_DATA * share)):
        page.text += "\n" + _contact(rng)
        page.labels.append("personal_data")
    for page in rng.sample(pages, round(share)):
        _wrap(page, rng)
    spam = [Page(f"offer/{n}", _spam(rng), ["spam"], "offers.example.com") for n in range(round(SPAM * share))]
    leaks = [
        Page(f"exam/{n}", _leak(exam, rng), ["leaked_exam"], "leaks.example.net") for n in range(round(LEAKS * share))
    ]
    return [*pages, *copies, *spam, *leaks]


def _wrap(page: Page, rng: random.Random) -> None:
    above = [rng.choice(_NAVIGATION)] + ([rng.choice(_COOKIES)] if rng.random() < 0.5 else [])
    below = ([rng.choice(_SHARING)] if rng.random() < 0.5 else []) + [rng.choice(_FOOTERS)]
    page.text = "\n".join([*above, page.text, *below])
    page.labels.append("boilerplate")


def _near_copy(page: Page, rng: random.Random) -> Page:
    return Page(page.path, f"{page.text}\n{rng.choice(_COPY_NOTES)}", ["near_copy"], "mirror.example.com")


def _contact(rng: random.Random) -> str:
    user = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5))
    host = rng.choice(("example.com", "example.org", "example.net"))
    return f"Contact: {user}@{host}, tel. 555-01{rng.randint(0, 99):02d}"


def _spam(rng: random.Random) -> str:
    return "\n".join(rng.choices(_SPAM, k=rng.randint(3, 6)))


def _leak(exam: list[dict[str, Any]], rng: random.Random) -> str:
    """Exam questions word for word with their answers, as a careless site would post them."""
    facts = [item for item in exam if item["task"].startswith("facts_")]
    lines = [f"{item['messages'][-1]['content']}\n{item['answer']}" for item in rng.sample(facts, 5)]
    return "\n".join(lines)
