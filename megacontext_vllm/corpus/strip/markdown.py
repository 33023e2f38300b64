"""Markdown as a reader sees it. Two spaces at the end of a line break it, so verse keeps its lines."""

import re

from megacontext_vllm.corpus.strip.html import html_text
from megacontext_vllm.corpus.strip.text import decode, one_line, tidy

_FENCE = re.compile(r" {0,3}(```|~~~)")
_OWN_LINE = re.compile(r" {0,3}(?:[-*+]|\d+[.)]) +")
_BREAK = "\x00"


def strip_markdown(data: bytes) -> str:
    return markdown_text(decode(data))


def markdown_text(text: str) -> str:
    blocks: list[str] = []
    paragraph: list[str] = []

    def end_paragraph() -> None:
        if paragraph:
            lines = "".join(paragraph).split(_BREAK)
            blocks.append("\n".join(_inline(one_line(line)) for line in lines).strip("\n"))
            paragraph.clear()

    lines = iter(text.split("\n"))
    for line in lines:
        if fence := _FENCE.match(line):
            end_paragraph()
            code = []
            for inner in lines:
                if inner.lstrip().startswith(fence[1]):
                    break
                code.append("    " + inner if inner.strip() else "")
            blocks.append("\n".join(code))
        elif not line.strip() or re.fullmatch(r" {0,3}([-*_=])( *\1){2,} *", line):
            end_paragraph()
        elif line.startswith("    ") and not paragraph:
            blocks.append(line)
        elif heading := re.match(r" {0,3}#{1,6} +(.*?)[ #]*$", line):
            end_paragraph()
            blocks.append(_inline(one_line(heading[1])))
        else:
            if paragraph and _OWN_LINE.match(line):
                paragraph.append(_BREAK)
            quoted = re.sub(r"^ {0,3}(> ?)+", "", line)
            paragraph.append(quoted.rstrip() + (_BREAK if line.endswith("  ") else " "))
    end_paragraph()
    return tidy("\n\n".join(blocks))


def _inline(text: str) -> str:
    text = re.sub(r"!\[([^\]]*)\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]+)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"(`+)(.+?)\1", r"\2", text)
    text = re.sub(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", r"\2", text)
    text = re.sub(r"(?<![\w*])([*_])(?=\S)(.+?)(?<=\S)\1(?![\w*])", r"\2", text)
    if re.search(r"</?[a-zA-Z][^>]*>|&\w+;", text):
        text = one_line(html_text(text))
    return re.sub(r"\\([\\`*_{}\[\]()#+\-.!<>|])", r"\1", text)
