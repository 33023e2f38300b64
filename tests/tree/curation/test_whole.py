import math
from pathlib import Path

import numpy as np
import pytest
from curation.trees import compaction, folder_of, opened, plan_of
from histories import BASE, MODEL, put

from megacontext_vllm.errors import RequestError, TreeInUseError, UnknownTreeError
from megacontext_vllm.tree.curation.actions import Action, CurationPlan, Kind
from megacontext_vllm.tree.curation.apply import apply
from megacontext_vllm.tree.curation.pending import finish_pending
from megacontext_vllm.tree.curation.purge import purge
from megacontext_vllm.tree.curation.restore import restore
from megacontext_vllm.tree.meta import update_meta
from megacontext_vllm.tree.store.library import TreeLibrary

ID = "b" * 32


def whole(folder: Path, kind: Kind = "archive", action_id: str = ID) -> CurationPlan:
    return plan_of(folder, [Action(kind, 0, len(BASE), "a test", action_id=action_id)])


@pytest.fixture
def folder(library: TreeLibrary, tmp_path: Path) -> Path:
    return folder_of(tmp_path, put(library, BASE))


@pytest.mark.parametrize("kind", ["archive", "delete"])
def test_a_tree_leaves_the_library_and_comes_back(
    library: TreeLibrary, tmp_path: Path, folder: Path, kind: Kind
) -> None:
    node = (folder / "LOD0.ctx").stat().st_ino
    library.rename("default", folder.name, "a name")
    assert apply(tmp_path, folder, whole(folder, kind)).done == [ID]
    assert library.list("default") == []
    with pytest.raises(UnknownTreeError):
        library.get("default", folder.name)
    with pytest.raises(UnknownTreeError):
        library.find("default", "a name")
    restore(tmp_path, folder, ID)
    assert [info.tree_id for info in library.list("default")] == [folder.name]
    assert (folder / "LOD0.ctx").stat().st_ino == node  # moved, not copied
    acquired = library.acquire("default", BASE)
    assert (acquired.tree.tree_id, acquired.reused) == (folder.name, len(BASE))
    library.release(acquired.tree)
    library.release(library.find("default", "a name"))
    with pytest.raises(RequestError, match="already"):
        restore(tmp_path, folder, ID)


def test_reopening_the_store_does_not_miss_it(library: TreeLibrary, tmp_path: Path, folder: Path) -> None:
    apply(tmp_path, folder, whole(folder))
    other = TreeLibrary(tmp_path, MODEL)
    assert other.list("default") == []
    other.close()


def test_what_is_pinned_open_or_has_grown_stays(library: TreeLibrary, tmp_path: Path, folder: Path) -> None:
    plan = whole(folder)
    with opened(folder), pytest.raises(TreeInUseError):
        apply(tmp_path, folder, plan)
    update_meta(folder, pinned=True)
    assert "pinned" in apply(tmp_path, folder, plan).failed[ID]
    update_meta(folder, pinned=False)
    acquired = library.acquire("default", np.concatenate([BASE, BASE[:1]]))
    library.release(acquired.tree)
    assert acquired.tree.tree_id == folder.name
    assert "grown" in apply(tmp_path, folder, plan).failed[ID]
    elsewhere = folder.rename(tmp_path / folder.name)
    assert "not the place" in apply(tmp_path, elsewhere, whole(elsewhere)).failed[ID]
    assert elsewhere.exists()


def test_only_one_of_an_id_in_the_archive_and_in_the_store(library: TreeLibrary, tmp_path: Path, folder: Path) -> None:
    apply(tmp_path, folder, whole(folder))
    library.close()
    again = TreeLibrary(tmp_path, MODEL)
    made = folder_of(tmp_path, put(again, BASE))
    again.close()
    made.rename(folder)
    meta = (folder / "meta.json").read_text().replace(made.name, folder.name)
    (folder / "meta.json").write_text(meta)
    with pytest.raises(RequestError, match="again"):
        restore(tmp_path, folder, ID)
    assert "already" in apply(tmp_path, folder, whole(folder, action_id="c" * 32)).failed["c" * 32]
    purge(tmp_path, 9e9)
    assert apply(tmp_path, folder, whole(folder, action_id="c" * 32)).done


def test_a_purged_tree_is_gone(library: TreeLibrary, tmp_path: Path, folder: Path) -> None:
    apply(tmp_path, folder, whole(folder, "delete"), now=1000.0)
    assert purge(tmp_path, 1000.0 + 86_399, older_than_days=1).actions == []
    for never in (-1, math.nan):
        with pytest.raises(RequestError, match=f"{never} days ago or earlier; give 0 or more"):
            purge(tmp_path, 1000.0 + 86_401, older_than_days=never)
    gone = purge(tmp_path, 1000.0 + 86_401, older_than_days=1)
    assert gone.actions == [ID] and gone.freed >= len(BASE) * 4
    assert not any((tmp_path / "archive").glob("*/*"))
    with pytest.raises(RequestError, match="was purged"):
        restore(tmp_path, folder, ID)


def test_a_tree_is_archived_with_its_compactions(library: TreeLibrary, tmp_path: Path, folder: Path) -> None:
    node = compaction(2, 1)
    done = apply(tmp_path, folder, plan_of(folder, [node]))
    assert "no gist" in done.failed[str(node.action_id)]  # the library's test trees have none
    apply(tmp_path, folder, whole(folder))
    with pytest.raises(UnknownTreeError):
        finish_pending(tmp_path, folder)
