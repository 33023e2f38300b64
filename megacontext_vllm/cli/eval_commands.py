"""The options of ``megacontext eval ...``, and what each action says of itself."""

import argparse
from pathlib import Path
from typing import Any, get_args

from megacontext_vllm.cli import evaluate
from megacontext_vllm.cli.worth import add_worth
from megacontext_vllm.config import MegaContextConfig, default_store

LENGTHS = (4_096, 16_384, 65_536, 262_144, 1_000_000)
BUDGETS = (512, 1024, 2048)
HISTORIES = 4
_LENS = MegaContextConfig.model_fields["lens"]
DEFAULT_MODEL = default_store().parent / "models" / "SmolLM2-135M-Instruct"
EXAMPLES = """\
examples:
  megacontext eval run --quick                                  does it work? under 5 minutes on 2 cores
  megacontext eval run --out results                            everything; cut it off and call it again as you like
  megacontext eval run --out results --tasks needle chat --lengths 65536 --methods megacontext bm25_256 oracle
  megacontext eval run --out recall --reader none --histories 16   what is shown, without asking a model: fast
  megacontext eval run --out mine --reader http://localhost:8000/v1 --model FOLDER --methods served bm25_256
  megacontext eval report results --plots                       tables and pictures of what is there
  megacontext eval show no_shared_words                         one question, and what each method shows for it
  megacontext eval gists --quick                                what gists are worth to the model
  megacontext eval worth --split train --plot                   what a block that the lenses choose is worth to it
"""


def add_eval_commands(commands: Any, machine: argparse.ArgumentParser) -> None:
    """``commands``: the subparsers of ``megacontext``; ``machine``: options that several actions share."""
    actions = commands.add_parser(
        "eval",
        help="measure answers at equal budget, against truncation, BM25, dense retrieval and the oracle",
        description="Tasks with known evidence over real text; every method gets the same budget, reader and prompt.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).add_subparsers(title="actions", metavar="ACTION", required=True)

    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "--model",
        type=Path,
        default=DEFAULT_MODEL,
        metavar="DIR",
        help="folder of the model: its tokenizer, and the reader unless --reader says otherwise (default: %(default)s)",
    )
    model.add_argument("--split", choices=("test", "validation", "train"), default="test", help="of the corpus")

    served = argparse.ArgumentParser(add_help=False)
    served.add_argument(
        "--lens",
        choices=get_args(_LENS.annotation),
        default=_LENS.default,
        help="what MegaContext is served with, as the setting of that name (default: %(default)s)",
    )
    served.add_argument(
        "--encoder",
        type=Path,
        metavar="DIR",
        help="sentence encoder that MegaContext is served with, as the setting of that name (default: none)",
    )
    gists = argparse.ArgumentParser(add_help=False)
    gists.add_argument(
        "--gist-net",
        metavar="DIR",
        help="GistNet of the method trained_gists, as the setting of that name (default: the shipped one)",
    )

    compute = argparse.ArgumentParser(add_help=False)
    dtypes = ("float32", "bfloat16", "float16")
    compute.add_argument("--dtype", choices=dtypes, default="float32", help="of the model (default: %(default)s)")
    compute.add_argument("--threads", type=int, metavar="N", help="CPU threads of the model (default: torch's)")

    run = actions.add_parser(
        "run",
        parents=[model, served, gists, compute],
        help="measure; results go to a folder, and a run that was cut off goes on",
        description="Every question through every method at every budget. Results are added to DIR/results.jsonl as "
        "they come; what is there already is not measured again.",
    )
    run.add_argument("--out", type=Path, default=Path("megacontext-eval"), metavar="DIR", help="default: %(default)s")
    run.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all; see: megacontext eval tasks")
    slow = "dense takes 20 minutes per million tokens on a CPU"
    run.add_argument("--methods", nargs="+", metavar="METHOD", help=f"default: all; {slow}")
    run.add_argument("--lengths", nargs="+", type=int, metavar="N", help=f"of histories (default: {_list(LENGTHS)})")
    run.add_argument("--budgets", nargs="+", type=int, metavar="N", help=f"entries (default: {_list(BUDGETS)})")
    run.add_argument("--histories", type=int, metavar="N", help=f"per task and length (default: {HISTORIES})")
    run.add_argument(
        "--reader",
        default="transformers",
        metavar="WHAT",
        help="'transformers' (in this process, the default), 'none' (only what is shown), or the base URL of an "
        "OpenAI-compatible server, e.g. http://localhost:8000/v1",
    )
    run.add_argument("--served-model", metavar="NAME", help="server: which of its models (default: its only one)")
    run.add_argument("--structured-choice", action="store_true", help="vLLM server: ask for a candidate, too")
    run.add_argument("--start-answer", action="store_true", help="vLLM server: begin the answer for it")
    run.add_argument("--quick", action="store_true", help="a little of everything, to see whether it works")
    run.set_defaults(run=evaluate.run)

    report = actions.add_parser(
        "report", parents=[machine], help="tables, and pictures, of results", description="What the results say."
    )
    report.add_argument("out", type=Path, metavar="DIR", nargs="+", help="folders of results; several are put together")
    report.add_argument("--pool", action="store_true", help="all lengths together: fewer rows, narrower intervals")
    report.add_argument("--markdown", action="store_true", help="tables for a document")
    report.add_argument("--plots", action="store_true", help="draw pictures into DIR/plots")
    report.set_defaults(run=evaluate.report)

    actions.add_parser(
        "tasks", parents=[machine], help="what is asked", description="The tasks, and what each asks."
    ).set_defaults(run=evaluate.list_tasks)
    actions.add_parser(
        "methods", parents=[machine], help="what is compared", description="The methods, and what each shows."
    ).set_defaults(run=evaluate.list_methods)

    show = actions.add_parser(
        "show",
        parents=[model, served, gists],
        help="one question of a task, and what each method shows for it",
        description="Prints a question, its evidence, and how much of it each method shows, with the text if asked.",
    )
    show.add_argument("task", metavar="TASK", help="see: megacontext eval tasks")
    show.add_argument("--length", type=int, default=16_384, metavar="N", help="of the history (default: %(default)s)")
    show.add_argument("--budget", type=int, default=512, metavar="N", help="entries (default: %(default)s)")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="which history (default: %(default)s)")
    show.add_argument("--methods", nargs="+", metavar="METHOD", help="default: those that need no model")
    show.add_argument("--text", action="store_true", help="print what they show")
    show.set_defaults(run=evaluate.show)

    gists = actions.add_parser(
        "gists",
        parents=[model, compute, machine],
        help="what gists are worth: ΔNLL and recovered fraction, beside their controls",
        description="NLL of 64 tokens behind gists of what came before, beside the whole text and beside nothing. "
        "Recovered fraction: 0 is as if dropped, 1 as if shown whole, below 0 does harm.",
    )
    gists.add_argument("--windows", type=int, default=256, metavar="N", help="texts per layout (default: %(default)s)")
    gists.add_argument(
        "--net",
        type=Path,
        nargs="*",
        metavar="FOLDER",
        help="GistNets to measure, as 'megacontext train gistnet' leaves them (default: the one that comes with this "
        "version for the model; without a folder: none)",
    )
    gists.add_argument("--layouts", nargs="+", metavar="NAME", help="e.g. 'hard, LOD1' 'near, LOD1' (default: all)")
    gists.add_argument("--makers", nargs="+", metavar="NAME", help="e.g. keyword 'every 32nd token' (default: all)")
    gists.add_argument("--seed", type=int, default=0, metavar="N")
    gists.add_argument("--positions", action="store_true", help="also with a gist at its span's centre, not compact")
    gists.add_argument("--quick", action="store_true", help="few windows and layouts, to see whether it works")
    gists.set_defaults(run=evaluate.gists)

    add_worth(actions, [model, served, compute])


def _list(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))
