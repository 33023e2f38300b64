"""HTML as a reader sees it: a paragraph a line, list items with a dash, <pre> as it is.

Not with the standard library's parser: what it makes of broken mark-up changes between patch releases of Python, and
the corpus must not.
"""

import html
import re

from megacontext_vllm.corpus.strip.text import decode, one_line, tidy

_TAG = re.compile(
    r"""<!--.*?-->|<!\w[^>]*>|<(/?)([a-zA-Z][\w:-]*)(?:\s(?:[^<>"']|"[^"]*"|'[^']*')*)?/?>""", re.DOTALL
)
_UNSEEN = re.compile(r"<(script|style|head|template|svg)\b[^>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "div", "dl", "dt", "fieldset",
    "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "important", "li", "main",
    "nav", "note", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul", "warning",
}  # fmt: skip


def strip_html(data: bytes) -> str:
    return html_text(decode(data))


def html_text(text: str) -> str:
    reader = _Reader()
    text = _UNSEEN.sub("", text)
    at = 0
    for tag in _TAG.finditer(text):
        reader.text(text[at : tag.start()])
        at = tag.end()
        if tag[2]:
            reader.tag(tag[2].lower(), closing=bool(tag[1]))
    reader.text(text[at:])
    reader.end_block()
    return tidy("\n\n".join(reader.blocks))


class _Reader:
    """Gathers text into blocks."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self._parts: list[str] = []
        self._pre = False
        self._item = False

    def text(self, raw: str) -> None:
        text = html.unescape(raw).replace("\xa0", " ")
        # The line ends of the source are spaces; those of <br> stay.
        self._parts.append(text if self._pre else re.sub(r"\s+", " ", text))

    def tag(self, name: str, closing: bool) -> None:
        if name == "br":
            self._parts.append("\n")
        elif name in ("td", "th"):
            self._parts.append("  ")
        elif name in _BLOCKS:
            self.end_block()
            if name == "pre":
                self._pre = not closing
            if name == "li":
                self._item = not closing

    def end_block(self) -> None:
        lines = "".join(self._parts).strip("\n").split("\n")
        self._parts.clear()
        if self._pre:
            block = "\n".join("    " + line.rstrip() for line in lines) if any(map(str.strip, lines)) else ""
        else:
            block = "\n".join(filter(None, map(one_line, lines)))
        if block:
            self.blocks.append("- " + block if self._item else block)
            self._item = False
