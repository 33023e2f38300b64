"""Tens of thousands of damaged archives: an error of ours or the very same tree, and never anything left behind."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from archives import archive_of, forged, members_of, tar_of
from histories import BASE, MODEL, contents

from megacontext_vllm.errors import MegaContextError
from megacontext_vllm.tree.store.archive_import import import_tree
from megacontext_vllm.tree.tree import MegaContextTree

Mutation = Callable[[bytes, np.random.Generator], bytes]


def flip_bits(data: bytes, random: np.random.Generator) -> bytes:
    found = bytearray(data)
    for at in random.integers(0, 8 * len(data), random.integers(1, 4)):
        found[at // 8] ^= 1 << at % 8
    return bytes(found)


def set_bytes(data: bytes, random: np.random.Generator) -> bytes:
    start, size = int(random.integers(0, len(data))), int(random.integers(1, 40))
    new = (b"\0", b"\xff", b"7", b"/", random.bytes(1))[random.integers(0, 5)]
    return data[:start] + new * size + data[start + size :]


def cut(data: bytes, random: np.random.Generator) -> bytes:
    return data[: random.integers(0, len(data))]


def cut_out(data: bytes, random: np.random.Generator) -> bytes:
    start = random.integers(0, len(data))
    return data[:start] + data[start + random.choice([1, 7, 512, 1024]) :]


def insert(data: bytes, random: np.random.Generator) -> bytes:
    start = random.integers(0, len(data) + 1)
    return data[:start] + random.bytes(random.choice([1, 8, 512])) + data[start:]


def move_blocks(data: bytes, random: np.random.Generator) -> bytes:
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    a, b = random.integers(0, len(blocks), 2)
    blocks[a] = blocks[b]
    return b"".join(blocks)


def move_members(data: bytes, random: np.random.Generator) -> bytes:
    members = members_of(data)
    order = random.integers(0, len(members), random.integers(1, len(members) + 2))
    return tar_of([members[k] for k in order])


def append(data: bytes, random: np.random.Generator) -> bytes:
    return data + random.bytes(600)  # behind the end of the archive: never read


BLIND: list[Mutation] = [flip_bits, set_bytes, cut, cut_out, insert, move_blocks, move_members, append]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, dict[str, bytes]]]:
    folder = tmp_path_factory.mktemp("originals")
    made = []
    for name, length, sealed in (("a", 0, ()), ("b", 40, ()), ("c", 2000, ()), ("d", 1100, ((2, 0),))):
        archive = archive_of(folder / name, BASE[:length], *sealed)
        made.append((archive, contents(folder / name)))
    return made


def try_import(store: Path, archive: bytes) -> Path | None:
    """The tree's folder if the archive was taken, which only errors of ours may prevent."""
    try:
        tree_id = import_tree(store, io.BytesIO(archive), "default", model_fingerprint=MODEL)
    except MegaContextError:
        assert list((store / "trees").glob("*/*")) == []
        return None
    return store / "trees" / "default" / tree_id


@pytest.mark.parametrize("mutation", BLIND, ids=lambda mutation: mutation.__name__)
def test_blind_damage(memory: Path, originals: list[tuple[bytes, dict[str, bytes]]], mutation: Mutation) -> None:
    random = np.random.default_rng(len(mutation.__name__))
    taken = 0
    rounds = 700 if mutation is not append else 25
    for _ in range(rounds):
        for archive, expected in originals:
            folder = try_import(memory, mutation(archive, random))
            if folder is not None:
                taken += 1
                assert contents(folder) == expected
                shutil.rmtree(folder)
    assert sorted(path.name for path in memory.iterdir() if not path.name.startswith("index.sqlite")) in (
        ["names.lock", "trees"],
        ["trees"],
        [],
    )
    print(f"{mutation.__name__}: {taken} of {rounds * len(originals)} taken")
    if mutation is append:
        assert taken == rounds * len(originals)
    if mutation is cut:
        assert taken == 0


def damage_one_file(data: bytes, random: np.random.Generator) -> tuple[bytes, dict[str, bytes]]:
    """A forger at work: one file is changed, and all sizes and digests are made to fit."""
    kept: dict[str, bytes] = {}

    def change(manifest: dict[str, object], files: dict[str, bytes]) -> None:
        name = str(random.choice(list(files)))
        changes = [flip_bits, set_bytes, cut, cut_out, insert]
        if files[name]:
            files[name] = changes[random.integers(0, len(changes))](files[name], random)
        kept.update(files)

    return forged(data, change), kept


def test_forged_files_are_refused_or_taken_as_they_are(
    memory: Path, originals: list[tuple[bytes, dict[str, bytes]]]
) -> None:
    random = np.random.default_rng(5)
    taken = 0
    for _ in range(700):
        for archive, _ in originals:
            changed, files = damage_one_file(archive, random)
            folder = try_import(memory, changed)
            if folder is not None:
                taken += 1
                with_rows = {name: data for name, data in contents(folder).items() if name.endswith(".ctx")}
                assert with_rows == {name: data for name, data in files.items() if name.endswith(".ctx")}
                tree = MegaContextTree.open(folder, model_fingerprint=MODEL, writable=True)
                for start, stop in tree.sealed.runs(0, tree.length):
                    tree.read_tokens(start, stop)
                tree.append(BASE[:3])
                tree.close()
                shutil.rmtree(folder)
    assert taken > 100  # other tokens, with digests that fit, are a tree like any other
    print(f"{taken} of {700 * len(originals)} taken")
