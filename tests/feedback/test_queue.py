"""The annotation queue: nobody gets a prompt twice, no place is given twice, and a server that dies forgets nothing."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from pathlib import Path

import pytest

from talaria.errors import UserError
from talaria.feedback.queue import AnnotationQueue, Assignment
from talaria.feedback.settings import QueueSettings
from talaria.feedback.store import FeedbackStore


def filled(store: FeedbackStore, n: int, kind: str = "ordinary", n_answers: int = 2) -> list[int]:
    """Items whose answers are called 0, 1, ... from the best."""
    made = []
    for i in range(n):
        prompt = store.append_prompt([{"role": "user", "content": f"{kind} {i}"}])
        ids = [store.append_answer(prompt, str(j), model=f"model {j}") for j in range(n_answers)]
        known = None if kind == "ordinary" else [[id] for id in ids]
        made.append(AnnotationQueue(store).add_item(prompt, ids, kind, known=known))  # type: ignore[arg-type]
    return made


def best_first(given: Assignment) -> list[list[int]]:
    return [[given.texts.index(str(j))] for j in range(len(given.texts))]


@pytest.fixture
def store(tmp_path: Path) -> FeedbackStore:
    return FeedbackStore(tmp_path / "feedback.db")


def work(path: str, name: str, per_item: int) -> None:
    queue = AnnotationQueue(FeedbackStore(path), QueueSettings(annotators_per_item=per_item))
    while (given := queue.next(name)) is not None:
        queue.judge(name, given.id, ranking=best_first(given))


@pytest.mark.parametrize("per_item", [1, 2])
def test_annotators_at_once_share_the_items_and_none_is_judged_too_often(store, tmp_path, per_item):
    filled(store, 30)
    context = multiprocessing.get_context("spawn")
    people = [
        context.Process(target=work, args=(str(tmp_path / "feedback.db"), name, per_item))
        for name in ("ann", "bob", "eve")
    ]
    for person in people:
        person.start()
    for person in people:
        person.join(60)
    assert [person.exitcode for person in people] == [0, 0, 0]
    choices = store.read_comparisons()
    assert Counter(choice.prompt_id for choice in choices) == dict.fromkeys(range(1, 31), per_item)
    assert max(Counter((choice.prompt_id, choice.annotator) for choice in choices).values()) == 1
    assert all([[answer.text for answer in group] for group in c.ranking] == [["0"], ["1"]] for c in choices)


def test_what_was_given_is_given_again_in_the_same_order_until_it_is_judged(store):
    filled(store, 2, n_answers=9)
    first = AnnotationQueue(store).next("ann")
    assert AnnotationQueue(store).next("ann") == first  # another server, the same state
    AnnotationQueue(store).judge("ann", first.id, ranking=best_first(first))
    assert AnnotationQueue(store).next("ann").prompt_id != first.prompt_id


def test_the_order_on_the_page_is_drawn_anew_for_each_person(store):
    filled(store, 1, n_answers=2)
    queue = AnnotationQueue(store, QueueSettings(annotators_per_item=100))
    orders = Counter(tuple(queue.next(f"person {n}").texts) for n in range(100))
    assert min(orders[("0", "1")], orders[("1", "0")]) > 20  # p < 1e-8 for a fair draw


def test_a_judgement_told_twice_counts_once(store):
    filled(store, 1)
    queue = AnnotationQueue(store)
    given = queue.next("ann")
    told = {"ranking": [[0], [1]], "scores": {0: 7}, "flags": {"harmful": [1]}, "comment": "why"}
    row = queue.judge("ann", given.id, **told, seconds=1.0)
    assert queue.judge("ann", given.id, **told, seconds=9.0) == row
    assert len(store.read_judgements()) == 1


def test_a_judgement_that_was_changed_after_a_lost_answer_is_the_one_that_counts(store):
    """The bug: the page did not hear that the first one came, somebody changed it, and the change was dropped."""
    filled(store, 1)
    queue = AnnotationQueue(store)
    given = queue.next("ann")
    first = queue.judge("ann", given.id, ranking=[[0], [1]])
    for number, change in enumerate(({"ranking": [[1], [0]]}, {"verdict": "skipped"}, {"ranking": [[0, 1]]}), 2):
        queue.judge("ann", given.id, **change)
        assert len(store.read_judgements()) == number
    [stands] = store.read_comparisons()
    assert [[answer.id for answer in group] for group in stands.ranking] == [given.answer_ids]
    assert stands.id != first and queue.progress("ann").done == 1
    assert queue.undo("ann").id == given.id and store.read_comparisons() == []


def test_a_qualification_test_that_has_ended_is_not_mended_by_telling_again(store):
    [item] = filled(store, 1, "qualification")
    queue = AnnotationQueue(store)
    given = queue.next("ann")
    assert given.item_id == item
    wrong = best_first(given)[::-1]
    queue.judge("ann", given.id, ranking=wrong)
    queue.judge("ann", given.id, ranking=wrong[::-1])
    assert queue.progress("ann").test == "failed" and len(store.read_judgements()) == 1


def test_places_on_the_page_become_the_right_answers(store):
    filled(store, 8, n_answers=3)
    queue = AnnotationQueue(store)
    for _ in range(8):
        given = queue.next("ann")
        worst, best = given.texts.index("2"), given.texts.index("0")
        queue.judge(
            "ann",
            given.id,
            ranking=best_first(given),
            scores={best: 7, worst: 1},
            flags={"harmful": [worst], "unhelpful": []},
            comment=" why ",
            seconds=2.0,
        )
    for choice in store.read_comparisons():
        assert [[answer.text for answer in group] for group in choice.ranking] == [["0"], ["1"], ["2"]]
        assert choice.scores == {choice.ranking[0][0].id: 7, choice.ranking[2][0].id: 1}
        assert choice.flags == {"harmful": [choice.ranking[2][0].id]}


def test_what_makes_no_sense_is_refused_and_not_kept(store):
    filled(store, 1, n_answers=3)
    queue = AnnotationQueue(store)
    given = queue.next("ann")
    for wrong in (
        {"ranking": [[0], [1]]},
        {"ranking": [[0], [1], [3]]},
        {"ranking": [[0], [1], [-1]]},
        {"ranking": [[0, 0], [1]]},
        {"ranking": []},
        {"ranking": [[0], [1], [2]], "flags": {"ugly": [0]}},
        {"ranking": [[0], [1], [2]], "scores": {4: 1}},
        {"verdict": "withdrawn"},
    ):
        with pytest.raises(UserError):
            queue.judge("ann", given.id, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="none of 'bob'"):
        queue.judge("bob", given.id, ranking=best_first(given))
    assert store.read_judgements() == []


def test_undo_takes_back_the_last_by_a_row_and_opens_it_again(store):
    filled(store, 3)
    queue = AnnotationQueue(store)
    first = queue.next("ann")
    queue.judge("ann", first.id, ranking=[[0], [1]])
    second = queue.next("ann")
    assert queue.undo("ann") == first
    assert queue.next("ann") == first and queue.progress("ann").done == 0
    queue.judge("ann", first.id, ranking=[[1], [0]])
    assert queue.next("ann") == second
    [choice] = store.read_comparisons()
    assert choice.ranking[0][0].id == first.answer_ids[1]
    assert [row.verdict for row in store.read_judgements()] == ["ranked", "withdrawn", "ranked"]
    assert queue.undo("ann") == first and queue.undo("ann") is None and queue.undo("bob") is None


def test_who_skips_or_leaves_gives_the_place_to_somebody_else(store):
    filled(store, 1)
    queue = AnnotationQueue(store, QueueSettings(assignment_seconds=3600))
    given = queue.next("ann")
    assert queue.next("bob") is None
    assert AnnotationQueue(store, QueueSettings(assignment_seconds=1e-9)).next("bob") is not None  # its time is over
    queue.judge("ann", given.id, verdict="skipped")
    assert queue.next("ann") is None and queue.next("bob") is not None
    assert store.read_comparisons() == [] and queue.progress("ann").done == 1


def test_the_test_comes_first_and_who_fails_gets_nothing(store):
    filled(store, 2)
    filled(store, 4, "qualification")
    queue = AnnotationQueue(store, QueueSettings(pass_share=0.75))
    for name, right in (("ann", 3), ("bob", 2)):
        assert queue.progress(name).test == "open"
        for n in range(4):
            given = queue.next(name)
            assert given.kind == "qualification"
            ranking = best_first(given)
            queue.judge(name, given.id, ranking=ranking if n < right else ranking[::-1])
    assert queue.progress("ann").test == "passed" and queue.next("ann").kind == "ordinary"
    assert queue.progress("bob").test == "failed" and queue.next("bob") is None
    assert queue.undo("bob") is None, "a failed test cannot be corrected until it is passed"


def test_hidden_items_come_in_between_and_count_like_others(store):
    filled(store, 40)
    filled(store, 10, "hidden")
    queue = AnnotationQueue(store, QueueSettings(hidden_share=0.5))
    kinds = []
    for done in range(50):
        given = queue.next("ann")
        progress = queue.progress("ann")
        assert (progress.done, progress.left) == (done, 50 - done), "a count that stands still tells which was hidden"
        kinds.append(given.kind)
        queue.judge("ann", given.id, ranking=best_first(given))
    assert queue.next("ann") is None and queue.progress("ann").left == 0
    assert Counter(kinds) == {"ordinary": 40, "hidden": 10}
    assert "hidden" in kinds[:35], "not all at the end"
    assert len(store.read_comparisons()) == 40, "what only checks annotators is nothing to train on"
    assert sum(row.is_check for row in store.read_judgements()) == 10


def test_a_talk_is_its_own_and_goes_to_nobody_else(store):
    queue = AnnotationQueue(store)
    drawn = [{"text": text, "model": "m", "seed": 1, "sampling": {}} for text in "01"]
    given = queue.talk("ann", [{"role": "user", "content": "my own"}], drawn)
    assert queue.open_talk("ann") == given and queue.open_talk("bob") is None
    assert queue.next("ann") is None and queue.next("bob") is None
    queue.judge("ann", given.id, ranking=best_first(given))
    assert queue.open_talk("ann") is None
    [choice] = store.read_comparisons()
    assert (choice.asked_by, choice.source) == ("ann", "annotation page")


def test_another_persons_judgement_cannot_be_taken_back(store):
    filled(store, 1)
    queue = AnnotationQueue(store, QueueSettings(annotators_per_item=2))
    row = queue.judge("ann", queue.next("ann").id, ranking=[[0], [1]])
    queue.judge("bob", queue.next("bob").id, ranking=[[0], [1]])
    assert queue.undo("bob", row) is None and len(store.read_judgements()) == 2


def test_a_known_ranking_that_nobody_could_miss_is_refused(store):
    prompt = store.append_prompt([{"role": "user", "content": "q"}])
    ids = [store.append_answer(prompt, text, model="m") for text in "ab"]
    with pytest.raises(UserError, match="nobody could be wrong"):
        AnnotationQueue(store).add_item(prompt, ids, "qualification", known=[ids])
