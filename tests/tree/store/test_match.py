import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from histories import BASE, MODEL, check, diverging, put
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.tree.files.mend import rebuild_checksums
from megacontext_vllm.tree.store.library import TreeLibrary
from megacontext_vllm.tree.tree import MegaContextTree


@pytest.mark.parametrize("stored", [1023, 1024, 1025, 2047, 2048, 2049, 5000])
@pytest.mark.parametrize("more", [0, 1, 1023, 1024, 1025])
def test_continuing_a_history(library: TreeLibrary, stored: int, more: int) -> None:
    tree_id = put(library, BASE[:stored])
    tokens = BASE[: stored + more]
    acquired = library.acquire("default", tokens)
    check(acquired, tokens)
    found = stored >= 1024
    assert acquired.reused == (stored if found else 0)
    assert acquired.created == (not found)
    assert (acquired.tree.tree_id == tree_id) == found
    assert acquired.tree.length == len(tokens)
    library.release(acquired.tree)
    assert library.open_trees() == 0


@pytest.mark.parametrize("asked", [1, 1023, 1024, 1025, 2047, 2048, 2049, 4999])
def test_history_that_is_a_prefix_of_a_tree(library: TreeLibrary, asked: int) -> None:
    tree_id = put(library, BASE[:5000])
    acquired = library.acquire("default", BASE[:asked])
    check(acquired, BASE[:asked])
    found = asked >= 1024
    assert (acquired.tree.tree_id == tree_id) == found
    assert acquired.reused == (asked if found else 0)
    assert acquired.tree.length == (5000 if found else asked)
    library.release(acquired.tree)


@pytest.mark.parametrize("common", [0, 1, 1023, 1024, 1025, 2047, 2048, 2049, 4999])
@pytest.mark.parametrize("length", [5000, 7000])
def test_divergence_is_found_to_the_token(library: TreeLibrary, common: int, length: int) -> None:
    tree_id = put(library, BASE[:5000])
    tokens = diverging(common, length)
    acquired = library.acquire("default", tokens)
    check(acquired, tokens)
    assert acquired.created
    assert acquired.reused == (common if common >= 1024 else 0)
    assert acquired.tree.length == length
    original = library.get("default", tree_id)
    np.testing.assert_array_equal(original.tokens(0, original.length), BASE[:5000])
    library.release(acquired.tree)
    library.release(original)


def test_best_of_many_branches(library: TreeLibrary) -> None:
    for common in (1024, 2000, 2040, 3000, 3071):
        put(library, diverging(common, 6000))
    put(library, BASE[:1500])  # lies within the others: no tree of its own
    acquired = library.acquire("default", BASE)
    check(acquired, BASE)
    assert (acquired.reused, acquired.created) == (3071, True)
    library.release(acquired.tree)
    put(library, BASE)
    assert len(library.list("default")) == 6


def test_extending_beats_forking_at_equal_prefix(library: TreeLibrary) -> None:
    whole = put(library, BASE[:3000])
    put(library, diverging(3000, 4000))  # extends the tree above
    twin = put(library, np.concatenate([BASE[:3000], BASE[:10]]))  # forks from it
    assert whole != twin
    plain = library.get("default", whole)
    assert plain.length == 4000
    library.release(plain)


def test_few_of_many_candidates_are_opened(library: TreeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred trees share a system prompt; one shares more. A glance at the files tells, only the best is opened."""
    for k in range(100):
        put(library, np.concatenate([BASE[:2100], np.full(1500, k, np.uint32)]))
        if k == 60:
            put(library, diverging(2900, 4000))
    opened: list[str] = []
    real = MegaContextTree.open

    def spy(path: Path, **options: Any) -> MegaContextTree:
        opened.append(path.name)
        return real(path, **options)

    monkeypatch.setattr(MegaContextTree, "open", spy)
    acquired = library.acquire("default", BASE[:4000])
    assert acquired.reused == 2900
    check(acquired, BASE[:4000])
    assert len(opened) <= 2  # to compare, and to copy from
    opened.clear()
    newcomer = library.acquire("default", np.concatenate([BASE[:2100], BASE[5000:8000]]))
    assert newcomer.reused == 2100
    assert len(opened) <= 2
    opened.clear()
    prompt = library.acquire("default", BASE[:2100])  # any of them will do
    assert (prompt.reused, prompt.created) == (2100, False)
    assert len(opened) <= 6
    for each in (acquired, newcomer, prompt):
        library.release(each.tree)


def test_generated_tokens_are_found_again(library: TreeLibrary) -> None:
    acquired = library.acquire("default", BASE[:2000])
    acquired.tree.append(BASE[2000:6000])  # decode
    library.release(acquired.tree)
    rival = put(library, diverging(2000, 3000))
    assert rival != acquired.tree.tree_id
    again = library.acquire("default", BASE[:7000])
    assert (again.tree.tree_id, again.reused) == (acquired.tree.tree_id, 6000)
    library.release(again.tree)
    assert {info.tree_id: info.length for info in library.list("default")}[again.tree.tree_id] == 7000


def change_token(folder: Path, position: int) -> None:
    with (folder / "LOD0.ctx").open("r+b") as file:
        file.seek(64 + 4 * position)
        file.write(b"\xff\xff\xff\xff")


def test_the_index_is_not_trusted(library: TreeLibrary, tmp_path: Path) -> None:
    folder = tmp_path / "trees" / "default" / put(library, BASE[:5000])
    change_token(folder, 2500)
    rebuild_checksums(folder / "LOD0.ctx")  # another token, but no damage: the anchors in the index are wrong
    acquired = library.acquire("default", BASE[:5000])
    check(acquired, BASE[:5000])
    assert acquired.reused == 2500
    library.release(acquired.tree)


def test_a_damaged_tree_is_used_up_to_the_damage(library: TreeLibrary, tmp_path: Path) -> None:
    damaged = put(library, BASE[:5000])
    change_token(tmp_path / "trees" / "default" / damaged, 2500)
    before = library.acquire("default", BASE[:2048])
    assert (before.tree.tree_id, before.reused) == (damaged, 2048)
    library.release(before.tree)
    whole = library.acquire("default", BASE[:6000])
    check(whole, BASE[:6000])
    assert (whole.reused, whole.created) == (2048, True)  # the page of 1,024 tokens that has the damage is not read
    np.testing.assert_array_equal(whole.tree.read_tokens(0, 6000), BASE[:6000])
    library.release(whole.tree)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from([0, 900, 1024, 1030, 2048, 3000]), st.integers(1, 4000)),
        min_size=1,
        max_size=12,
    )
)
def test_any_sequence_of_histories_is_exact_and_reuses_the_longest_prefix(
    histories: list[tuple[int, int, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        library = TreeLibrary(Path(folder), MODEL)
        stored: dict[str, list[int]] = {}
        for branch, common, length in histories:
            tokens = BASE[:length].copy()
            tokens[common:] += np.uint32(branch)
            expected = 0
            for other in stored.values():
                end = min(len(other), length)
                differs = np.flatnonzero(np.array(other[:end], np.uint32) != tokens[:end])
                expected = max(expected, int(differs[0]) if len(differs) else end)
            acquired = library.acquire("default", tokens)
            check(acquired, tokens)
            assert acquired.reused == (expected if expected >= 1024 else 0)
            tree = acquired.tree
            stored[tree.tree_id] = tree.tokens(0, tree.length).tolist()
            library.release(tree)
        for tree_id, content in stored.items():
            tree = library.get("default", tree_id)
            assert tree.tokens(0, tree.length).tolist() == content
            library.release(tree)
        assert library.open_trees() == 0
        library.close()


def test_a_million_tokens(library: TreeLibrary) -> None:
    tokens = np.random.default_rng(3).integers(0, 150_000, 1_000_000, dtype=np.uint32)
    changed = tokens.copy()
    changed[900_000:] += 1
    for name, history in (("new", tokens[:-100]), ("again", tokens[:-100]), ("longer", tokens), ("fork", changed)):
        start = time.perf_counter()
        acquired = library.acquire("default", history)
        seconds = time.perf_counter() - start
        check(acquired, history)
        library.release(acquired.tree)
        print(f"acquire 1 M tokens, {name}: {seconds * 1e3:.1f} ms, {acquired.reused} reused")
