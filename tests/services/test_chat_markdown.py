"""What a model writes, as headless Chromium shows it: harmless, right and at once. Skips without Debian's chromium."""

from __future__ import annotations

import json
import time

import pytest

from services.chromium import CHROMIUM, Page
from services.scripted_chat import ask

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; on Debian: apt-get install chromium"),
]


def test_a_hostile_answer_is_shown_and_not_run(page: Page) -> None:
    ask(page, "be hostile")
    time.sleep(0.3)  # time for an onerror to come
    assert page.run("window.ran === undefined")
    allowed = {
        "A",
        "ARTICLE",
        "BLOCKQUOTE",
        "BR",
        "BUTTON",
        "CODE",
        "DIV",
        "EM",
        "FIGCAPTION",
        "FIGURE",
        "LI",
        "OL",
        "P",
    }
    allowed |= {"PATH", "PRE", "S", "SPAN", "STRONG", "SVG", "TABLE", "TBODY", "TD", "TH", "THEAD", "TR", "UL"}
    inside = page.run("[...document.querySelectorAll('.answer .body *')].map(node => node.tagName.toUpperCase())")
    assert len(inside) > 200 and set(inside) <= allowed
    attributes = "[...document.querySelectorAll('.answer .body *')].flatMap(node => node.getAttributeNames())"
    assert not [name for name in page.run(attributes) if name.startswith("on") or name in ("style", "src")]
    links = page.run(
        "[...document.querySelectorAll('.answer .body a')].map(a => [a.getAttribute('href'), a.target, a.rel])"
    )
    assert [link[0] for link in links] == [
        "https://good.invalid/a_(b)?c=1",
        "https://outside.invalid/x.png",
        "https://bare.invalid/",
        "mailto:ann@good.invalid",
    ]
    assert {(target, rel) for _, target, rel in links} == {("_blank", "noopener noreferrer")}
    text = page.text(".answer .body")
    for shown in (
        "<script>window.ran = 1</script>",
        "javascript:window.ran=5",
        "<b>code</b>",
        "window.ran = 9",
        "open *and",
    ):
        assert shown in text, shown
    # Wide things scroll in their own box.
    wide = page.run(
        "[...document.querySelectorAll('.answer .wide, .answer pre')]"
        ".map(node => [node.scrollWidth > node.clientWidth + 50, node.tabIndex])"
    )
    assert [True, 0] in wide[:1] and sum(scrolls for scrolls, _ in wide) >= 2
    assert page.run("document.querySelector('#scroll').scrollWidth <= document.querySelector('#scroll').clientWidth")
    # What was not written by the page does not run either: the policy holds without the page's care.
    blocked = page.run(
        "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'written'; }"
        "catch (error) { return error.name; } })()"
    )
    assert blocked == "TypeError"
    page.problems.clear()


LINK = '<a href="{0}" title="{0}" target="_blank" rel="noopener noreferrer">{1}</a>'


CASES = [
    (
        "a **b** *c* `d` ~~e~~ 2 * 3 * 4 snake_case_name",
        "<p>a <strong>b</strong> <em>c</em> <code>d</code> <s>e</s> 2 * 3 * 4 snake_case_name</p>",
    ),
    ("# T #\ntext\nmore", "<h1>T</h1><p>text<br>more</p>"),
    (
        "1. x\n2. y\n   - z\n\nend",
        "<ol><li>x</li><li>y<ul><li>z</li></ul></li></ol><p>end</p>",
    ),
    ("- a\n- b\n\n1) c", "<ul><li>a</li><li>b</li></ul><ol><li>c</li></ol>"),
    ("3. x", '<ol start="3"><li>x</li></ol>'),
    ("> q\n> r", "<blockquote><p>q<br>r</p></blockquote>"),
    (
        "a|b\n-|:-:\n1|`2`",
        '<div class="wide" tabindex="0" role="region" aria-label="Table"><table><thead><tr><th>a</th>'
        '<th class="center">b</th></tr></thead><tbody><tr><td>1</td><td class="center"><code>2</code></td></tr>'
        "</tbody></table></div>",
    ),
    ("你好**世界**,_强调_。", "<p>你好<strong>世界</strong>,<em>强调</em>。</p>"),
    (
        "````md\n```\n````",
        '<figure><figcaption><span>md</span></figcaption><pre tabindex="0"><code>```</code></pre></figure>',
    ),
    ("a<br>b", "<p>a<br>b</p>"),
    ("***both*** \\*no\\*", "<p><strong><em>both</em></strong> *no*</p>"),
    ("---", "<hr>"),
    (
        "[a](https://x.invalid) https://y.invalid/z).",
        f"<p>{LINK.format('https://x.invalid/', 'a')} {LINK.format('https://y.invalid/z', 'https://y.invalid/z')}).</p>",
    ),
]


def test_markdown_is_shown_as_it_means(page: Page) -> None:
    for text, html in CASES:
        shown = page.run(
            "import('/page/markdown.js').then(({ showMarkdown }) => { const box = document.createElement('div');"
            f"showMarkdown(box, {json.dumps(text)});"
            "for (const node of box.querySelectorAll('button')) node.remove(); return box.innerHTML; })"
        )
        assert shown == html


def test_a_growing_answer_keeps_the_elements_that_are_done(page: Page) -> None:
    """Else what a reader has selected is lost at every token."""
    kept = page.run(
        "import('/page/markdown.js').then(({ showMarkdown }) => { const box = document.createElement('div');"
        "showMarkdown(box, 'one\\n\\na | b'); const [first, last] = box.children;"
        "showMarkdown(box, 'one\\n\\na | b\\n--|--'); return [first === box.children[0], last === box.children[1],"
        "box.children[1].className, box.children.length]; })"
    )
    assert kept == [True, False, "wide", 2]


def test_no_text_takes_forever_to_show(page: Page) -> None:
    """40,000 characters, as many as an answer of the greatest length may have, drawn within a second or two."""
    openings = [
        "[",
        "**a ",
        "`",
        "> ",
        "- ",
        "[a](",
        "![",
        "| a ",
        "*_",
        "\\",
        "<https://",
        "1. ",
        "#",
        "~~~\n",
        "[[a](b)",
        "a\n|-|\n",
        "__a",
    ]
    for text in openings:
        seconds = page.run(
            "import('/page/markdown.js').then(({ showMarkdown }) => {"
            f"const text = {json.dumps(text)}.repeat(40000 / {len(text)}); const begun = performance.now();"
            "showMarkdown(document.createElement('div'), text); return (performance.now() - begun) / 1000; })"
        )
        assert seconds < 3, text
