"""A tree with sealed spans still matches its history: by the hashes that the spans kept."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from histories import BASE, MODEL, check, put, seal
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.tree.store.chain import chain_of
from megacontext_vllm.tree.store.library import TreeLibrary
from megacontext_vllm.tree.store.match import common_with
from megacontext_vllm.tree.store.prefix_hash import ANCHOR, chained_hashes
from megacontext_vllm.tree.tree import MegaContextTree

LONG = np.random.default_rng(4).integers(0, 150_000, 80_000, dtype=np.uint32)


def folder_of(store: Path, tree_id: str) -> Path:
    return store / "trees" / "default" / tree_id


def changed(tokens: np.ndarray, at: int) -> np.ndarray:
    copy = tokens.copy()
    copy[at] += 1
    return copy


def test_a_history_goes_on_across_a_sealed_span(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id = put(library, LONG[:10_000])
    seal(folder_of(tmp_path, tree_id), (2, 3), (2, 4), (2, 7))
    for length in (10_000, 10_500, 12_000):
        acquired = library.acquire("default", LONG[:length])
        assert (acquired.tree.tree_id, acquired.created) == (tree_id, False)
        assert acquired.reused == min(length, 10_500 if length == 12_000 else 10_000)
        library.release(acquired.tree)
    tree = library.get("default", tree_id)
    assert tree.length == 12_000
    np.testing.assert_array_equal(tree.read_tokens(8192, 12_000), LONG[8192:12_000])
    assert [(span.start, span.stop) for span in tree.sealed] == [(3072, 4096), (4096, 5120), (7168, 8192)]
    library.release(tree)


@pytest.mark.parametrize("at", [0, 1500, 3071])
def test_divergence_before_the_first_sealed_span_is_exact(library: TreeLibrary, tmp_path: Path, at: int) -> None:
    tree_id = put(library, LONG[:10_000])
    seal(folder_of(tmp_path, tree_id), (2, 3))
    tokens = changed(LONG[:10_000], at)
    acquired = library.acquire("default", tokens)
    check(acquired, tokens)
    assert (acquired.reused, acquired.created) == (at if at >= ANCHOR else 0, True)
    library.release(acquired.tree)


@pytest.mark.parametrize("at", [3072, 3500, 4095, 4096, 5000, 6143, 6144, 9_999])
def test_divergence_within_and_behind_it_forks_from_before_it(library: TreeLibrary, tmp_path: Path, at: int) -> None:
    """Of a fork everything is raw: what the tree lacks comes out of the request."""
    tree_id = put(library, LONG[:10_000])
    seal(folder_of(tmp_path, tree_id), (2, 3), (2, 5))
    tokens = changed(LONG[:10_000], at)
    acquired = library.acquire("default", tokens)
    check(acquired, tokens)
    assert (acquired.reused, acquired.created) == (3072, True)
    assert not acquired.tree.sealed
    np.testing.assert_array_equal(acquired.tree.read_tokens(0, 10_000), tokens)
    library.release(acquired.tree)
    # What diverged is found again, and so is what did not.
    for history, expected in ((tokens, acquired.tree.tree_id), (LONG[:10_000], tree_id)):
        again = library.acquire("default", history)
        assert (again.tree.tree_id, again.reused) == (expected, 10_000)
        library.release(again.tree)


@pytest.mark.parametrize("end", [3073, 3500, 4096, 4097, 5000])
def test_histories_that_end_in_or_near_a_sealed_span(library: TreeLibrary, tmp_path: Path, end: int) -> None:
    """The newest tokens of a request have to be raw; what lies before them need not."""
    tree_id = put(library, LONG[:10_000])
    seal(folder_of(tmp_path, tree_id), (2, 3))
    acquired = library.acquire("default", LONG[:end])
    if end <= 4096:
        assert (acquired.created, acquired.reused) == (True, 3072)
        check(acquired, LONG[:end])
    else:
        assert (acquired.tree.tree_id, acquired.reused) == (tree_id, end)
    np.testing.assert_array_equal(acquired.tree.read_tokens(end - 1, end), LONG[end - 1 : end])
    library.release(acquired.tree)


def test_a_lost_span_without_hashes_ends_the_match(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id = put(library, LONG[:10_000])
    seal(folder_of(tmp_path, tree_id), (2, 5), lost=True)
    acquired = library.acquire("default", LONG[:10_000])
    check(acquired, LONG[:10_000])
    assert (acquired.reused, acquired.created) == (5120, True)
    library.release(acquired.tree)


def test_zeros_are_not_what_a_hole_holds(library: TreeLibrary, tmp_path: Path) -> None:
    """The rows of a sealed span read as zeros; a history of zeros does not match them."""
    tree_id = put(library, LONG[:10_000])
    seal(folder_of(tmp_path, tree_id), (2, 3))
    tokens = LONG[:10_000].copy()
    tokens[3072:4096] = 0
    acquired = library.acquire("default", tokens)
    check(acquired, tokens)
    assert acquired.reused == 3072
    library.release(acquired.tree)


def test_spans_of_higher_levels(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id = put(library, LONG)
    seal(folder_of(tmp_path, tree_id), (3, 1))
    acquired = library.acquire("default", LONG)
    assert (acquired.tree.tree_id, acquired.reused) == (tree_id, 80_000)
    assert len(next(iter(acquired.tree.sealed)).hashes) == 32
    library.release(acquired.tree)
    tokens = changed(LONG, 50_000)
    fork = library.acquire("default", tokens)
    assert (fork.reused, fork.created) == (32_768, True)
    np.testing.assert_array_equal(fork.tree.read_tokens(0, 80_000), tokens)
    library.release(fork.tree)


@pytest.mark.parametrize("sealed", [[], [(2, 0)], [(2, 3), (2, 4)], [(3, 0)], [(2, 77)], [(3, 1), (2, 64), (2, 70)]])
def test_the_chain_of_a_tree_is_that_of_its_history(
    library: TreeLibrary, tmp_path: Path, sealed: list[tuple[int, int]]
) -> None:
    tree_id = put(library, LONG)
    folder = folder_of(tmp_path, tree_id)
    if sealed:
        seal(folder, *sealed)
    expected = chained_hashes(LONG)
    with closing(MegaContextTree.open(folder, model_fingerprint=MODEL, writable=False)) as tree:
        assert chain_of(tree) == expected
        for known in (1, 3, 4, 5, 40, 77, 78):
            assert chain_of(tree, known, expected[known - 1]) == expected[known:]


def test_the_chain_ends_at_a_lost_span_and_at_damage(library: TreeLibrary, tmp_path: Path) -> None:
    lost, damaged = put(library, LONG), put(library, changed(LONG, 500))
    seal(folder_of(tmp_path, lost), (2, 20), lost=True)
    with closing(MegaContextTree.open(folder_of(tmp_path, lost), model_fingerprint=MODEL, writable=False)) as tree:
        assert chain_of(tree) == chained_hashes(LONG)[:20]
    with (folder_of(tmp_path, damaged) / "LOD0.ctx").open("r+b") as file:
        file.seek(64 + 4 * 30_000)
        file.write(b"????")
    with closing(MegaContextTree.open(folder_of(tmp_path, damaged), model_fingerprint=MODEL, writable=False)) as tree:
        hashes = chain_of(tree)
        assert hashes == chained_hashes(changed(LONG, 500))[: len(hashes)]
        assert len(hashes) == 29


def test_a_rebuilt_index_finds_sealed_trees(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id = put(library, LONG)
    library.close()
    seal(folder_of(tmp_path, tree_id), (3, 0), (2, 50))
    for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    with closing(TreeLibrary(tmp_path, MODEL)) as again:
        acquired = again.acquire("default", LONG)
        assert (acquired.tree.tree_id, acquired.reused) == (tree_id, 80_000)


def test_growth_of_a_sealed_tree_is_indexed(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id = put(library, LONG[:10_000])
    seal(folder_of(tmp_path, tree_id), (2, 3))
    tree = library.get("default", tree_id)
    tree.append(LONG[10_000:30_000])
    library.release(tree)
    acquired = library.acquire("default", changed(LONG[:30_000], 29_000))
    assert acquired.reused == 3072  # found across the span, and forked from before it
    assert [info.length for info in library.list("default") if info.tree_id == tree_id] == [30_000]
    library.release(acquired.tree)
    assert library._index.deepest("default", chained_hashes(LONG[:30_000])) == 29


@settings(max_examples=60, deadline=None)
@given(
    sealed=st.sets(st.integers(0, 8), max_size=5),
    lost=st.sets(st.integers(0, 8), max_size=1),
    at=st.integers(0, 9_999),
    length=st.integers(0, 12_000),
)
def test_common_prefix_against_the_plain_one(
    tmp_path_factory: pytest.TempPathFactory, sealed: set[int], lost: set[int], at: int, length: int
) -> None:
    folder = tmp_path_factory.mktemp("t") / "a"
    with closing(
        MegaContextTree.create(folder, tree_id="a" * 32, namespace="default", model_fingerprint=MODEL)
    ) as tree:
        tree.append(BASE)
    both = {index: "lost" if index in lost else "compacted" for index in sealed | lost}
    if sealed - lost:
        seal(folder, *((2, index) for index in sealed - lost))
    if lost:
        seal(folder, *((2, index) for index in lost), lost=True)
    tokens = np.resize(BASE, 12_000)[:length].copy()
    if at < length:
        tokens[at] += 1
    expected = min(at, length, 10_000)
    for index in sorted(both):  # the plain prefix is cut back to where it can be known
        if index * ANCHOR < expected < (index + 1) * ANCHOR:
            expected = index * ANCHOR
        if both[index] == "lost":
            expected = min(expected, index * ANCHOR)
    with closing(MegaContextTree.open(folder, model_fingerprint=MODEL, writable=False)) as tree:
        assert common_with(tree, tree.length, tokens, chained_hashes(tokens)) == expected
