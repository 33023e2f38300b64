"""Archives that were damaged or forged: one clear error, and nothing left in the store."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import archive_of, forged, members_of, resigned, tar_of
from histories import BASE, GIST, MODEL, OTHER_MODEL

from megacontext_vllm.errors import CorruptTreeError, MegaContextError
from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.store.archive_import import import_tree
from megacontext_vllm.tree.store.tar import member_header, padding, parse_header

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """40 tokens, one gist."""
    return archive_of(tmp_path_factory.mktemp("small") / "a", BASE[:40])


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """4,000 tokens, of which 1,024 are sealed."""
    return archive_of(tmp_path_factory.mktemp("sealed") / "a", BASE[:4000], (2, 1))


def refused(store: Path, archive: bytes, match: str | None = None) -> None:
    with pytest.raises(CorruptTreeError, match=match):
        import_tree(store, io.BytesIO(archive), "default")
    assert list((store / "trees").glob("*/*")) == []


def test_the_forger_makes_sound_archives_too(tmp_path: Path, small: bytes, sealed: bytes) -> None:
    for archive in (small, sealed):
        assert tar_of(members_of(archive)) == archive
        import_tree(tmp_path, io.BytesIO(forged(archive, lambda manifest, files: None)), "default")


def test_cut_off_anywhere(memory: Path, small: bytes) -> None:
    for length in range(len(small)):
        refused(memory, small[:length])


@pytest.mark.parametrize("length", [0, 5, 511, 512, 5000])
def test_what_was_never_an_archive_is_called_so(tmp_path: Path, small: bytes, length: int) -> None:
    refused(tmp_path, (b"some text. " * 500)[:length], "not a megacontext archive .made by: megacontext tree export")
    refused(tmp_path, tar_of(members_of(small)[1:]), "not a megacontext archive")
    refused(tmp_path, small[:400], "ends early")


KINDS = {
    "hard link": tarfile.LNKTYPE,
    "symbolic link": tarfile.SYMTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "folder": tarfile.DIRTYPE,
    "pipe": tarfile.FIFOTYPE,
    "contiguous": tarfile.CONTTYPE,
    "long name": tarfile.GNUTYPE_LONGNAME,
    "long link": tarfile.GNUTYPE_LONGLINK,
    "sparse": tarfile.GNUTYPE_SPARSE,
    "pax": tarfile.XHDTYPE,
    "global pax": tarfile.XGLTYPE,
    "pax of Solaris": tarfile.SOLARIS_XHDTYPE,
    "volume": b"V",
    "nothing known": b"\xff",
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("place", [0, 1, 2])
def test_only_plain_files(tmp_path: Path, small: bytes, kind: bytes, place: int) -> None:
    """In the place of a file, and before it."""
    members = members_of(small)
    before, name, data = tar_of(members[:place])[:-1024], members[place][0], members[place][1]
    header = bytearray(member_header(name, len(data)))
    header[156:157] = kind
    rest = data + bytes(padding(len(data))) + tar_of(members[place + 1 :])
    refused(tmp_path, before + resigned(header) + rest, "plain files")
    header = bytearray(member_header("LOD0.ctx", 512))
    header[156:157] = kind
    text = b"18 path=../../evil".ljust(512, b"\0")
    why = "plain files" if place else "not a megacontext archive"
    refused(tmp_path, before + resigned(header) + text + tar_of(members[place:]), why)


def test_links_with_a_plain_type(tmp_path: Path, small: bytes) -> None:
    members = members_of(small)
    for field in (slice(157, 168), slice(345, 356), slice(386, 397)):  # link name; path prefix; sparse map
        header = bytearray(member_header("manifest.json", len(members[0][1])))
        header[field] = b"/etc/passwd"
        refused(tmp_path, resigned(header) + tar_of(members)[512:], "plain files")


BAD_NAMES = [
    "../LOD0.ctx",
    "../../../../etc/passwd",
    "/LOD0.ctx",
    "/etc/passwd",
    "./LOD0.ctx",
    "x/LOD0.ctx",
    "LOD0.ctx/",
    "LOD0.ctx\n",
    "LOD00.ctx",
    "LOD01.ctx",
    "LOD2.ctx",
    "LOD99.ctx",
    "LOD-1.ctx",
    "LOD0.crc",
    "LOD1.journal",
    "LOD1..col",
    "LOD1.a/b.col",
    "LOD1.UP.col",
    "LOD100.version.col",
    "writer.lock",
    "use.lock",
    "meta.json.tmp",
    "manifest.json",
    ".hidden",
    "",
    "LOD٠.ctx",
    "lod0.ctx",
    "con",
    "a" * 200,
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_names_that_no_tree_has(tmp_path: Path, small: bytes, name: str) -> None:
    def add(manifest: dict[str, Any], files: Files) -> None:
        manifest["files"] = [
            {"name": other, "bytes": len(data), "blake2b": "0" * 64} for other, data in [*files.items(), (name, b"")]
        ]

    refused(tmp_path / "store", forged(small, add), "name that no tree has|cannot have")
    # The same name in the header of a file that the manifest calls by another.
    members = members_of(small)
    if name and name.isascii() and len(name) < 100:
        refused(tmp_path / "store", tar_of([*members[:2], (name, members[2][1]), *members[3:]]))
    assert sorted(path.name for path in tmp_path.iterdir()) in ([], ["store"])


def test_names_with_something_behind_them(tmp_path: Path, small: bytes) -> None:
    for evil in (b"LOD0.ctx\0/../../x", b"\xffLOD0.ctx"):
        header = bytearray(member_header("LOD0.ctx", 10))
        header[:100] = evil.ljust(100, b"\0")
        with pytest.raises(CorruptTreeError, match="name that no tree has"):
            parse_header(resigned(header))


SIZES = {
    "beyond the file": b"00000100000\0",
    "8 GiB": b"77777777777\0",
    "2**63": b"\x80" + (1 << 63).to_bytes(11, "big"),
    "2**88 - 1": b"\x80" + b"\xff" * 11,
    "negative": b"\xff" * 12,
    "no number": b"12345zz8901\0",
    "signed": b"-0000000001\0",
    "empty": bytes(12),
    "underscore": b"1_0\0".ljust(12, b"\0"),
    "hidden": b"1\0" + b"0" * 10,
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("place", [0, 1, 2])
def test_sizes_in_headers(tmp_path: Path, small: bytes, size: bytes, place: int) -> None:
    members = members_of(small)
    before = tar_of(members[:place])[:-1024]
    header = bytearray(member_header(*[(name, len(data)) for name, data in members][place]))
    header[124:136] = size
    refused(tmp_path, before + resigned(header) + tar_of(members[place:])[512:])


def test_sizes_from_8_gib_on_are_understood() -> None:
    for size in (0, 1, 8**11 - 1, 8**11, 1 << 40, (1 << 62) - 1):
        header = member_header("LOD1.ctx", size)
        assert parse_header(header) == ("LOD1.ctx", size)
        assert tarfile.TarInfo.frombuf(header, "ascii", "strict").size == size


def edit(**changes: Any) -> Callable[[dict[str, Any], Files], None]:
    return lambda manifest, files: manifest.update(changes)


FORGED_MANIFESTS = [
    edit(format="other"),
    edit(format_version=2),
    edit(format_version="1"),
    edit(tree_id="../" + "a" * 29),
    edit(tree_id="A" * 32),
    edit(tree_id=None),
    edit(tree_id="b" * 32),  # another than meta.json says
    edit(namespace=None),
    edit(length=-1),
    edit(length=39),
    edit(length=41),
    edit(length=True),
    edit(length=40.0),
    edit(length="40"),
    edit(length=1 << 62),
    edit(length=10**400),
    edit(created="now"),
    edit(created=1e300),
    edit(created=10**4000),
    edit(created=float("nan")),
    edit(created=float("inf")),
    edit(created=5.0),
    edit(model_fingerprint=OTHER_MODEL.hex()),
    edit(model_fingerprint="00"),
    edit(model_fingerprint=None),
    edit(name=5),
    edit(name=["x"]),
    edit(files=None),
    edit(files=[]),
    edit(files=[None]),
    edit(files=[{}] * 2000),
    edit(files=[{"name": "LOD0.ctx", "bytes": -1, "blake2b": "0" * 64}]),
    edit(files=[{"name": "LOD0.ctx", "bytes": 1 << 70, "blake2b": "0" * 64}]),
    edit(files=[{"name": "meta.json", "bytes": 1 << 30, "blake2b": "0" * 64}]),
    edit(files=[{"name": "gists.json", "bytes": 1 << 30, "blake2b": "0" * 64}]),
    edit(files=[{"name": "LOD1.hits.col", "bytes": 1 << 30, "blake2b": "0" * 64}]),
    edit(files=[{"name": "LOD0.ctx", "bytes": 10, "blake2b": "é" * 64}]),
]


@pytest.mark.parametrize("change", FORGED_MANIFESTS)
def test_forged_manifests(tmp_path: Path, small: bytes, change: Callable[[dict[str, Any], Files], None]) -> None:
    refused(tmp_path, forged(small, change))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"[" * 500_000,
        b'{"a":' * 100_000,
        b"9" * 100_000,
        b"\xff\xfe",
        b"\x00" * 100,
        b'{"format": "\xed\xa0\x80"}',
        b" " * (1 << 20) + b"{}",  # larger than a manifest may be
    ],
    ids=range(11),
)
def test_manifests_that_are_none(tmp_path: Path, small: bytes, text: bytes) -> None:
    refused(tmp_path, tar_of([("manifest.json", text), *members_of(small)[1:]]))


def test_other_files_than_the_manifest_says(tmp_path: Path, small: bytes) -> None:
    members = members_of(small)
    for order in ([1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 1, 2, 3], [0, 1, 2, 2, 3], [0, 1, 3], [0, 1, 2], [0, 0, 1, 2, 3]):
        refused(tmp_path, tar_of([members[k] for k in order]))
    refused(tmp_path, tar_of([*members, ("LOD1.ctx", b"")]), "more than its manifest")
    refused(tmp_path, tar_of([*members, ("../x", b"")]), "more than its manifest")
    refused(tmp_path, b"")
    refused(tmp_path, bytes(10_240))
    twice = json.loads(members[0][1])
    twice["files"].append(twice["files"][-1])
    refused(tmp_path, tar_of([("manifest.json", json.dumps(twice).encode()), *members[1:], members[-1]]), "twice")


@pytest.mark.parametrize("name", ["meta.json", "LOD0.ctx", "LOD1.ctx"])
def test_each_file_has_to_match_its_digest(tmp_path: Path, small: bytes, name: str) -> None:
    members = members_of(small)
    changed = [(other, data[:-3] + b"\x01" + data[-2:] if other == name else data) for other, data in members]
    refused(tmp_path, tar_of(changed))


def level_file(level: int, count: int, rows: int, **other: Any) -> bytes:
    fields: dict[str, Any] = {"dtype": RowType.FLOAT16, "dim": 8, "model_fingerprint": MODEL, "gist_fingerprint": GIST}
    if level == 0:
        fields.update(dtype=RowType.UINT32, dim=1, gist_fingerprint=bytes(16))
    header = Header(level=level, count=count, **(fields | other))
    return header.pack() + np.ones(rows * header.row_bytes, np.uint8).tobytes()


def put(name: str, data: bytes) -> Callable[[dict[str, Any], Files], None]:
    return lambda manifest, files: files.update({name: data})


def meta(**changes: Any) -> Callable[[dict[str, Any], Files], None]:
    def change(manifest: dict[str, Any], files: Files) -> None:
        files["meta.json"] = json.dumps(json.loads(files["meta.json"]) | changes).encode()

    return change


FORGED_FILES = {
    "no tokens": lambda manifest, files: files.pop("LOD0.ctx"),
    "no meta": lambda manifest, files: files.pop("meta.json"),
    "empty tokens": put("LOD0.ctx", b""),
    "no header": put("LOD0.ctx", b"MCTX"),
    "zeros": put("LOD0.ctx", bytes(64 + 160)),
    "fewer tokens": put("LOD0.ctx", level_file(0, 39, 39)),
    "more tokens": put("LOD0.ctx", level_file(0, 41, 41)),
    "fewer rows than counted": put("LOD0.ctx", level_file(0, 40, 39)),
    "more rows than counted": put("LOD0.ctx", level_file(0, 40, 41)),
    "absurd count": put("LOD0.ctx", level_file(0, 1 << 60, 40)),
    "tokens of another model": put("LOD0.ctx", level_file(0, 40, 40, model_fingerprint=OTHER_MODEL)),
    "a gist too many": put("LOD1.ctx", level_file(1, 2, 2)),
    "gists of another level": put("LOD1.ctx", level_file(2, 1, 1)),
    "tokens for gists": put("LOD1.ctx", level_file(0, 1, 1)),
    "gists for tokens": put("LOD0.ctx", level_file(1, 40, 40, dim=2)),
    "gists of another model": put("LOD1.ctx", level_file(1, 1, 1, model_fingerprint=OTHER_MODEL)),
    "empty gists": put("LOD1.ctx", b""),
    "a level too high": put("LOD2.ctx", level_file(2, 1, 1)),
    "a level too high, without rows": put("LOD2.ctx", level_file(2, 0, 0)),
    "a column that is too long": put("LOD1.hits.col", bytes(69)),
    "a column of a level too high": put("LOD2.hits.col", bytes(64)),
    "meta is no JSON": put("meta.json", b"{"),
    "meta is deep": put("meta.json", b"[" * 60_000),
    "meta is large": put("meta.json", b" " * 70_000),
    "meta of another tree": meta(tree_id="b" * 32),
    "meta of another model": meta(model_fingerprint=OTHER_MODEL.hex()),
    "meta of another version": meta(format_version=2),
    "meta of no model": meta(model_fingerprint="x"),
    "meta with a date of its own": meta(created=7.0),
    "meta with a strange name": meta(name=7),
    "meta with a strange pin": meta(pinned="yes"),
    "sealed is no JSON": put("sealed.json", b"}"),
    "sealed is deep": put("sealed.json", b"[" * 4000),
    "sealed is a number": put("sealed.json", b"1"),
    "sealed has nothing": put("sealed.json", b"{}"),
}


@pytest.mark.parametrize("change", FORGED_FILES.values(), ids=FORGED_FILES.keys())
def test_forged_files(tmp_path: Path, small: bytes, change: Callable[[dict[str, Any], Files], None]) -> None:
    refused(tmp_path, forged(small, change))


def spans(*items: dict[str, Any]) -> Callable[[dict[str, Any], Files], None]:
    whole = {"level": 2, "index": 1, "kind": "compacted", "hashes": "00" * 16, "action": None}
    text = json.dumps({"format_version": 1, "spans": [whole | item for item in items]})
    return put("sealed.json", text.encode())


FORGED_SPANS = {
    "behind the end": spans({"index": 3}),
    "far behind the end": spans({"index": 1 << 70}),
    "negative": spans({"index": -1}),
    "overlapping": spans({}, {}),
    "too many hashes": spans({"hashes": "00" * 32}),
    "half a hash": spans({"hashes": "00" * 7}),
    "no hashes": spans({"hashes": None}),
    "level 1": spans({"level": 1}),
    "level 1e9": spans({"level": 10**9}),
    "a level that is no number": spans({"level": "2"}),
    "unknown kind": spans({"kind": "secret"}),
    "too large": put("sealed.json", b" " * 10_000),
}


@pytest.mark.parametrize("change", FORGED_SPANS.values(), ids=FORGED_SPANS.keys())
def test_forged_sealed_spans(tmp_path: Path, sealed: bytes, change: Callable[[dict[str, Any], Files], None]) -> None:
    refused(tmp_path, forged(sealed, change))


def test_gists_of_two_kinds(tmp_path: Path, sealed: bytes) -> None:
    refused(tmp_path, forged(sealed, put("LOD2.ctx", level_file(2, 3, 3, dim=9))), "one kind")


def test_names_and_notes_of_an_archive_are_not_trusted(tmp_path: Path, small: bytes) -> None:
    """A name that none could have is dropped; what else meta.json says is kept only where it is plain."""
    for k, name in enumerate(("a\nb", "", "x" * 5000, "\ud800", " a", "b" * 32)):
        archive = forged(small, meta(name=name, more={"a": [1]}, note="kept"))
        tree_id = import_tree(tmp_path, io.BytesIO(archive), f"{k:x}")
        text = json.loads((tmp_path / "trees" / f"{k:x}" / tree_id / "meta.json").read_text())
        assert (text["name"], text["namespace"], text["note"]) == (None, f"{k:x}", "kept")
        assert "more" not in text


def test_errors_of_the_source_are_store_errors(tmp_path: Path, small: bytes) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 2000:
                raise OSError(5, os.strerror(5))
            return super().read(size)

    with pytest.raises(MegaContextError, match="cannot read the archive"):
        import_tree(tmp_path, Broken(small), "default")
    assert list((tmp_path / "trees").glob("*/*")) == []
