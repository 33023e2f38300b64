"""GistRows against a plain model of a device, and the bound that sizes the pool."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.engine.gist_rows import GistRows, check_pool_size, default_pages, pages_needed
from megacontext_vllm.errors import ConfigError

PATHS = ("a/LOD1.ctx", "a/LOD2.ctx", "b/LOD1.ctx")
NODES, PAGES, BATCHED = 70, 2, 32  # two steps of 32 gists fill two pages

step = st.tuples(
    st.lists(st.tuples(st.sampled_from(PATHS), st.integers(0, NODES - 1)), max_size=BATCHED),
    st.sampled_from([None, None, None, "a", "b"]),
)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(step, max_size=14))
def test_against_a_plain_device(steps: list[tuple[list[tuple[str, int]], str | None]]) -> None:
    """Each position reads its own gist, nothing is copied twice, and nothing that the step before reads is written."""
    rows, device = GistRows(PAGES), dict[int, tuple[str, int, int]]()
    made = dict.fromkeys("ab", 0)  # how often the tree's gists were made
    read_before: set[int] = set()
    for gists, forgotten in steps:
        if forgotten is not None:
            rows.forget(forgotten)
            made[forgotten] += 1
        resident = set(device.values()) if rows.resident == len(device) else None
        shown, fills = rows.place([(path, index, index + 1) for path, index in gists])
        filled = [(fill.path, index) for fill in fills for index in fill.gists.tolist()]
        assert len({fill.path for fill in fills}) == len(fills), "a file is opened once"
        assert len(set(filled)) == len(filled) and set(filled) <= set(gists)
        for fill in fills:
            for index, row in zip(fill.gists.tolist(), fill.rows.tolist(), strict=True):
                assert row not in read_before, "the device may still be reading it"
                assert resident is None or (fill.path, index, made[fill.path[0]]) not in resident, "it is there already"
                device[row] = (fill.path, index, made[fill.path[0]])
        for (path, index), row in zip(gists, shown, strict=True):
            assert device[row] == (path, index, made[path[0]])
        read_before = set(shown)
        assert rows.resident <= 32 * PAGES


def test_a_file_is_filled_from_at_once_in_its_order() -> None:
    rows = GistRows(4)
    shown, fills = rows.place([("b", 3, 9), ("a", 8, 9), ("a", 7, 9), ("a", 5, 9), ("a", 8, 9)])
    assert [(fill.path, fill.gists.tolist()) for fill in fills] == [("a", [5, 7, 8]), ("b", [3])]
    assert shown[1] == shown[4] and len(set(shown)) == 4
    assert [fill.rows.tolist() for fill in fills] == [[shown[3], shown[2], shown[1]], [shown[0]]]
    assert rows.place([("a", 6, 9), ("a", 7, 9)])[1][0].gists.tolist() == [6]


def test_the_least_recently_shown_make_room() -> None:
    rows = GistRows(1)
    rows.place([("old", i, 32) for i in range(16)])
    rows.place([("late", i, 32) for i in range(16)])
    rows.place([("old", i, 32) for i in range(4)])
    _, fills = rows.place([("new", i, 32) for i in range(12)])
    assert [fill.gists.tolist() for fill in fills] == [list(range(12))]
    assert rows.place([("late", i, 32) for i in range(16)] + [("old", i, 32) for i in range(4)])[1] == []


def test_what_the_step_before_shows_is_not_given_away() -> None:
    rows = GistRows(1)
    before, _ = rows.place([("first", i, 16) for i in range(16)])
    now, _ = rows.place([("second", i, 16) for i in range(16)])
    assert not set(before) & set(now)
    after, _ = rows.place([("third", i, 16) for i in range(16)])
    assert set(after) == set(before)


def test_gists_of_a_tree_that_was_forgotten_are_filled_anew_elsewhere() -> None:
    """The step before may still be reading the old ones."""
    rows = GistRows(1)
    wanted = [("a/t/LOD1.ctx", 3, 40), ("a/t2/LOD1.ctx", 3, 40)]
    before, _ = rows.place(wanted)
    rows.forget("a/t")
    shown, fills = rows.place(wanted)
    assert [(fill.path, fill.gists.tolist()) for fill in fills] == [("a/t/LOD1.ctx", [3])]
    assert shown[1] == before[1] and shown[0] != before[0]
    for _ in range(3):  # no row is lost
        rows.forget("a/t")
        rows.place(wanted)
    assert len(set(rows.place([("c", i, 16) for i in range(16)])[0])) == 16


def test_nothing_wanted_nothing_done() -> None:
    assert GistRows(1).place([]) == ([], [])


def test_showing_an_uncommitted_gist_and_overrunning_the_pool_are_bugs() -> None:
    with pytest.raises(AssertionError, match="committed"):
        GistRows(2).place([("f", 40, 40)])
    with pytest.raises(AssertionError, match="more rows"):
        GistRows(1).place([("f", i, 64) for i in range(33)])


# ---- the bound ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(batched=st.integers(1, 100), steps=st.lists(st.integers(0, 100), max_size=6), forgets=st.lists(st.booleans()))
def test_two_steps_of_nothing_but_gists_fit(batched: int, steps: list[int], forgets: list[bool]) -> None:
    """Whatever the steps show, and though all of it is forgotten and shown again."""
    rows = GistRows(pages_needed(batched))
    for i, count in enumerate(steps):
        if i < len(forgets) and forgets[i]:
            rows.forget("t")
        rows.place([("t/LOD1.ctx", i * 50 + j, 10**6) for j in range(min(count, batched))])


def test_the_pool_does_not_grow_with_the_requests() -> None:
    assert pages_needed(8192) == 512 and default_pages(8192) == 1024
    assert pages_needed(1) == 1 and pages_needed(17) == 2


def test_a_pool_too_small_says_how_many_bytes_are_needed() -> None:
    with pytest.raises(ConfigError) as refused:
        check_pool_size(10, 100, page_bytes=32 * 576 * 2)
    message = str(refused.value)
    assert "gist_pool_pages=10" in message and "100 pages" in message and "3,686,400 bytes" in message
    assert "--max-num-batched-tokens" in message
    check_pool_size(100, 100, page_bytes=1)
