"""The chat page in headless Chromium: a whole conversation, and what goes wrong. Skips without Debian's chromium."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from services.chromium import CHROMIUM, Page, open_browser
from services.scripted_chat import Served, ask, messages, settle, stored
from talaria.serve.keys import make_key, revoke_key

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; on Debian: apt-get install chromium"),
]
PHONE = (390, 780)


# ------------------------------------------------------------------------------------------------ a conversation


def test_a_whole_conversation(served: Served, page: Page) -> None:
    # An answer of the served model itself, piece by piece.
    page.run("localStorage['talaria.settings'] = JSON.stringify({seed: '3', max_tokens: '40'})")
    ask(page, "hello 你好")
    asked = [{"role": "user", "content": "hello 你好"}]
    answer = served.engine.chat(asked, max_tokens=40, temperature=0.7, top_p=0.95, seed=3).text
    assert answer.strip() and stored(page)[0]["messages"][1]["content"] == answer
    page.run("localStorage.removeItem('talaria.settings')")
    assert len(served.scripted.asked) == 1 and served.scripted.asked[0]["stream"] is True

    # Stop: by button, then by key. What came is kept, and the server is told.
    ask(page, "tell me at length", wait=False)
    page.wait("document.querySelectorAll('.answer')[1]?.innerText.includes('line 3')")
    assert page.run("document.querySelector('#send').hidden")
    assert page.run("document.querySelector('.answer:last-child').getAttribute('aria-busy')") == "true"
    page.click("#stop")
    settle(page)
    partial = messages(page)[3][1]
    assert "line 3" in partial and "line 399" not in partial
    assert "Stopped by you" in page.text(".answer:last-child .note")
    page.click(".answer:last-child [title='Answer again']")
    page.wait("document.querySelectorAll('.answer')[1]?.innerText.includes('line 3')")
    page.press("Escape")
    settle(page)
    deadline = time.monotonic() + 10
    while served.scripted.left < 2:
        assert time.monotonic() < deadline, "the server goes on for nobody"
        time.sleep(0.05)
    assert [role for role, _ in messages(page)] == ["user", "answer"] * 2

    # Edit the first message: what follows goes, and the model is asked the new text alone.
    page.click(".user [title^='Edit']")
    page.run("document.querySelector('.editor textarea').select()")
    page.type("be brief")
    page.press("Enter")
    settle(page)
    assert messages(page) == [["user", "be brief"], ["answer", "Brief indeed."]]
    assert page.text(".markdown strong") == "indeed"
    assert served.scripted.asked[-1]["messages"] == [{"role": "user", "content": "be brief"}]

    # Regenerate: asked again, with another seed.
    page.click(".answer [title='Answer again']")
    settle(page)
    assert messages(page) == [["user", "be brief"], ["answer", "Brief indeed."]]
    before, again = served.scripted.asked[-2:]
    assert before["messages"] == again["messages"] and before["seed"] != again["seed"]

    # Reload keeps it, and what is typed and not sent; the conversation goes on where it was.
    page.click("#text")
    page.type("not sent")
    page.reload()
    page.wait("document.querySelectorAll('.message').length === 2 && document.querySelector('#model').value")
    assert messages(page) == [["user", "be brief"], ["answer", "Brief indeed."]]
    assert page.run("document.querySelector('#text').value") == "not sent"
    page.run("document.querySelector('#text').select()")
    page.type("be briefer")
    page.press("Enter")
    settle(page)
    assert [m["content"] for m in served.scripted.asked[-1]["messages"]] == [
        "be brief",
        "Brief **indeed**.",
        "be briefer",
    ]


def test_thumbs_reach_the_store_with_what_was_asked(served: Served, page: Page) -> None:
    page.click("#open-settings")
    page.run("document.querySelector('[name=system]').focus()")
    page.type("Be kind.")
    page.run("document.querySelector('[name=seed]').value = 7; document.querySelector('[name=max_tokens]').value = 9")
    page.click("#settings-dialog .main")
    ask(page, "be brief")
    asked = served.scripted.asked[-1]
    assert asked["messages"][0] == {"role": "system", "content": "Be kind."}
    assert (asked["seed"], asked["max_tokens"], asked["temperature"], asked["top_p"]) == (7, 9, 0.7, 0.95)
    for label, rating in (("Good answer", "true"), ("Bad answer", "true"), ("Bad answer", "false")):
        page.click(f".answer [title^='{label}']")
        page.wait(f"document.querySelector(\".answer [title^='{label}']\").ariaPressed === '{rating}'")
    kept = served.store.read_ratings()
    assert [(row.rating, row.annotator) for row in kept] == [(1, "ann"), (-1, "ann"), (0, "ann")]
    assert len({row.answer.id for row in kept}) == 1
    assert kept[0].messages == asked["messages"]
    assert (kept[0].answer.text, kept[0].answer.model, kept[0].answer.seed) == ("Brief **indeed**.", "tiny", 7)
    assert kept[0].answer.sampling == {"temperature": 0.7, "top_p": 0.95, "max_tokens": 9}


def test_conversations_are_listed_named_exported_and_deleted(served: Served, page: Page) -> None:
    ask(page, "be brief")
    page.click("#new")
    assert messages(page) == []
    page.run("document.querySelector('#model').value = 'other'")
    ask(page, "be briefer")
    assert served.scripted.asked[-1]["model"] == "other"
    assert page.text("#list .open").split("\n") == ["be briefer", "be brief"]
    page.click("#list li:last-child .open")
    assert messages(page)[0] == ["user", "be brief"]
    page.click("#list li:last-child [title^=Rename]")
    page.run("document.querySelector('#name-dialog input').select()")
    page.type("<b>mine</b>")
    page.press("Enter")
    assert page.text("#list .open").split("\n") == ["be briefer", "<b>mine</b>"]
    assert page.run("document.querySelectorAll('#list b').length") == 0
    page.run("URL.createObjectURL = blob => { blob.text().then(text => window.exported = text); return 'data:,'; }")
    page.run("HTMLAnchorElement.prototype.click = function () { window.name = this.download; }")
    page.click("#export")
    page.wait("window.exported")
    exported = json.loads(page.run("window.exported"))
    assert [one["messages"][0]["content"] for one in exported["conversations"]] == ["be briefer", "be brief"]
    page.click("#list li:last-child [title^=Delete]")
    assert len(stored(page)) == 2, "deleting asks first"
    page.click("#delete-dialog .danger")
    page.wait("document.querySelectorAll('#list li').length === 1")
    assert [one["messages"][0]["content"] for one in stored(page)] == ["be briefer"]


def test_both_languages_and_colours(served: Served, page: Page) -> None:
    ask(page, "be brief")
    page.click("#language")
    assert page.run("document.documentElement.lang") == "zh-CN"
    assert "新对话" in page.text("#new") and messages(page)[0][1] == "be brief"
    paper = "getComputedStyle(document.body).backgroundColor"
    colours = []
    for _ in range(2):
        page.click("#theme")
        colours.append(page.run(paper))
    assert colours[0] != colours[1]
    page.reload()
    page.wait("document.querySelectorAll('.message').length === 2")
    assert page.run("document.documentElement.lang") == "zh-CN" and page.run(paper) == colours[1]
    unworded = page.run(
        "[...document.querySelectorAll('button, input, select, textarea')].filter(node => node.offsetParent !== null"
        " && !(node.innerText || node.ariaLabel || node.labels?.length)).length"
    )
    assert unworded == 0, "a control that nobody can read aloud"


def test_a_chinese_browser_is_answered_in_chinese(served: Served, tmp_path: Path) -> None:
    with open_browser(tmp_path / "profile", "zh-CN") as browser:
        page = browser.open(served.address)
        page.wait("document.querySelector('#key-dialog').open")
        assert "密钥" in page.text("#key-dialog") and page.problems == []


def test_phone_width_has_a_drawer_and_never_scrolls_sideways(served: Served, page: Page) -> None:
    page.resize(*PHONE, mobile=True)
    ask(page, "be hostile")
    assert page.run("[document.documentElement.scrollWidth, document.querySelector('#scroll').scrollWidth]") == [
        390,
        390,
    ]
    inside = "(() => { const box = document.querySelector('#new').getBoundingClientRect(); return box.left >= 0; })()"
    assert not page.run(inside) and page.run("document.querySelector('#side').inert")
    page.click("#open-side")
    page.wait(inside)
    assert page.run("document.activeElement.id") == "close-side" and page.run("document.querySelector('main').inert")
    page.press("Escape")
    page.wait("document.querySelector('#shade').hidden")
    for dialog in ("settings", "key", "name", "delete"):
        width = page.run(
            f"(() => {{ const dialog = document.querySelector('#{dialog}-dialog'); dialog.showModal();"
            "const box = dialog.getBoundingClientRect(); dialog.close(); return [box.left >= 0, box.right <= 390]; })()"
        )
        assert width == [True, True], dialog


def test_enter_sends_only_when_nothing_is_being_composed(served: Served, page: Page) -> None:
    page.click("#text")
    page.command("Input.imeSetComposition", text="ni", selectionStart=2, selectionEnd=2)
    page.run(
        "document.querySelector('#text').dispatchEvent(new KeyboardEvent('keydown',"
        " {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"
    )
    assert messages(page) == []
    page.command("Input.insertText", text="你")
    page.press("Enter", shift=True)
    page.type("好")
    assert messages(page) == [] and page.run("document.querySelector('#text').value") == "你\n好"
    page.press("Enter")
    settle(page)
    assert messages(page)[0] == ["user", "你\n好"] and served.scripted.asked[-1]["messages"][0]["content"] == "你\n好"


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_what_goes_wrong_is_told_in_words_and_nothing_typed_is_lost(served: Served, page: Page) -> None:
    # Too much at once: the page counts the seconds that the server named, then asks again.
    served.scripted.busy = True
    ask(page, "be brief")
    assert "Wait a little" in page.text(".note") and "Try again in" in page.text(".note button")
    assert page.run("document.querySelector('.note button').disabled")
    served.scripted.busy = False
    page.wait("!document.querySelector('.note button').disabled")
    page.click(".note button")
    settle(page)
    assert messages(page) == [["user", "be brief"], ["answer", "Brief indeed."]]

    # An answer that breaks off keeps what came.
    ask(page, "break off")
    assert messages(page)[-1] == ["answer", "half an ans"] and "broke" in page.text(".answer:last-child .note")

    # A revoked key: another is asked for, and the question is then answered by itself.
    revoke_key(served.keys, "ann")
    key = make_key(served.keys, "ann again")
    ask(page, "be briefer", wait=False)
    page.wait("document.querySelector('#key-dialog').open")
    assert "revoked" in page.text("#key-problem")
    page.click("#key-dialog [name=key]")
    page.type(key)
    page.press("Enter")
    page.wait("document.querySelector('.answer:last-child .body').innerText === 'Brief.'")
    settle(page)
    assert messages(page)[-2:] == [["user", "be briefer"], ["answer", "Brief."]]

    # A server that is gone.
    served.stop()
    ask(page, "are you there")
    assert "cannot be reached" in page.text(".answer:last-child .note")
    assert messages(page)[-2] == ["user", "are you there"]
    assert stored(page)[0]["messages"][-2]["content"] == "are you there"
