"""``megacontext tree grep``: find text in stored histories, and say at which tokens it is."""

import argparse
import bisect
import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

from rich.markup import escape

from megacontext_vllm.cli.progress import bar
from megacontext_vllm.cli.stored import chosen_folders, open_tree
from megacontext_vllm.cli.text import out
from megacontext_vllm.cli.tokenizer import load_decoder
from megacontext_vllm.errors import RequestError
from megacontext_vllm.tree.tree import MegaContextTree

_CHUNK = 8192
_OVERLAP = 512
"""Tokens that consecutive chunks share: a match longer than this may be missed at a boundary."""
_CONTEXT = 40
_STEP = 64


@dataclass(frozen=True)
class Hit:
    """A match in tokens ``[start, stop)`` of a tree; ``text`` with some characters around it."""

    tree_id: str
    namespace: str
    start: int
    stop: int
    before: str
    match: str
    after: str


def grep(options: argparse.Namespace) -> int:
    """Returns 0 if something matched, 1 if nothing did, as grep does."""
    try:
        pattern = re.compile(re.escape(options.pattern) if options.fixed else options.pattern, re.I if options.i else 0)
    except re.error as error:
        wrong = f"{options.pattern!r} is not a regular expression ({error})"
        raise RequestError(f"{wrong}; --fixed takes it as text") from None
    decode = load_decoder(options.tokenizer)
    hits: list[Hit] = []
    console = out()
    for folder in chosen_folders(options):
        for hit in search(folder, pattern, decode):
            hits.append(hit)
            if not options.json:
                where = f"[bold]{hit.tree_id[:8]}[/bold] {hit.start:>11,}"
                text = f"{escape(line(hit.before))}[red]{escape(line(hit.match))}[/red]{escape(line(hit.after))}"
                console.print(f"{where}  {text}", soft_wrap=True)
            if len(hits) >= options.max_count:
                break
        if len(hits) >= options.max_count:
            break
    if options.json:
        print(json.dumps([asdict(hit) for hit in hits], indent=1))
    elif hits:
        console.print(f"{len(hits):,} matches; see one with: megacontext tree show TREE START STOP --tokenizer DIR")
    return 0 if hits else 1


def line(text: str) -> str:
    return text.replace("\n", "⏎")


def search(folder: Path, pattern: re.Pattern[str], decode: Callable[[list[int]], str]) -> Iterator[Hit]:
    """All matches in one tree, in order; sealed spans are passed over."""
    with closing(open_tree(folder)) as tree, bar(f"tree {folder.name[:8]}") as progress:
        length = tree.length
        for start, stop in tree.sealed.runs(0, length):
            seen = start
            for first in range(start, stop, _CHUNK - _OVERLAP):
                last = min(first + _CHUNK, stop)
                for hit in search_chunk(tree, first, last, pattern, decode):
                    if hit.start >= seen:
                        yield hit
                        seen = hit.start + 1
                progress(last, length)
                if last == stop:
                    break


def search_chunk(
    tree: MegaContextTree, first: int, last: int, pattern: re.Pattern[str], decode: Callable[[list[int]], str]
) -> Iterator[Hit]:
    ids = tree.read_tokens(first, last).tolist()
    text = decode(ids)
    ends: list[int] = []
    for match in pattern.finditer(text):
        ends = ends or character_ends(ids, text, decode)
        start = bisect.bisect_right(ends, match.start())
        stop = max(bisect.bisect_right(ends, match.end()), start + 1)
        yield Hit(
            tree.tree_id,
            tree.namespace,
            first + min(start, len(ids) - 1),
            first + min(stop, len(ids)),
            text[max(match.start() - _CONTEXT, 0) : match.start()],
            match.group(),
            text[match.end() : match.end() + _CONTEXT],
        )


def character_ends(ids: list[int], text: str, decode: Callable[[list[int]], str]) -> list[int]:
    """By token, how many characters of ``text`` there are up to its end."""
    ends = list(accumulate(len(decode([token])) for token in ids))
    if ends[-1] == len(text):
        return ends
    # Some decode otherwise alone: characters of several tokens, spaces at the start. Then by what stands before.
    ends, at = [], 0
    for first in range(0, len(ids), _STEP):
        before = len(decode(ids[:first]))
        for stop in range(first + 1, min(first + _STEP, len(ids)) + 1):
            at = max(at, before + len(decode(ids[first:stop])))
            ends.append(min(at, len(text)))
    return ends
