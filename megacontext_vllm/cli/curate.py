"""``megacontext tree curate``: let go of what nobody looks at any more, and bring it back.

Plan, read the plan, apply it; what was taken lies in the store's archive until it is purged.
"""

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.table import Table

from megacontext_vllm.cli.progress import bar
from megacontext_vllm.cli.stored import chosen_folders, find_folder, last_accesses, open_tree
from megacontext_vllm.cli.text import out, size_text, time_text
from megacontext_vllm.errors import RequestError, StoreError
from megacontext_vllm.tree.curation.actions import CurationPlan
from megacontext_vllm.tree.curation.apply import apply
from megacontext_vllm.tree.curation.log import history
from megacontext_vllm.tree.curation.plan import make_plan
from megacontext_vllm.tree.curation.policy import CurationPolicy
from megacontext_vllm.tree.curation.purge import purge
from megacontext_vllm.tree.curation.restore import restore
from megacontext_vllm.tree.telemetry import NodeTelemetry

NOTHING = "There is nothing to do."


def curate(options: argparse.Namespace) -> int:
    if options.restore is not None:
        return bring_back(options)
    if options.purge is not None:
        done = purge(options.store, time.time(), older_than_days=options.purge)
        print(f"{len(done.actions):,} actions cannot be restored any more; {size_text(done.freed)} are free.")
        return 0
    if options.log:
        return show_log(options)
    if options.plan_file is not None:
        plans = [read_plan(options.plan_file)]
    else:
        plans = make_plans(options)
    if options.apply:
        return apply_plans(options, plans)
    if options.json:
        print(json.dumps([json.loads(plan.to_json()) for plan in plans], indent=1))
    else:
        for plan in plans:
            print_plan(plan)
        if all(map(takes_nothing, plans)):
            print(NOTHING)
    return 0


def takes_nothing(plan: CurationPlan) -> bool:
    return all(action.kind == "keep" for action in plan.actions)


def make_plans(options: argparse.Namespace) -> list[CurationPlan]:
    policy = CurationPolicy(
        cold_days=options.cold_days,
        protected=tuple(span(text) for text in options.protect),
        archive_days=options.archive_days,
        delete_days=options.delete_days,
    )
    uses = last_accesses(options.store)
    plans = []
    for folder in chosen_folders(options):
        try:
            with closing(open_tree(folder)) as tree, NodeTelemetry(folder) as telemetry:
                use = uses.get((folder.parent.name, folder.name))
                plans.append(make_plan(tree, telemetry, policy, time.time(), last_use=use))
        except StoreError as error:
            if options.tree is not None:
                raise
            print(f"megacontext: warning: tree {folder.name} is left out: {error}", file=sys.stderr)
    return plans


def span(text: str) -> tuple[int, int]:
    start, _, stop = text.partition(":")
    if not (start.isdecimal() and stop.isdecimal() and int(start) <= int(stop)):
        raise RequestError(f"--protect {text!r}: give START:STOP in tokens")
    return int(start), int(stop)


def read_plan(path: Path) -> CurationPlan:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read the plan {path}: {error}") from None
    try:
        data = json.loads(text)
    except ValueError as error:
        raise RequestError(f"{path} is not a plan: {error}") from None
    if isinstance(data, list):  # as --json writes it
        if len(data) != 1:
            raise RequestError(f"{path} holds {len(data)} plans; make one for one tree: curate TREE --json")
        text = json.dumps(data[0])
    return CurationPlan.from_json(text)


def print_plan(plan: CurationPlan) -> None:
    kinds = Counter(action.kind for action in plan.actions)
    taken = [action for action in plan.actions if action.kind != "keep"]
    console = out()
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "nothing"
    console.print(f"[bold]{plan.tree_id}[/bold]  {plan.length:,} tokens: {counts}; frees {size_text(plan.bytes_freed)}")
    if taken:
        table = Table("action", "tokens", "frees", "why", box=box.SIMPLE_HEAD)
        for action in taken[:20]:
            where = f"{action.start:,} to {action.stop:,}"
            table.add_row(action.kind, where, size_text(action.bytes), action.reason)
        console.print(table)
        if len(taken) > 20:
            console.print(f"… and {len(taken) - 20:,} more (--json has all)")


def apply_plans(options: argparse.Namespace, plans: list[CurationPlan]) -> int:
    """Returns 1 if anything that was planned could not be done."""
    results, failed = [], False
    for plan in plans:
        if takes_nothing(plan):
            continue
        folder = options.store / "trees" / plan.namespace / plan.tree_id
        result: dict[str, object] = {"tree_id": plan.tree_id, "namespace": plan.namespace}
        try:
            with bar(f"tree {plan.tree_id[:8]}") as progress:
                done = apply(options.store, folder, plan, progress=progress)
            result |= asdict(done)
            failed |= bool(done.failed)
        except StoreError as error:
            result["error"] = str(error)
            failed = True
        results.append(result)
    if options.json:
        print(json.dumps(results, indent=1))
        return int(failed)
    for result in results:
        if "error" in result:
            print(f"{result['tree_id']}: not done: {result['error']}")
            continue
        done_ids, why = result["done"], result["failed"]
        assert isinstance(done_ids, list) and isinstance(why, dict)
        print(f"{result['tree_id']}: {len(done_ids):,} actions done, {size_text(float(str(result['freed'])))} are free")
        for action, reason in why.items():
            print(f"    {action}: not done: {reason}")
    if not results:
        print(NOTHING)
    else:
        print("Undo an action with: megacontext tree curate TREE --restore ACTION; list them with --log")
    return int(failed)


def bring_back(options: argparse.Namespace) -> int:
    if options.tree is None:
        raise RequestError("say which tree: megacontext tree curate TREE --restore ACTION")
    taken = [entry for entry in history(options.store) if entry.get("action") == options.restore]
    known = {(str(entry["namespace"]), str(entry["tree_id"])) for entry in taken}
    whole = [key for key in known if key[1].startswith(options.tree)]
    if whole:  # an archived tree has no folder any more
        folder = options.store / "trees" / whole[0][0] / whole[0][1]
    else:
        folder = find_folder(options.store, options.namespace, options.tree)
    restore(options.store, folder, options.restore)
    print(f"{options.restore} is undone.")
    return 0


def show_log(options: argparse.Namespace) -> int:
    entries = history(options.store)
    if options.tree is not None:
        entries = [entry for entry in entries if str(entry["tree_id"]).startswith(options.tree)]
    if options.json:
        print(json.dumps(entries, indent=1))
        return 0
    for entry in entries:
        where = f"{entry['start']:,} to {entry['stop']:,}" if "start" in entry else ""
        kind, event, action = (str(entry.get(key, "")) for key in ("kind", "event", "action"))
        when, tree = time_text(entry["time"]), str(entry["tree_id"])[:8]
        print(f"{when}  {tree}  {kind} {event}  {action}  {where}".rstrip())
    return 0
