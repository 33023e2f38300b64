"""The options of ``megacontext tree ...``, and what each action says of itself."""

import argparse
from pathlib import Path
from typing import Any

from megacontext_vllm.cli import care, grep, tree
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
