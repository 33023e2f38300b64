"""reStructuredText as a reader sees it: no directives, roles, targets, underlines; paragraphs on one line."""

import re
from collections.abc import Iterable, Iterator

from megacontext_vllm.corpus.strip.text import decode, dedent, indent_of, one_line, tidy

# Directives whose content is shown as it is, and those of which a reader of the text sees nothing.
_VERBATIM = {"code", "code-block", "sourcecode", "parsed-literal", "literal", "ipython", "math", "doctest", "testcode"}
_UNSEEN = {
    "autoclass", "autofunction", "automodule", "autosummary", "cmake-module", "comment", "contents", "currentmodule",
    "default-domain", "default-role", "figure", "highlight", "image", "include", "index", "literalinclude", "meta",
    "module", "only", "parent", "plot", "program", "py:module", "raw", "role", "tabularcolumns", "testsetup", "toctree",
}  # fmt: skip

_DIRECTIVE = re.compile(r"\.\. (?:\|[^|]+\| )?([\w:+-]+?)::(?: +(.*))?$")
_FOOTNOTE = re.compile(r"\.\. (\[[^\]]+\]) *(.*)$")
_OPTION = re.compile(r" *:[\w-]+:(?: .*)?$")
_LINE = re.compile(r"([=\-`:.'\"~^_*+#<>])\1{2,}$")
_TABLE = re.compile(r"(?:[=-]{2,} +)+[=-]{2,}$|\+[-=+]+\+$")
_ITEM = re.compile(r"((?:[-*+•]|\(?(?:\d+|[a-zA-Z]|#)[.)]) +)\S")
_FIELD = re.compile(r":([^:`]+):(?: +(.*))?$")


def strip_rst(data: bytes) -> str:
    return rst_text(decode(data))


def rst_text(text: str) -> str:
    return tidy("\n\n".join(_blocks([line.expandtabs(8).rstrip() for line in text.split("\n")])))


def _blocks(lines: list[str]) -> Iterator[str]:
    """The paragraphs of ``lines``, which are not indented as a whole."""
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if not line or _LINE.match(line):
            continue
        if line.startswith(".. ") or line in ("..", "__"):
            body, at = _indented(lines, at)
            yield from _explicit(line, body)
        elif line.startswith(" "):
            body, at = _indented(lines, at - 1)
            yield from _set_in(_blocks(dedent(body)))
        elif _TABLE.match(line) or line.startswith((">>>", "| ")):
            end = _paragraph_end(lines, at, whole=True)
            yield "\n".join(row for row in map(_row, lines[at - 1 : end]) if row)
            at = end
        elif match := _ITEM.match(line):
            items, at = _items(lines, at - 1)
            yield "\n".join(items)
        elif (match := _FIELD.match(line)) and not line.endswith("::"):
            body, at = _indented(lines, at)
            yield from _marked(f"{match[1]}: ", [match[2] or "", *dedent(body)])
        else:
            end = _paragraph_end(lines, at)
            paragraph = one_line(" ".join(lines[at - 1 : end]))
            at = end
            if paragraph.endswith("::"):
                literal, at = _indented(lines, at)
                paragraph = paragraph[:-2].rstrip()
                if paragraph:
                    yield inline(paragraph) + ("" if paragraph[-1] in ".:!?" else ":")
                yield _verbatim(literal)
            elif at < len(lines) and lines[at].startswith(" "):  # the term of a definition list
                body, at = _indented(lines, at)
                yield "\n".join([inline(paragraph), *_set_in(_blocks(dedent(body)))])
            else:
                yield inline(paragraph)


def _items(lines: list[str], at: int) -> tuple[list[str], int]:
    """The items of a list that are not set apart by blank lines, and where they end."""
    items: list[str] = []
    while at < len(lines) and (match := _ITEM.match(lines[at])):
        body, end = _indented(lines, at + 1, at_least=min(len(match[1]), 2))
        items += _marked(match[1].strip() + " ", [lines[at][len(match[1]) :], *dedent(body)])
        at = end
        if not lines[at - 1]:
            break
    return items, at


def _set_in(blocks: Iterable[str]) -> Iterator[str]:
    return ("\n".join("  " + line if line else "" for line in block.split("\n")) for block in blocks)


def _explicit(line: str, body: list[str]) -> Iterator[str]:
    """What starts with ``.. ``: a directive with its options and content, a footnote, or something that is not seen."""
    if match := _FOOTNOTE.match(line):
        yield from _marked(f"{match[1]} ", [match[2], *dedent(body)])
        return
    match = _DIRECTIVE.match(line)
    if not match or match[1] in _UNSEEN:
        return
    name, argument = match[1], match[2] or ""
    options = 0
    while options < len(body) and body[options] and (_OPTION.match(body[options])):
        options += 1
    content = body[options:]
    if name in _VERBATIM:
        if name in ("parsed-literal", "math") and argument:
            content = ["  " + argument, *content]
        yield _verbatim(content)
        return
    if name in ("note", "warning", "tip", "important", "caution", "hint", "danger", "attention", "seealso"):
        yield from _marked("See also: " if name == "seealso" else f"{name.title()}: ", [argument, *dedent(content)])
        return
    if name.startswith("version") or name == "deprecated":
        since = {"versionadded": "New in", "versionchanged": "Changed in"}.get(name, name.title())
        version, _, text = argument.partition(" ")
        yield from _marked(f"{since} {version}: ", [text.strip(), *dedent(content)])
        return
    if argument:  # an object that is described: its signature
        continued = 0  # further signatures follow, each on a line of its own, up to the first blank line
        while continued < len(content) and content[continued]:
            continued += 1
        described = ":" in name or name in ("function", "class", "method", "attribute", "option", "data", "envvar")
        if described and continued < len(content):
            argument, content = "\n".join([argument, *map(str.strip, content[:continued])]), content[continued:]
        yield inline(argument)
    yield from _blocks(dedent(content))


def _marked(mark: str, lines: list[str]) -> Iterator[str]:
    """The blocks of ``lines``, with ``mark`` before the first; ``lines[0]`` goes on in the line after it."""
    blocks = list(_blocks([line for line in lines[:1] if line] + lines[1:]))
    head = blocks[0] if blocks else ""
    yield mark + head.lstrip() if head else mark.rstrip(" :")
    yield from _set_in(blocks[1:])


def _indented(lines: list[str], at: int, at_least: int = 1) -> tuple[list[str], int]:
    """The lines from ``at`` on that are blank or indented, and where they end."""
    end = at
    while end < len(lines) and (not lines[end] or indent_of(lines[end]) >= at_least):
        end += 1
    return lines[at:end], end


def _paragraph_end(lines: list[str], at: int, whole: bool = False) -> int:
    """Where the paragraph ends that ``lines[at]`` goes on: at a blank line or, unless ``whole``, at another element."""
    while at < len(lines) and lines[at]:
        line = lines[at]
        if not whole and (line.startswith((" ", ".. ")) or _LINE.match(line) or _TABLE.match(line)):
            break
        at += 1
    return at


def _row(line: str) -> str:
    """A line of a table, a line block or a doctest."""
    if _TABLE.match(line) or _LINE.match(line):
        return ""
    if line.startswith("|"):
        return "  ".join(inline(cell.strip()) for cell in line.strip("|").split("|")).rstrip()
    return line if line.startswith((">>>", "...")) else inline(line)


def _verbatim(lines: list[str]) -> str:
    return "\n".join("    " + line if line else "" for line in dedent(lines)).strip("\n")


def inline(text: str) -> str:
    """Text without the marks of roles, links, emphasis and substitutions."""
    text = re.sub(r"(?<!`)(?::[\w+-]+)*:[\w+-]+:`([^`]+)`", lambda match: _title(match[1]), text)
    text = re.sub(r"``(.+?)``", r"\1", text)
    text = re.sub(r"`([^`]+)`__?", lambda match: _title(match[1]), text)
    text = re.sub(r"(?<![\w`])`([^`]+)`(?!\w)", lambda match: _title(match[1]), text)
    text = re.sub(r"(\[[\w#*-]+\])_(?!\w)", r"\1", text)
    text = re.sub(r"\*\*(\S(?:.*?\S)?)\*\*", r"\1", text)
    text = re.sub(r"(?<![\w*\\/])\*([^\s*](?:[^*]*[^\s*])?)\*(?![\w*])", r"\1", text)
    text = re.sub(r"(?<![\w|])\|(\w[\w -]*)\|(?!\w)", r"\1", text)
    text = re.sub(r"\b(\w+)__?(?=[\s.,;:)]|$)", lambda m: m[1] if m[0].endswith("_") and m[1].isalpha() else m[0], text)
    return re.sub(r"\\([*`|_\\: ])", lambda match: match[1].strip(), text)


def _title(content: str) -> str:
    """What is shown of ``title <target>`` or ``~package.name``."""
    title = re.sub(r"\s*<[^<>]*>$", "", content).strip() or content.strip("<> ")
    return title.rpartition(".")[2] if title.startswith("~") else re.sub(r"^[!.]?(?:_\w+\.)?", "", title)
