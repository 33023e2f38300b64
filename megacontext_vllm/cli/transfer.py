"""``megacontext tree export|import``: one tree as one file, with checksums, to keep or to take elsewhere."""

import argparse
import os
import sys
from contextlib import closing
from pathlib import Path

from megacontext_vllm.cli.progress import bar
from megacontext_vllm.cli.stored import find_folder, open_tree
from megacontext_vllm.cli.text import size_text
from megacontext_vllm.errors import CorruptTreeError, RequestError, StoreError
from megacontext_vllm.tree.store.archive import export_tree
from megacontext_vllm.tree.store.archive_import import import_tree


def export(options: argparse.Namespace) -> int:
    folder = find_folder(options.store, options.namespace, options.tree)
    target: Path = options.file
    if target.exists() and not options.force:
        raise RequestError(f"{target} exists; say --force to replace it")
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")  # in place only when it is whole
    try:
        with closing(open_tree(folder)) as tree, open(draft, "wb") as file, bar("export") as progress:
            export_tree(tree, file, progress)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
    print(f"{folder.name} is in {target} ({size_text(target.stat().st_size)}).", file=sys.stderr)
    return 0


def import_(options: argparse.Namespace) -> int:
    try:
        with open(options.file, "rb") as file, bar("import") as progress:
            tree_id = import_tree(options.store, file, options.namespace or "default", progress=progress)
    except FileNotFoundError:
        raise RequestError(f"there is no file {options.file}") from None
    except CorruptTreeError as error:
        raise CorruptTreeError(f"{options.file}: {error}") from None
    print(tree_id)
    return 0
