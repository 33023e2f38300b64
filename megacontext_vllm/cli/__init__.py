"""The command ``megacontext``: stored trees, settings, why a server does not start, how good the answers are.

It may be used beside a running server: what only looks takes no lock and mends nothing, and what would take something
from under a request is refused. Only ``eval`` and ``train`` need torch, and nothing vLLM.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from megacontext_vllm import __version__
from megacontext_vllm.cli import doctor, settings
from megacontext_vllm.cli.corpus import add_corpus_commands
from megacontext_vllm.cli.eval_commands import add_eval_commands
from megacontext_vllm.cli.text import one_line
from megacontext_vllm.cli.train import add_train_commands
from megacontext_vllm.cli.tree_commands import add_tree_commands
from megacontext_vllm.config import default_store
from megacontext_vllm.errors import MegaContextError
from megacontext_vllm.tree.store.library import namespace_of

EXAMPLES = """\
examples:
  megacontext doctor                                  is everything there that a server needs?
  megacontext settings                                what can be set, and what the defaults are
  megacontext tree ls                                 the stored histories
  megacontext tree ls --cache-salt alice              those of one client
  megacontext tree info 3f2a                          one tree; the first characters of its id are enough
  megacontext tree show 3f2a                          how far each level of it is made
  megacontext tree show 3f2a 0 200 --tokenizer MODEL  its first 200 tokens, as text
  megacontext tree grep "red cars" --tokenizer MODEL  where that was said, in all trees
  megacontext tree verify                             is every stored token still what was written?
  megacontext corpus fetch                            real text to measure with and to train on
  megacontext eval run --quick                        answers beside those of truncation, BM25 and others

A server with an unbounded history:  vllm serve MODEL --plugin megacontext
"""


def make_parser() -> argparse.ArgumentParser:
    """The function in ``options.run`` takes the parsed options and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="megacontext",
        description="Look at, and after, what MegaContext for vLLM has stored, how it is set up, and how good it is.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"megacontext-vllm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def show_help(options: argparse.Namespace) -> int:
        parser.print_help()
        return 2  # as any other usage error: a script whose variable is empty shall notice

    parser.set_defaults(run=show_help)  # of no command; each sets its own

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
    add_tree_commands(commands, trees, machine)
    add_corpus_commands(commands, machine)
    add_eval_commands(commands, machine)
    add_train_commands(commands)
    commands.add_parser(
        "settings", parents=[machine], help="every setting of the plugin", description="Every setting and its default."
    ).set_defaults(run=settings.show)
    commands.add_parser(
        "doctor",
        parents=[store],
        help="check this installation",
        description="Check vLLM's version, the plugin's registration, the environment, the device and the store. "
        "Ends with status 1, and says what to do, if a server with --plugin megacontext could not work.",
    ).set_defaults(run=doctor.report)
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
