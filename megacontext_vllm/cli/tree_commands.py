"""The options of ``megacontext tree ...``, and what each action says of itself."""

import argparse
from pathlib import Path
from typing import Any

from megacontext_vllm.cli import care, curate, grep, transfer, tree
from megacontext_vllm.tree.nodes import BLOCK


def add_tree_commands(commands: Any, trees: argparse.ArgumentParser, machine: argparse.ArgumentParser) -> None:
    """``commands``: the subparsers of ``megacontext``; ``trees``, ``machine``: options that several actions share."""
    one_tree = argparse.ArgumentParser(add_help=False)
    one_tree.add_argument("tree", metavar="TREE", help="its id, or enough of its first characters")
    any_tree = argparse.ArgumentParser(add_help=False)
    any_tree.add_argument("tree", metavar="TREE", nargs="?", help="its id, or enough of it; without one, all trees")

    actions = commands.add_parser(
        "tree", help="stored trees: list, read, search, verify, repair, name, delete them", description="Stored trees."
    ).add_subparsers(title="actions", metavar="ACTION", required=True)
    actions.add_parser(
        "ls",
        parents=[trees, machine],
        help="list the trees",
        description="The stored trees, the last used first. LOD0 are tokens; LOD1 and up, gists of 32, 1,024 ...",
    ).set_defaults(run=tree.ls)
    actions.add_parser(
        "info",
        parents=[trees, machine, one_tree],
        help="one tree and its levels",
        description="One tree: where it lies, which model it belongs to, and how far each level's gists are made.",
    ).set_defaults(run=tree.info)
    show = actions.add_parser(
        "show",
        parents=[trees, one_tree],
        help="the pyramid of a tree, or tokens of it, or their text",
        description=f"Without START: the levels of a tree. With it: tokens START to STOP (STOP not included; {BLOCK} "
        f"tokens without it), {BLOCK} a line, or their text.",
    )
    show.add_argument("start", metavar="START", type=int, nargs="?", help="first token, from 0")
    show.add_argument("stop", metavar="STOP", type=int, nargs="?", help="the token behind the last")
    show.add_argument("--tokenizer", type=Path, metavar="DIR", help="the model's folder: print text, not token ids")
    show.set_defaults(run=tree.show)
    find = actions.add_parser(
        "grep",
        parents=[trees, machine],
        help="find text in trees",
        description="Find a regular expression in the text of stored trees. Ends with status 1 if nothing matches.",
    )
    find.add_argument("pattern", metavar="PATTERN", help="Python regular expression")
    find.add_argument("tree", metavar="TREE", nargs="?", help="its id, or enough of it; without one, all trees")
    find.add_argument("--tokenizer", type=Path, metavar="DIR", required=True, help="the model's folder")
    find.add_argument("-i", action="store_true", help="capital letters do not matter")
    find.add_argument("--fixed", action="store_true", help="PATTERN is plain text")
    find.add_argument("--max-count", type=int, default=1000, metavar="N", help="stop after N (default: %(default)s)")
    find.set_defaults(run=grep.grep)

    actions.add_parser(
        "verify",
        parents=[trees, machine, any_tree],
        help="compare what is stored with its checksums",
        description="Read every row and compare it with its checksum; nothing is changed. Names the tokens that are "
        "damaged. Ends with status 1 if any are.",
    ).set_defaults(run=care.verify)
    repair = actions.add_parser(
        "repair",
        parents=[trees, machine, one_tree],
        help="mend a damaged tree",
        description="Keep all that is sound. Damaged gists will be made again; runs of 1,024 tokens with damaged ones "
        "among them are sealed as lost and never shown, at the end of the history they are cut off.",
    )
    repair.add_argument(
        "--trust", action="store_true", help="if the checksums of the tokens are lost, believe the tokens as they are"
    )
    repair.set_defaults(run=care.repair)
    rename = actions.add_parser(
        "rename", parents=[trees, one_tree], help="give a tree a name", description="Name a tree, to find it again."
    )
    rename.add_argument("name", metavar="NAME", nargs="?", help="up to 128 characters; without one, the name goes")
    rename.set_defaults(run=care.rename)
    for name, pinned, text in (("pin", True, "keep a tree from retention"), ("unpin", False, "leave it to retention")):
        action = actions.add_parser(name, parents=[trees, one_tree], help=text, description=text.capitalize() + ".")
        action.set_defaults(run=care.pin, pinned=pinned)
    remove = actions.add_parser(
        "rm",
        parents=[trees, one_tree],
        help="delete a tree",
        description="Delete a tree, if nobody is using it. It cannot be undone.",
    )
    remove.add_argument("--yes", "-y", action="store_true", help="do not ask")
    remove.set_defaults(run=care.rm)
    export = actions.add_parser(
        "export",
        parents=[trees, one_tree],
        help="write a tree into one file",
        description="Write a tree, with its gists and checksums, into one tar file. It may grow meanwhile.",
    )
    export.add_argument("file", metavar="FILE", type=Path, help="where to; replaced only with --force")
    export.add_argument("--force", action="store_true", help="replace FILE")
    export.set_defaults(run=transfer.export)
    take = actions.add_parser(
        "import",
        parents=[trees],
        help="take in a tree from a file",
        description="Take in a tree that was exported, into --namespace or that of --cache-salt. Prints its id.",
    )
    take.add_argument("file", metavar="FILE", type=Path, help="what export wrote")
    take.set_defaults(run=transfer.import_)
    add_curate(actions, [trees, machine, any_tree])


def add_curate(actions: Any, parents: list[argparse.ArgumentParser]) -> None:
    action = actions.add_parser(
        "curate",
        parents=parents,
        help="compact what nobody looks at, archive or delete old trees; undo it",
        description="Without --apply: say what would be done. A cold span is compacted: its tokens and low gists move "
        "to the store's archive, and only its gist is left, which is shown and never expanded, until --restore. "
        "Spans without a gist, pinned trees and the beginning and end of a history are left alone.",
    )
    what = action.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="only say what would be done (the default)")
    what.add_argument("--apply", action="store_true", help="do it")
    what.add_argument("--restore", metavar="ACTION", help="undo this action of TREE")
    what.add_argument("--purge", type=float, metavar="DAYS", help="forget for good what was taken DAYS ago or earlier")
    what.add_argument("--log", action="store_true", help="what was done, when")
    action.add_argument("--plan-file", type=Path, metavar="FILE", help="apply this plan, which --json wrote")
    action.add_argument(
        "--cold-days", type=float, default=30.0, metavar="N", help="not shown for so long: cold (default: %(default)s)"
    )
    action.add_argument("--protect", action="append", default=[], metavar="START:STOP", help="tokens that stay")
    action.add_argument("--archive-days", type=float, metavar="N", help="archive trees that were not used for so long")
    action.add_argument("--delete-days", type=float, metavar="N", help="delete trees that were not used for so long")
    action.set_defaults(run=curate.curate)
