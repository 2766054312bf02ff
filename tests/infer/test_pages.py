"""Blocks that rows share and that outlive them: who holds which, what is kept, what gives way. No model runs here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from talaria.infer.contract import Sampling
from talaria.infer.pages import Pages
from talaria.infer.scheduler import Request, Scheduler
from talaria.infer.text_stream import TextStream
from talaria.model.compiled import PAGE

from .test_scheduling import assert_pages_are_sound


def ask(*starts: int, n_more: int = 2) -> Request:
    """A request whose prompt is a page of each number, and n_more ids that are its alone."""
    ids = [start for start in starts for _ in range(PAGE)]
    ids += [1000 + len(starts)] * n_more
    return Request(0, ids, len(ids), 40, Sampling(), [], TextStream(()))


class Rows:
    """What a scheduler does with memory, one call at a time; sound after each."""

    def __init__(self, n_blocks: int, keep: bool = True) -> None:
        self.pages = Pages(SimpleNamespace(), n_blocks, keep)  # type: ignore[arg-type]
        self.rows: list[Request] = []

    def join(self, request: Request) -> Request:
        assert self.pages.has_room(self.rows, request)
        self.pages.join(self.rows, request)
        self.rows.append(request)
        assert_pages_are_sound(self.pages, self.rows)
        return request

    def read(self, request: Request) -> Request:
        self.join(request)
        request.length, request.is_read = len(request.ids), True
        self.pages.remember(self.rows, request)
        assert_pages_are_sound(self.pages, self.rows)
        return request

    def answer(self, request: Request, n: int) -> None:
        for token in range(n):
            request.ids.append(2000 + token)
            assert self.pages.grow(self.rows)
            request.length = len(request.ids)
        assert_pages_are_sound(self.pages, self.rows)

    def leave(self, *gone: Request) -> None:
        order = [row for row, request in enumerate(self.rows) if request not in gone]
        self.pages.arrange(self.rows, order)
        self.rows = [self.rows[row] for row in order]
        assert_pages_are_sound(self.pages, self.rows)

    def come_and_go(self, *requests: Request) -> None:
        for request in requests:
            self.leave(self.read(request))

    def known(self, *starts: int) -> int:
        """Pages known of a prompt."""
        return self.pages.n_known(ask(*starts)) // PAGE


def test_a_shared_block_is_free_only_when_its_last_row_has_left():
    """The bug: the first to leave frees what the second still reads."""
    rows = Rows(8)
    first, second, third = (rows.read(ask(1, 2)) for _ in range(3))
    shared = first.blocks[:2]
    assert second.blocks[:2] == third.blocks[:2] == shared
    assert len({request.blocks[2] for request in rows.rows}) == 3
    assert rows.pages.n_held(rows.rows) == 5
    rows.leave(first)
    assert rows.pages.n_held(rows.rows) == 4
    rows.leave(third)
    assert rows.pages.n_held(rows.rows) == 3 and second.blocks[:2] == shared
    rows.leave(second)
    assert rows.pages.n_held(rows.rows) == 0
    assert rows.known(1, 2) == 2 and set(rows.pages._kept) == set(shared)


def test_the_least_recently_held_beginning_gives_way_from_its_end():
    rows = Rows(7)
    rows.come_and_go(ask(1, 2), ask(3, 4), ask(1, 2))
    assert len(rows.pages._free) == 3
    rows.read(ask(5, 6, 7))  # takes the three, and one that is kept
    assert (rows.known(1, 2), rows.known(3, 4)) == (2, 1)
    rows.read(ask(n_more=PAGE))
    assert (rows.known(1, 2), rows.known(3, 4)) == (2, 0)
    rows.read(ask(n_more=PAGE))
    assert (rows.known(1, 2), rows.known(5, 6, 7)) == (1, 3), "what a row holds never gives way"


def test_free_blocks_are_taken_before_kept_ones():
    rows = Rows(6)
    rows.come_and_go(ask(1, 2))
    rows.read(ask(3, 4, 5))
    assert rows.known(1, 2) == 2


def test_a_growing_prefix_does_not_push_out_its_own_beginning():
    """The bug: its own kept blocks, held by nobody yet, are the least recently used when it takes new ones."""
    rows = Rows(5)
    rows.come_and_go(ask(1, 2, 3), ask(9))
    request = rows.read(ask(1, 2, 3, 4))
    assert len(set(request.blocks)) == 5
    assert rows.known(9) == 0
    rows.leave(request)
    assert rows.known(1, 2, 3, 4) == 4


def test_there_is_no_room_in_what_the_request_itself_takes_up_again():
    """The bug: kept blocks counted twice, as known and as room for the rest; then there is none to take."""
    rows = Rows(4)
    rows.come_and_go(ask(1, 2, 3))
    assert len(rows.pages._free) == 1
    assert rows.pages.has_room([], ask(1, 2, 3))
    assert not rows.pages.has_room([], ask(1, 2, 3, n_more=PAGE + 1))
    assert rows.pages.has_room([], ask(4, 5, 6))
    # Beside others a newcomer wants a block more, lest it leave at once.
    other = rows.read(ask(n_more=5))
    assert not rows.pages.has_room(rows.rows, ask(1, 2, 3))
    assert rows.pages.has_room(rows.rows, ask(1))
    rows.leave(other)
    assert len(rows.read(ask(1, 2, 3)).blocks) == 4


def test_a_request_that_gave_way_takes_up_its_own_prompt_again():
    """The bug: a preempted row reads everything anew, or counts its answer's blocks as kept."""
    rows = Rows(8)
    request = rows.read(ask(1, 2, n_more=20))
    prompt = request.blocks[:2]
    rows.answer(request, 30)  # into a fourth block
    assert len(request.blocks) == 4
    rows.leave(request)
    assert request.blocks == [] and len(rows.pages._free) == 6
    request.length, request.is_read = 0, False
    assert rows.pages.n_known(request) == 2 * PAGE
    rows.join(request)
    assert request.blocks[:2] == prompt and len(request.blocks) == 4
    assert request.length == 2 * PAGE


@pytest.mark.parametrize("n_more", [20, 31, 32, 40])
def test_only_whole_blocks_of_the_prompt_are_remembered(n_more):
    """The bug: a block named whose ids the answer goes on to write, or whose last ones single tokens computed."""
    rows = Rows(9)
    request = rows.read(ask(1, n_more=n_more))
    rows.answer(request, 50)
    rows.pages.remember(rows.rows, request)  # as at an answer's end
    assert_pages_are_sound(rows.pages, rows.rows)
    n_whole = 1 + n_more // PAGE
    assert set(rows.pages._names) == set(request.blocks[:n_whole])
    longer = ask(1, n_more=n_more)
    longer.ids = request.ids + [7] * 5
    assert rows.pages.n_known(longer) == n_whole * PAGE


def test_two_ids_at_least_are_left_to_read():
    """The bug: one id left over goes through the kernels of single tokens, and the answer depends on what was kept."""
    rows = Rows(8)
    rows.come_and_go(ask(1, 2, n_more=2))
    assert [rows.pages.n_known(ask(1, 2, n_more=n)) // PAGE for n in (0, 1, 2, 3)] == [1, 1, 2, 2]
    for length, n_known in ((1, 0), (2, 0), (PAGE, 0), (PAGE + 1, 0), (PAGE + 2, 1)):
        request = ask(1)
        request.ids = request.ids[:length]
        assert rows.pages.n_known(request) == n_known * PAGE


def test_a_request_waits_for_the_row_that_reads_its_beginning():
    rows = Rows(12)
    scheduler = Scheduler(rows.pages, 8, 512)
    scheduler.rows = rows.rows
    reading = rows.join(ask(1, 2))
    assert scheduler._admit(ask(1, 3), 512, []) == 0 and scheduler.rows == [reading]
    for other in (ask(3, 2), ask(n_more=20)):
        assert scheduler._admit(other, 512, []) == len(other.ids)
    reading.length, reading.is_read = len(reading.ids), True
    rows.pages.remember(rows.rows, reading)
    assert scheduler._admit(ask(1, 3), 512, []) == PAGE + 2
    assert rows.known(1, 3) == 1


def test_the_same_prompt_read_twice_at_once_is_kept_once():
    """The bug: the second name takes the place of the first, whose block is then neither kept nor free."""
    rows = Rows(8)
    first, second = rows.join(ask(1, 2)), rows.join(ask(1, 2))
    for request in (first, second):
        request.length, request.is_read = len(request.ids), True
        rows.pages.remember(rows.rows, request)
    assert set(rows.pages._names) == set(first.blocks[:2])
    rows.leave(first, second)
    assert len(rows.pages._kept) == 2 and len(rows.pages._free) == 6


def test_rows_grow_all_or_none():
    """The bug: some rows have their blocks when memory ends at another, and lose or leak them as it is preempted."""
    rows = Rows(5)
    first, second = rows.read(ask(1, n_more=0)), rows.read(ask(2, n_more=0))
    third = rows.read(ask(3, n_more=PAGE - 1))
    assert (len(rows.pages._free), len(rows.pages._kept)) == (1, 0)
    before = [list(request.blocks) for request in rows.rows]
    for request in rows.rows:
        request.ids.append(5)
    assert not rows.pages.grow(rows.rows)
    assert [request.blocks for request in rows.rows] == before and len(rows.pages._free) == 1
    rows.leave(third)
    assert rows.pages.grow(rows.rows)
    assert [len(request.blocks) for request in (first, second)] == [2, 2]
    assert_pages_are_sound(rows.pages, rows.rows)
    assert rows.pages.grow(rows.rows), "where nothing is missing nothing is needed"


def test_without_keep_no_block_outlives_its_row():
    rows = Rows(4, keep=False)
    rows.come_and_go(ask(1, 2), ask(1, 2))
    assert rows.known(1, 2) == 0
    assert len(rows.pages._free) == 4 and not rows.pages._names


def test_what_is_forgotten_is_free():
    rows = Rows(6)
    rows.come_and_go(ask(1, 2))
    rows.read(ask(3))
    rows.rows.clear()
    rows.pages.clear()
    assert_pages_are_sound(rows.pages, [])
    assert len(rows.pages._free) == 6 and rows.known(1, 2) == rows.known(3) == 0
