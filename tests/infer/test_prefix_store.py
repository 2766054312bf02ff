"""Names stand for whole prefixes, and room is made from the least recently used end."""

from __future__ import annotations

from talaria.infer.prefix_store import BLOCK, PrefixStore, block_names, n_blocks_for


def names(*starts: int) -> list[bytes]:
    return block_names([start for start in starts for _ in range(BLOCK)])


def test_a_name_depends_on_everything_before_it():
    assert len(block_names(range(3 * BLOCK - 1))) == 2
    assert names(1, 2)[0] == names(1, 3)[0]
    assert names(1, 2)[1] != names(3, 2)[1]
    assert block_names([1, 2] * BLOCK) != block_names([2, 1] * BLOCK)
    # 1 and 256 must not run together, as they would in bytes of varying length.
    assert len({*block_names([1] * BLOCK), *block_names([256] * BLOCK)}) == 2
    ids = list(range(100))
    assert block_names(ids, block_names(ids[:40])) == block_names(ids)
    assert [n_blocks_for(n) for n in (0, 1, BLOCK, BLOCK + 1)] == [0, 1, 1, 2]


def test_only_an_unbroken_prefix_is_found():
    store = PrefixStore(8)
    placed = dict(store.add(names(1, 2, 3)))
    assert sorted(placed) == [0, 1, 2]
    assert store.find(names(1, 2, 9)) == [placed[0], placed[1]]
    assert store.find(names(9, 2, 3)) == []
    assert store.add(names(1, 2, 3)) == []


def test_the_least_recently_used_prefix_gives_way_from_its_end():
    store = PrefixStore(4)
    store.add(names(1, 2))
    store.add(names(3, 4))
    store.find(names(1, 2))
    store.add(names(5))
    assert len(store.find(names(3, 4))) == 1
    assert len(store.find(names(1, 2))) == 2
    assert len(store.add(names(7, 7, 7, 7, 7, 7))) == 4, "a prefix longer than the store keeps its beginning"
    assert len(store.find(names(7, 7, 7, 7, 7, 7))) == 4
    assert len(store) == 4


def test_a_growing_prefix_does_not_push_out_its_own_beginning():
    store = PrefixStore(4)
    store.add(names(1, 2, 3))
    store.add(names(9))
    assert len(store.add(names(1, 2, 3, 4))) == 1
    assert len(store.find(names(1, 2, 3, 4))) == 4


def test_rows_take_blocks_back_at_once():
    store = PrefixStore(6)
    blocks = [block for _, block in store.add(names(1, 2, 3, 4, 5, 6))]
    store.set_boundary(4)
    kept = store.find(names(1, 2, 3, 4, 5, 6))
    assert len(store) == 2
    assert kept == [block for block in blocks if block >= 4][: len(kept)]
    assert len(store.add(names(7, 8, 9))) == 2
    assert min(block for block in store.find(names(7, 8, 9))) >= 4
    store.set_boundary(0)
    assert len(store.add(names(11, 12, 13, 14))) == 4
    assert len(store.find(names(7, 8))) == 2
