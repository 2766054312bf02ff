"""Cleaning: junk goes, and books, verse, Chinese and code come out as they went in."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from talaria.corpus.boilerplate import LineCounts, is_code
from talaria.corpus.clean import mask_personal_data, normalise
from talaria.corpus.decontaminate import Questions, read_questions
from talaria.corpus.dedup import SeenTexts
from talaria.corpus.quality import quality_reason
from talaria.errors import UserError

PROSE = (
    "The harbour master kept two clocks, and neither was right. Ships left by the one that suited them best, he said,\n"
    "and came home by the other. In winter, when fog lay on the breakwater, he rang a bell for every boat he knew.\n\n"
    "“You cannot count what you cannot see,” said his daughter—but she counted all the same, on her ten cold fingers.\n"
)
POEM = "".join(
    f"{first}\n    and the tide came in,\n    and the tide came in,\n{second}\n    and the tide went out.\n\n"
    for first, second in (
        ("We drew a house upon the sand", "It took the roof, it took the door"),
        ("We wrote our names with open hand", "It left us standing on the shore"),
        ("O sea, what is it that you planned", "And will you ask for more"),
    )
).removesuffix("\n")
CHINESE = (
    "老港务长有两只钟，没有一只是准的。他说，船按自己喜欢的那只出港，按另一只回来。\n冬天雾大，他为每条认得的船敲钟。\n"
    * 1
    + ("女儿说：“看不见的，怎么数呢？”可她还是数着，用十个冰凉的指头。后来钟停了，人们却仍旧按时回家。\n")
)
CODE = '''import os
from pathlib import Path


def sizes(folder: Path) -> dict[str, int]:
\t"""Bytes of every file."""
    result = {}
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if path.is_file():  # links too
            result[name] = path.stat().st_size
    return result


if __name__ == "__main__":
    print({k: v for k, v in sizes(Path(".")).items() if v > 2 ** 20})
'''
HINDI = "बंदरगाह के मालिक के पास दो घड़ियाँ थीं और दोनों में से कोई भी सही नहीं थी। जहाज़ अपनी पसंद की घड़ी से निकलते थे। " + (
    "सर्दियों में जब कोहरा छा जाता था तब वह हर नाव के लिए घंटी बजाता था जिसे वह जानता था और उसकी बेटी गिनती रहती थी।\n"
)
ORDINARY = {"prose": PROSE, "poem": POEM, "chinese": CHINESE, "code": CODE, "hindi": HINDI}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_text_comes_out_as_it_went_in(name: str) -> None:
    text = ORDINARY[name]
    assert normalise(text) == text
    assert quality_reason(text) is None
    assert mask_personal_data(text) == (text, 0, 0)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a\r\nb\rc\n", "a\nb\nc\n"),
        ("e\u0301", "é"),
        ("\ufeffa\x00b\x1b[0m\x85", "ab[0m"),
        ("a  \t\n    b\u3000\n", "a\n    b\n"),
        ("\n\n\na\n\n\n\n\n\nb\n\n\n", "a\n\n\nb\n"),
        ("ｆｕｌｌ　ｗｉｄｔｈ ½ ﬁ", "ｆｕｌｌ　ｗｉｄｔｈ ½ ﬁ"),
        ("\ud800x", "x"),
        (" \n\t\n", ""),
    ],
)
def test_normalise(raw: str, clean: str) -> None:
    assert normalise(raw) == clean
    assert normalise(clean) == clean


def words(n: int, seed: int) -> str:
    random_ = random.Random(seed)
    return " ".join("".join(random_.choices("abcdefghijklmnop", k=random_.randint(2, 9))) for _ in range(n))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("buy cheap pills now " * 30 + words(20, 0), "repeated words"),
        ("快来买便宜药" * 50, "repeated words"),
        ("Click here for more offers.\n" * 20 + words(30, 1), "repeated lines"),
        ("$$$ !!! ### >>> ~~~ *** ||| " * 20 + words(20, 2), "symbols"),
        ("buy now " * 5, None),  # too short to judge
    ],
)
def test_repetition_and_symbols_are_named(text: str, reason: str | None) -> None:
    assert quality_reason(text) == reason


def test_personal_data_is_masked_and_counted() -> None:
    text = (
        "Write to mara.lund+news@post.example.org or call +44 20 7946 0958, (212) 555-0123, 212-555-0123, "
        "13912345678, tel. 555-0123 or 010-12345678. 邮箱li@example.cn电话139 1234 5678。"
    )
    masked, emails, phones = mask_personal_data(text)
    assert (emails, phones) == (2, 7)
    assert masked == (
        "Write to <email> or call <phone>, <phone>, <phone>, <phone>, tel. <phone> or <phone>. 邮箱<email>电话<phone>。"
    )


def test_other_numbers_are_not_phones() -> None:
    text = (
        "On 2024-05-17 at 12:30:45 the sum 123456 + 654321 was 777777. ISBN 978-0-13-468599-1. 192.168.100.200. "
        "3.14159265358979 1,000,000,000 12345678901234 2**31-1 @decorator.name x@y 1999-2004 v10.2.3 13912345678901"
    )
    assert mask_personal_data(text) == (text, 0, 0)


# ------------------------------------------------------------------------------------------ boilerplate


def story(i: int) -> str:
    return f"Story {i}\n\n" + "\n".join(words(8, 10 * i + line) for line in range(6)) + f"\nThe end of {i}."


def test_menus_and_notices_go_and_the_body_stays() -> None:
    counts = LineCounts(share=0.01, least_documents=20)
    pages = []
    for i in range(300):
        body = story(i)
        pages.append(("Home | News | About\n\nAccept all cookies?\n\n" if i % 3 == 0 else "") + body)
        if i % 4 == 0:
            pages[-1] += "\n\n© The Harbour Gazette\nAll rights reserved."
    for page in pages:
        counts.add(page)
    for i, page in enumerate(pages):
        clean, removed = counts.strip(page)
        assert clean == story(i)
        assert removed == 2 * (i % 3 == 0) + 2 * (i % 4 == 0)


def test_set_phrases_stay_even_at_the_foot_of_a_text() -> None:
    counts = LineCounts(share=0.01, least_documents=20)
    pages = []
    for i in range(300):
        talk = [line for n in range(5) for line in (f"Who is number {i + n}?", "Sorry, that I do not know.")]
        pages.append("\n".join(talk))
    for page in pages:
        counts.add(page)
    assert [counts.strip(page) for page in pages] == [(page, 0) for page in pages]


def test_answers_of_short_documents_stay() -> None:
    counts = LineCounts(share=0.01, least_documents=20)
    pages = [f"Is {i} even?\nAnswer: {'no' if i % 2 else 'yes'}" for i in range(300)]
    for page in pages:
        counts.add(page)
    assert [counts.strip(page) for page in pages] == [(page, 0) for page in pages]


def test_programs_keep_their_imports() -> None:
    counts = LineCounts(share=0.01, least_documents=20)
    for _ in range(100):
        counts.add(CODE)
    assert is_code(CODE) and not any(map(is_code, (PROSE, POEM, CHINESE, HINDI)))
    assert counts.strip(CODE) == (CODE, 0)


def test_a_few_documents_have_no_boilerplate() -> None:
    counts, text = LineCounts(share=0.01, least_documents=20), story(1)
    for _ in range(19):
        counts.add(text)
    assert counts.strip(text) == (text, 0)


# ------------------------------------------------------------------------------------------ duplicates, exam


def test_case_and_white_space_do_not_hide_a_duplicate() -> None:
    seen = SeenTexts()
    assert seen.add("The  Ferry\nleaves. ＡＢ") and not seen.add("the ferry leaves. ab\n")
    assert seen.add("The ferry leaves")


def questions(*texts: str) -> Questions:
    result = Questions()
    for i, text in enumerate(texts):
        result.add(f"q{i}", text)
    return result


def test_a_leaked_question_is_found_however_it_is_set() -> None:
    index = questions("Who built the Old Bridge?", "谁建了老桥？", "What is 12 + 34?", "Yes?")
    assert index.find("Quiz:\n1) WHO built the *Old*   Bridge -- (a) Mara") == "q0"
    assert index.find("问：谁建了老桥?答：李明") == "q1"
    assert index.find("what is 12 + 34 ?") == "q2"
    for text in (
        "Who built the old bridges?",
        "Mara built the Old Bridge.",
        "谁建了新桥？",
        "What is 12 + 345?",
        "yes",
    ):
        assert index.find(text) is None
    assert (index.n_questions, index.n_too_short) == (3, 1)


def test_a_long_question_is_found_by_a_part_of_it() -> None:
    text = words(60, 5).split()
    index = questions(" ".join(text))
    assert index.find("so: " + " ".join(text[25:46])) == "q0"
    assert index.find(" ".join(text[25:44])) is None
    assert index.find("x " + " ".join(text)) == "q0"


def test_items_file(tmp_path: Path) -> None:
    path = tmp_path / "exam.jsonl"
    path.write_text(
        '{"id": "a", "messages": [{"role": "user", "content": "Hello there my friend"}, '
        '{"role": "assistant", "content": "hi"}, {"role": "user", "content": "Who rang the bell?"}]}\n'
    )
    index = read_questions(path)
    assert index.find("who rang the bell") == "a" and index.find("Hello there my friend") is None
    path.write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match=r"exam\.jsonl:1: not an exam item"):
        read_questions(path)
