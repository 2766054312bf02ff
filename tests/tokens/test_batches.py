"""Batches: every token a target once an epoch, resumed to the very next batch, the same on two ranks as on one."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

from talaria.corpus.document import Document
from talaria.errors import UserError
from talaria.tokens.batches import Batch, ConversationBatches, PackedBatches, pack_conversations
from talaria.tokens.chat import ChatTokens
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.shards import Shards, write_shards
from talaria.tokens.tokenizer import Tokenizer

N = 5_003  # tokens; a prime, so that nothing comes out even
SEPARATOR = 7


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """A stream of N different ids, but for the separator that stands in every 53rd place."""
    folder = tmp_path_factory.mktemp("shards")
    text = "".join(chr(0x4E00 + i) for i in range(N))
    settings = TokenizerSettings(kind="character", special_tokens=False, validation_fraction=0, shard_tokens=3000)
    tokenizer = Tokenizer.train([text], settings)
    separator = text[SEPARATOR]
    stream = "".join(separator if i % 53 == 0 else character for i, character in enumerate(text))
    parts = [Document(str(i), stream[i : i + 1000], "") for i in range(0, N, 1000)]
    write_shards(parts, tokenizer, folder, settings)
    index = json.loads((folder / "shards.json").read_text()) | {"separator_id": SEPARATOR}
    (folder / "shards.json").write_text(json.dumps(index))
    return Shards(folder, "train")


@pytest.fixture(scope="module")
def chats() -> list[ChatTokens]:
    """Conversations of 2 to 40 tokens, all ids different, the second half of each an answer."""
    result, first = [], 100
    for i in range(60):
        n = 2 + (i * 7) % 39
        result.append(ChatTokens(list(range(first, first + n)), [j >= n // 2 for j in range(n)]))
        first += n
    return result


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def counted(batches: PackedBatches | ConversationBatches) -> Counter[tuple[int, int]]:
    """(input, target) pairs that have a loss."""
    return Counter(
        pair
        for batch in batches
        for pair in zip(
            batch.inputs_BT[batch.loss_mask_BT].tolist(), batch.targets_BT[batch.loss_mask_BT].tolist(), strict=True
        )
    )


@pytest.mark.parametrize(("context", "batch_size"), [(64, 8), (1, 100), (97, 3), (30_000, 2)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_token_is_a_target_exactly_once_an_epoch(
    shards: Shards, context: int, batch_size: int, shuffle: bool
) -> None:
    stream = shards.tokens(0, N).tolist()
    pairs = Counter(pairwise(stream))
    assert counted(PackedBatches(shards, context, batch_size, shuffle=shuffle, epochs=1)) == pairs
    doubled = Counter({pair: 2 * count for pair, count in pairs.items()})
    assert counted(PackedBatches(shards, context, batch_size, shuffle=shuffle, epochs=2)) == doubled


def test_shapes_types_and_padding(shards: Shards) -> None:
    for batch in PackedBatches(shards, 64, 8, epochs=1):
        for tensor in batch:
            assert tensor.shape == (8, 64)
        assert [t.dtype for t in batch] == [torch.int64] * 3 + [torch.bool]
        assert (batch.inputs_BT >= 0).all() and (batch.targets_BT >= 0).all()
        assert (batch.document_ids_BT[~batch.loss_mask_BT] == -1).all()
        assert (batch.document_ids_BT[batch.loss_mask_BT] >= 0).all()


def test_a_separator_opens_its_document(shards: Shards) -> None:
    batch = next(PackedBatches(shards, 500, 4, shuffle=False))
    for inputs, documents in zip(batch.inputs_BT, batch.document_ids_BT, strict=True):
        steps = documents[1:] - documents[:-1]
        assert torch.equal(steps.bool(), inputs[1:] == SEPARATOR)


def test_text_without_separators_is_one_document(tmp_path: Path) -> None:
    settings = TokenizerSettings(kind="character", special_tokens=False, validation_fraction=0)
    write_shards([Document("0", "abcabcabca", "")], Tokenizer.train(["abc"], settings), tmp_path, settings)
    batch = next(PackedBatches(Shards(tmp_path, "train"), 4, 3, shuffle=False))
    assert batch.inputs_BT.tolist() == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 0, 0]]
    assert batch.targets_BT.tolist() == [[1, 2, 0, 1], [2, 0, 1, 2], [0, 0, 0, 0]]
    assert batch.document_ids_BT.tolist() == [[0] * 4, [0] * 4, [0, -1, -1, -1]]
    assert batch.loss_mask_BT.tolist() == [[True] * 4, [True] * 4, [True, False, False, False]]


def test_windows_come_in_a_new_order_every_epoch_and_seed(shards: Shards) -> None:
    def firsts(seed: int, skip: int) -> list[int]:
        batches = PackedBatches(shards, 64, 1, seed=seed)
        return [int(b.inputs_BT[0, 1]) for b in islice(batches, skip, skip + batches.n_windows)]

    n = -(-(N - 1) // 64)
    assert firsts(0, 0) == firsts(0, 0)
    assert firsts(0, 0) != firsts(1, 0)
    assert firsts(0, 0) != firsts(0, n)
    assert sorted(firsts(0, 0)) == sorted(firsts(0, n))


@pytest.mark.parametrize("done", [0, 1, 9, 10, 17, 100])
def test_resumed_is_undisturbed(shards: Shards, chats: list[ChatTokens], done: int) -> None:
    for make in (
        lambda: PackedBatches(shards, 64, 8, seed=3),
        lambda: ConversationBatches(pack_conversations(chats, 64), 3, seed=3),
    ):
        undisturbed, stopped, resumed = make(), make(), make()
        for _ in range(done):
            next(undisturbed), next(stopped)
        resumed.load_state(json.loads(json.dumps(stopped.state())))
        for _ in range(50):
            assert equal(next(undisturbed), next(resumed))


@pytest.mark.parametrize("epochs", [None, 2])
def test_two_ranks_see_together_what_one_sees(shards: Shards, chats: list[ChatTokens], epochs: int | None) -> None:
    packed = pack_conversations(chats, 64)
    for make in (
        lambda size, rank, ranks: PackedBatches(shards, 64, size, 5, rank, ranks, epochs=epochs),
        lambda size, rank, ranks: ConversationBatches(packed, size, 5, rank, ranks, epochs=epochs),
    ):
        one, first, second = make(8, 0, 1), make(4, 0, 2), make(4, 1, 2)
        seen = 0
        for whole, a, b in islice(zip(one, first, second, strict=True), 100):
            assert equal(whole, Batch(*(torch.cat(pair) for pair in zip(a, b, strict=True))))
            seen += 1
        assert seen >= 5
        assert one.state() == first.state() == second.state()


def test_another_order_is_not_resumed_by_mistake(shards: Shards) -> None:
    state = PackedBatches(shards, 64, 8, seed=1).state()
    with pytest.raises(UserError, match="differs in seed"):
        PackedBatches(shards, 64, 8, seed=2).load_state(state)
    with pytest.raises(UserError, match="differs in n_rows"):
        PackedBatches(shards, 32, 8, seed=1).load_state(state)


def test_a_share_of_the_data_is_the_same_windows_for_every_seed_and_epoch(shards: Shards) -> None:
    """The bug: each epoch draws its own share, so that a run that should repeat a tenth of its text sees all of it."""
    seen = [
        set(counted(PackedBatches(shards, 10, 4, seed=seed, epochs=epochs, data_share=0.1)))
        for seed, epochs in ((0, 1), (1, 1), (0, 3))
    ]
    assert seen[0] == seen[1] == seen[2]
    assert 450 <= len(seen[0]) <= 510
    inputs = sorted(pair[0] for pair in seen[0])
    assert inputs[0] < 1000 and inputs[-1] > 4000, "from all of the stream"


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    settings = TokenizerSettings(kind="character", special_tokens=False, validation_fraction=0)
    write_shards([Document("0", "x", "")], Tokenizer.train(["x"], settings), tmp_path, settings)
    for split in ("train", "validation"):
        with pytest.raises(UserError, match=rf"{split} split has \d tokens"):
            PackedBatches(Shards(tmp_path, split), 8, 1)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ conversations


def test_conversations_are_whole_alone_and_once(chats: list[ChatTokens]) -> None:
    packed = pack_conversations(chats, 64)
    found: dict[tuple[int, ...], list[bool]] = {}
    for inputs, targets, documents, mask in zip(
        packed.inputs_RT, packed.targets_RT, packed.document_ids_RT, packed.loss_mask_RT, strict=True
    ):
        for document in range(documents.max() + 1):
            places = documents == document
            ids = (int(inputs[places][0]), *targets[places].tolist())
            assert inputs[places].tolist() == list(ids[:-1])
            found[ids] = mask[places].tolist()
        assert not mask[documents == -1].any()
    assert found == {tuple(chat.ids): chat.loss_mask[1:] for chat in chats}
    assert (packed.n_truncated, packed.n_dropped) == (0, 0)


def test_packing_wastes_little(chats: list[ChatTokens]) -> None:
    positions = sum(len(chat.ids) - 1 for chat in chats)
    packed = pack_conversations(chats, 64)
    assert len(packed.inputs_RT) <= 11 / 9 * positions / 64 + 1  # the bound of best-fit decreasing


def test_long_conversations_lose_their_end_and_hopeless_ones_are_dropped() -> None:
    long_answer = ChatTokens(list(range(50)), [i >= 5 for i in range(50)])
    long_question = ChatTokens(list(range(50)), [i >= 40 for i in range(50)])
    no_answer = ChatTokens([1, 2, 3], [False] * 3)
    exact = ChatTokens(list(range(21)), [i == 20 for i in range(21)])
    packed = pack_conversations([long_answer, long_question, no_answer, exact], 20)
    assert (packed.n_truncated, packed.n_dropped) == (1, 2)
    assert packed.inputs_RT.tolist() == [list(range(20))] * 2
    assert packed.loss_mask_RT.sum(axis=1).tolist() == [16, 1]
    with pytest.raises(UserError, match="no conversation fits"):
        ConversationBatches(pack_conversations([long_question], 20), 4)


def test_every_answer_counts_once_an_epoch(chats: list[ChatTokens]) -> None:
    pairs = Counter(
        pair for chat in chats for pair, counts in zip(pairwise(chat.ids), chat.loss_mask[1:], strict=True) if counts
    )
    assert counted(ConversationBatches(pack_conversations(chats, 64), 3, epochs=1)) == pairs
