"""The annotation page in headless Chromium, over a server process that is killed. Skips without Debian's chromium."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.chromium import CHROMIUM, Browser, Page, open_browser
from services.test_server_process import save_random
from talaria.feedback.store import FeedbackStore
from talaria.feedback.summary import summarise
from talaria.serve.keys import make_key

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; on Debian: apt-get install chromium"),
]
PHONE = (390, 780)
MODEL = "a-model-to-be-kept-secret"


class Annotation:
    """`talaria annotate` on a port that stays the same when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "feedback.db"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "talaria", "annotate", f"{MODEL}={self.folder / 'model'}"]
        command += ["--port", str(self.port), "--keys", str(self.folder / "keys.json"), "--store", str(self.store)]
        self.process = subprocess.Popen(
            [*command, *arguments], stderr=subprocess.DEVNULL, env=os.environ | {}, cwd=self.folder
        )
        deadline = time.monotonic() + 120
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, "the page does not come up"
            try:
                if httpx.get(f"{self.address}health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def annotation(tmp_path: Path) -> Iterator[Annotation]:
    save_random(tmp_path, n_layers=1, d_model=16)
    annotation = Annotation(tmp_path)
    yield annotation
    annotation.kill()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def known_items(path: Path, n: int) -> Path:
    """Items whose better answer says so."""
    rows = [
        {
            "messages": [{"role": "user", "content": f"question {i}"}],
            "answers": [{"text": f"good answer {i}", "model": MODEL}, {"text": f"bad answer {i}", "model": MODEL}],
            "ranking": [[0], [1]],
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def fill(store: FeedbackStore, n: int, n_answers: int = 2) -> None:
    from talaria.feedback.queue import AnnotationQueue

    queue = AnnotationQueue(store)
    with store.together():
        for i in range(n):
            prompt = store.append_prompt([{"role": "user", "content": f"question {i}"}])
            texts = ["good", *["bad"] * (n_answers - 1)]
            ids = [
                store.append_answer(prompt, f"{text} answer {i}.{j}", model=MODEL, seed=4711)
                for j, text in enumerate(texts)
            ]
            queue.add_item(prompt, ids)


def sign_in(page: Page, key: str) -> None:
    page.wait("document.querySelector('#key-dialog').open")
    page.click("#key-dialog [name=key]")
    page.type(key)
    page.press("Enter")
    page.wait("document.querySelector('#guidelines-dialog').open")
    assert "Honest" in page.text("#guidelines")
    page.click("#guidelines-dialog .main")
    page.wait("!document.querySelector('#guidelines-dialog').open")


def begin_talk(page: Page) -> None:
    page.click("#talk-tab")
    page.wait("!document.querySelector('#composer').hidden")


def say(page: Page, text: str) -> None:
    page.click("#text")
    page.type(text)
    page.press("Enter")


def shown(page: Page) -> tuple[str, list[str]]:
    """The question and the answers, as they stand on the page."""
    return page.text(".message .body"), page.run(
        "[...document.querySelectorAll('.card .body')].map(node => node.innerText)"
    )


def done(page: Page) -> int:
    return int(page.text("#progress-words").split()[0])


def choose(page: Page, wrong: bool = False) -> None:
    """By keyboard, up to but without Enter."""
    answers = shown(page)[1]
    good = next(i for i, text in enumerate(answers) if text.startswith("good"))
    page.press(str((1 - good if wrong else good) + 1))


def test_two_annotators_at_once_through_a_kill_lose_nothing(annotation: Annotation, browser: Browser) -> None:
    names = ("ann", "bob")
    keys = {name: make_key(annotation.folder / "keys.json", name) for name in names}
    fill(FeedbackStore(annotation.store), 100)
    test = known_items(annotation.folder / "test.jsonl", 2)
    options = ["--qualification", str(test), "--set", "queue.annotators_per_item=2"]
    annotation.start(*options)
    pages = {name: browser.open(annotation.address, private=True) for name in names}
    for name, page in pages.items():
        sign_in(page, keys[name])
        for n in range(2):
            page.wait(f"document.querySelector('#note').innerText.includes('{n + 1} / 2')")
            choose(page)
            page.press("Enter")
        page.wait("document.querySelector('#note').hidden && document.querySelector('.card')")

    def choose_as(name: str) -> None:
        number = int(shown(pages[name])[0].split()[-1])
        choose(pages[name], wrong=name == "bob" and number % 4 == 0)

    for n in range(100):
        for name in names:
            choose_as(name)
        if n == 50:
            # Ann has written and not sent; what bob sends meets the kill somewhere on its way.
            pages["ann"].press("c")
            pages["ann"].type("what I was typing")
            pages["ann"].press("Escape")
            pages["bob"].press("Enter")
            annotation.kill()
            pages["ann"].press("Enter")
            pages["ann"].wait("!document.querySelector('#banner').hidden")
            assert "cannot be reached" in pages["ann"].text("#banner")
            pages["ann"].reload()  # the worst she can do; the page itself is not there
            annotation.start(*options)
            pages["ann"].go(annotation.address)
            pages["ann"].wait("document.querySelector('.card.placed')")
            assert pages["ann"].run("document.querySelector('#comment').value") == "what I was typing"
            if not pages["bob"].run("document.querySelector('#banner').hidden"):
                pages["bob"].click("#banner button")
            pages["ann"].press("Enter")
        else:
            for name in names:
                pages[name].press("Enter")
        for page in pages.values():
            page.wait(f"document.querySelector('#progress-words').innerText.startsWith('{n + 1} done')")
    for page in pages.values():
        page.wait("!document.querySelector('#nothing').hidden")
        assert page.problems == []
        outside = [request for request in page.requests if not request.startswith(annotation.address)]
        assert all(request.startswith("data:") for request in outside), "but for the pictures of Chromium's error page"
        page.close()
    store = FeedbackStore(annotation.store)
    judgements = store.read_judgements()
    assert len(judgements) == 204, "200 and the two of each test; nothing twice"
    summary = summarise(store)
    assert (summary.choices, summary.prompts) == (200, 100)
    assert Counter(row.annotator for row in judgements) == {"ann": 102, "bob": 102}
    assert (summary.agreement.among.n, summary.agreement.among.share) == (100, 0.75)
    assert summary.agreement.among.low < 0.75 < summary.agreement.among.high
    assert all(person.known == person.known_right == 2 for person in summary.annotators)
    assert all(0 < person.median_seconds < 30 for person in summary.annotators if person.median_seconds is not None)
    assert [row.comment for row in judgements if row.comment] == ["what I was typing"]
    for row in judgements:
        wrong = row.annotator == "bob" and row.messages[0]["content"].split()[-1] in map(str, range(0, 100, 4))
        if row.source is None:
            assert row.ranking[0][0].text.startswith("bad" if wrong else "good")


def test_ranks_ties_scores_flags_undo_and_skip_by_keyboard(annotation: Annotation, browser: Browser) -> None:
    key = make_key(annotation.folder / "keys.json", "ann")
    fill(FeedbackStore(annotation.store), 3, n_answers=4)
    annotation.start()
    page = browser.open(annotation.address, private=True)
    sign_in(page, key)
    page.wait("document.querySelectorAll('.card').length === 4")
    answers = shown(page)[1]
    page.press("Enter")  # nothing is ranked yet
    for step in ("3", "=", "1", "4"):  # 3 and 1 tied, then 4, and what is left comes last by itself
        page.press(step)
    assert page.run("[...document.querySelectorAll('.rank')].map(node => node.innerText)") == [
        "tied, rank 1", "rank 4", "tied, rank 1", "rank 3"]  # fmt: skip
    page.press("2", shift=True)  # of answer 4, which was chosen last
    page.press("m")
    page.press("ArrowLeft")
    page.press("7", shift=True)
    page.press("Enter")
    page.wait("document.querySelector('#progress-words').innerText.startsWith('1 done')")
    store = FeedbackStore(annotation.store)
    [choice] = store.read_comparisons()
    assert [sorted(answer.text for answer in group) for group in choice.ranking] == [
        sorted([answers[2], answers[0]]), [answers[3]], [answers[1]]]  # fmt: skip
    texts = {answer.id: answer.text for group in choice.ranking for answer in group}
    assert {texts[id]: score for id, score in choice.scores.items()} == {answers[3]: 2, answers[2]: 7}
    assert [texts[id] for id in choice.flags["harmful"]] == [answers[3]]
    # Undo, by button; then a tie of all, by key.
    page.click("#undo")
    page.wait("document.querySelector('#progress-words').innerText.startsWith('0 done')")
    assert shown(page)[1] == answers, "the same item in the same order"
    page.press("t")
    page.press("Enter")
    page.wait("document.querySelector('#progress-words').innerText.startsWith('1 done')")
    [choice] = store.read_comparisons()
    assert len(choice.ranking) == 1 and len(choice.ranking[0]) == 4
    page.press("s")
    page.wait("document.querySelector('#progress-words').innerText.startsWith('2 done')")
    assert [row.verdict for row in store.read_judgements()] == ["ranked", "withdrawn", "ranked", "skipped"]
    # The last of all can be taken back too.
    page.press("s")
    page.wait("!document.querySelector('#nothing').hidden")
    page.click("#undo-last")
    page.wait("document.querySelectorAll('.card').length === 4")
    assert [row.verdict for row in store.read_judgements()][-2:] == ["skipped", "withdrawn"]
    # Nothing that the page holds or was sent names the model.
    assert MODEL not in page.run("document.documentElement.outerHTML") and "4711" not in page.text("body")
    assert page.problems == []
    page.close()


def test_talking_goes_on_with_the_best_answer(annotation: Annotation, browser: Browser) -> None:
    key = make_key(annotation.folder / "keys.json", "ann")
    annotation.start("--set", "collect.max_tokens=12", "--set", "collect.answers=3")
    page = browser.open(annotation.address, private=True)
    sign_in(page, key)
    page.wait("!document.querySelector('#nothing').hidden")
    begin_talk(page)
    for turn in range(2):
        say(page, f"hello {turn}")
        page.wait("document.querySelectorAll('.card').length === 3")
        if turn == 1:
            page.reload()
            page.wait("!document.querySelector('#talk-tab').hidden")
            page.click("#talk-tab")
            page.wait("document.querySelectorAll('.card').length === 3")
        page.press("2")
        page.press("t")
        page.press("Enter")
        page.wait("!document.querySelector('#composer').hidden && !document.querySelector('.card')")
    first, second = FeedbackStore(annotation.store).read_comparisons()
    best = first.ranking[0][0]
    asked = ("hello 0", best.text, "hello 1")
    assert [turn["content"] for turn in second.messages] == list(asked)
    assert [len(group) for group in second.ranking] == [1, 2] and best.model == MODEL
    assert page.run("document.querySelectorAll('.message').length") == 4
    assert page.problems == []
    page.close()


def test_a_key_pressed_before_the_answers_are_drawn_is_the_judgements(annotation: Annotation, browser: Browser) -> None:
    key = make_key(annotation.folder / "keys.json", "ann")
    annotation.start("--set", "collect.max_tokens=12")
    page = browser.open(annotation.address, private=True)
    sign_in(page, key)
    page.wait("!document.querySelector('#nothing').hidden")
    begin_talk(page)
    pressed = "new KeyboardEvent('keydown', {key: '1', code: 'Digit1', bubbles: true})"
    page.run(
        "new MutationObserver((_, observer) => { if (document.querySelector('.card')) { observer.disconnect();"
        f" queueMicrotask(() => document.activeElement.dispatchEvent({pressed})); }} }})"
        ".observe(document.querySelector('#answers'), {childList: true})"
    )
    say(page, "hello")
    page.wait("document.querySelectorAll('.card').length === 2 && !document.querySelector('#submit').disabled")
    assert page.problems == []
    page.close()


def test_whoever_comes_next_is_not_shown_the_last_ones_conversation(annotation: Annotation, browser: Browser) -> None:
    ann, bob = (make_key(annotation.folder / "keys.json", name) for name in ("ann", "bob"))
    annotation.start("--set", "collect.max_tokens=12")
    page = browser.open(annotation.address, private=True)
    sign_in(page, ann)
    page.wait("!document.querySelector('#talk-tab').hidden")
    begin_talk(page)
    say(page, "a secret of mine")
    page.wait("document.querySelectorAll('.card').length === 2")
    page.press("1")
    page.press("Enter")
    page.wait("!document.querySelector('#composer').hidden && !document.querySelector('.card')")
    # The key is changed behind the page's back, as when a tab is closed whose key was not kept.
    keep_key = "for (const kept of [localStorage, sessionStorage]) if (kept.getItem('talaria.key'))"
    for key, sees in ((ann, True), (bob, False), (ann, False)):
        page.run(f"(() => {{ {keep_key} kept.setItem('talaria.key', '{key}'); }})()")
        page.reload()
        page.wait("!document.querySelector('#talk-tab').hidden")
        begin_talk(page)
        assert ("a secret of mine" in page.text("#log")) == sees, key
    assert page.problems == []
    page.close()


def test_on_a_phone_everything_is_there_and_nothing_sticks_out(annotation: Annotation, browser: Browser) -> None:
    key = make_key(annotation.folder / "keys.json", "ann")
    fill(FeedbackStore(annotation.store), 2)
    annotation.start()
    page = browser.open(annotation.address, private=True)
    page.resize(*PHONE, scale=2, mobile=True)
    sign_in(page, key)
    page.wait("document.querySelectorAll('.card').length === 2")
    assert page.run("document.documentElement.scrollWidth") <= PHONE[0]
    outside = (
        "[...document.querySelectorAll('button, input, .card')].filter(node => node.checkVisibility() &&"
        f" (node.getBoundingClientRect().left < 0 || node.getBoundingClientRect().right > {PHONE[0]})).length"
    )
    assert page.run(outside) == 0
    good = next(i for i, text in enumerate(shown(page)[1]) if text.startswith("good"))
    page.click(f".card:nth-child({good + 1}) .place")
    page.click("#submit")
    page.wait("document.querySelector('#progress-words').innerText.startsWith('1 done')")
    page.click("#language")
    assert page.text("#submit") == "提交" and page.text("#progress-words") == "已完成 1 · 剩余 1"
    page.click("#open-guidelines")
    page.wait("document.querySelector('#guidelines-dialog').open")
    assert "诚实" in page.text("#guidelines")
    [choice] = FeedbackStore(annotation.store).read_comparisons()
    assert choice.ranking[0][0].text.startswith("good")
    page.close()
