"""Text leaves in whole characters, and never a part of a stop string."""

from __future__ import annotations

import itertools
import random

import pytest

from talaria.infer.text_stream import TextStream


def feed(data: bytes, cuts: list[int], stop: tuple[str, ...]) -> tuple[list[str], TextStream]:
    stream = TextStream(stop)
    edges = [0, *cuts, len(data)]
    pieces = [stream.push(data[a:b]) for a, b in itertools.pairwise(edges)]
    return [*pieces, stream.finish()], stream


def test_characters_are_never_cut():
    text = "naïve 你好 🙂👩‍👩‍👧 end"
    pieces, _ = feed(text.encode(), list(range(1, len(text.encode()))), ())
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert "你" in pieces
    assert "🙂" in pieces


def test_broken_utf8_becomes_replacement_characters_as_in_one_piece():
    data = b"ok \xe4\xbd end \xff\xf0\x9f"
    pieces, _ = feed(data, list(range(1, len(data))), ())
    assert "".join(pieces) == data.decode("utf-8", errors="replace")


@pytest.mark.parametrize("seed", range(200))
def test_stop_strings_at_any_token_border(seed):
    """Small alphabet, so that prefixes of stop strings begin, fail and overlap everywhere."""
    rng = random.Random(seed)
    text = "".join(rng.choices("ab你", k=30))
    stop = tuple("".join(rng.choices("ab你", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 3)))
    data = text.encode()
    cuts = sorted(rng.sample(range(1, len(data)), rng.randint(0, 20)))
    pieces, stream = feed(data, cuts, stop)
    ends = [text.index(s) for s in stop if s in text]
    assert stream.stopped == bool(ends)
    assert not any(s in "".join(pieces) for s in stop)
    if not ends:
        assert "".join(pieces) == text
    else:
        assert len("".join(pieces)) <= min(text.index(s) + len(s) for s in stop if s in text) - 1


def test_the_stop_string_that_is_complete_first_ends_the_text():
    for stop in (("abab", "b"), ("b", "abab")):
        pieces, _ = feed(b"abab", [1, 2, 3], stop)
        assert "".join(pieces) == "a"
        pieces, _ = feed(b"abab", [], stop)
        assert "".join(pieces) == ""


def test_only_a_possible_beginning_of_a_stop_string_is_held_back():
    stream = TextStream(["User:"])
    assert [stream.push(p) for p in (b"hi", b" Us", b"ed", b" Use", b"r", b": x")] == ["hi", " ", "Used", " ", "", ""]
    assert stream.stopped
    assert stream.push(b"more") == ""
    assert stream.finish() == ""
    held = TextStream(["User:"])
    assert held.push(b"a User") == "a "
    assert held.finish() == "User"
