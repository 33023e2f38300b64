import json
import shutil
import struct
from hashlib import blake2b
from pathlib import Path

import pytest
from curation.trees import check, compaction, fingerprints, folder_of, new_tree, plan_of
from files.levels import flip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacontext_vllm.errors import CorruptTreeError
from megacontext_vllm.tree.curation.apply import apply
from megacontext_vllm.tree.curation.dropped import DroppedFile
from megacontext_vllm.tree.curation.restore import restore
from megacontext_vllm.tree.files.checksums import checksum_of

ACTION = compaction(3, 0)
ID = str(ACTION.action_id)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("dropped")
    folder = new_tree(store, 34_000)
    assert apply(store, folder, plan_of(folder, [ACTION])).done
    return store


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "store"))


def archive_of(store: Path) -> Path:
    return next((store / "archive").rglob("*.mctx"))


def signed(description: bytes, body: bytes) -> bytes:
    """An archive with a digest that is right."""
    data = b"MCTXDROP" + struct.pack("<I", len(description)) + description + body
    return data + blake2b(data, digest_size=16).digest()


def parts(data: bytes) -> tuple[dict[str, object], bytes]:
    (length,) = struct.unpack_from("<I", data, 8)
    return json.loads(data[12 : 12 + length]), data[12 + length : -16]


def test_a_damaged_archive_is_refused_and_the_tree_stays_as_it_is(store: Path) -> None:
    folder, path = folder_of(store), archive_of(store)
    before, good = fingerprints(folder), path.read_bytes()
    for bit in [*range(0, 8 * 300, 7), *range(8 * 300, 8 * len(good), 8 * len(good) // 50)]:
        flip(path, bit)
        with pytest.raises(CorruptTreeError):
            restore(store, folder, ID)
        flip(path, bit)
    for data in (b"", good[:11], good[:500], good[:-1], good + b"x", b"x" * 5000):
        path.write_bytes(data)
        with pytest.raises(CorruptTreeError):
            restore(store, folder, ID)
    path.write_bytes(good)
    assert fingerprints(folder) == before
    check(folder, [(3, 0)])
    restore(store, folder, ID)
    check(folder, [])


def test_an_archive_that_lies_with_a_right_digest(store: Path) -> None:
    folder, path = folder_of(store), archive_of(store)
    before, (good, body) = fingerprints(folder), parts(path.read_bytes())
    levels = good["levels"]
    assert isinstance(levels, list)
    lies: list[dict[str, object]] = [
        {"action_id": "f" * 32},
        {"action_id": None},
        {"tree_id": "f" * 32},
        {"namespace": "ab"},
        {"model_fingerprint": "00"},
        {"model_fingerprint": "xy"},
        {"format_version": 2},
        {"node": [3, 1]},
        {"node": [2, 0]},
        {"node": [10**9, 0]},
        {"node": "x"},
        {"levels": levels[:2]},
        {"levels": [levels[0], levels[1], [1, 10**12, levels[2][2]]]},
        {"levels": [levels[0], levels[1], [9, 16, levels[2][2]]]},
        {"levels": [levels[0], levels[1], [1, 16, [[10**15, None]]]]},
        {"levels": [levels[0], levels[1], [1, 16, [[32, "00"]]]]},
        {"levels": [[1, 2, []], levels[1], levels[2]]},
    ]
    for lie in lies:
        path.write_bytes(signed(json.dumps(good | lie).encode(), body))
        with pytest.raises(CorruptTreeError):
            restore(store, folder, ID)
    path.write_bytes(signed(json.dumps(good).encode(), bytes([body[0] ^ 8]) + body[1:]))
    with pytest.raises(CorruptTreeError, match="rows differ from their checksums"):
        restore(store, folder, ID)
    other = bytes([body[0] ^ 8]) + body[1:4096]  # its first page, with a checksum that is right
    sums_at = 4 * 32_768
    lie_body = other + body[4096:sums_at] + struct.pack("<I", checksum_of(other)) + body[sums_at + 4 :]
    path.write_bytes(signed(json.dumps(good).encode(), lie_body))
    with pytest.raises(CorruptTreeError, match="other tokens"):
        restore(store, folder, ID)
    path.write_bytes(signed(b"[" * 100_000, body))
    with pytest.raises(CorruptTreeError):
        restore(store, folder, ID)
    assert fingerprints(folder) == before
    check(folder, [(3, 0)])


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(description=st.binary(max_size=60), body=st.binary(max_size=60), raw=st.booleans())
def test_any_bytes_are_an_archive_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, description: bytes, body: bytes, raw: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.mctx"
    path.write_bytes(b"MCTXDROP" + body if raw else signed(description, body))
    with pytest.raises(CorruptTreeError):
        DroppedFile(path).close()
