"""Source code as it is, without the licence at its head; and the documentation out of Python code."""

import ast
import re
import warnings
from collections.abc import Iterator

from megacontext_vllm.corpus.strip.rst import rst_text
from megacontext_vllm.corpus.strip.text import decode, dedent, tidy

_LEGAL = re.compile(r"copyright|licen[sc]e|SPDX|all rights reserved", re.IGNORECASE)
_COMMENT = re.compile(r"(?:#|//)[^\n]*\n|/\*.*?\*/[ \t]*\n|\n", re.DOTALL)
_MOST_IN_ONE_LINE = 1000


def strip_code(data: bytes) -> str:
    """The code without licence heads. Nothing is left of a file that was not written by hand (minified, a table)."""
    text = decode(data)
    if any(len(line) > _MOST_IN_ONE_LINE for line in text.split("\n")):
        return ""
    return re.sub(r"\n{4,}", "\n\n\n", re.sub(r"[ \t]+\n", "\n", _without_licence(text) + "\n")).strip("\n")


def _without_licence(text: str) -> str:
    """Without the comments at its head, if they speak of copyright."""
    at = 0
    while match := _COMMENT.match(text, at):
        at = match.end()
    return text[at:] if _LEGAL.search(text[:at]) else text


def strip_docstrings(data: bytes) -> str:
    """The docstrings of a Python module in their order, each below the name of what it describes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # "\d" in somebody's docstring
        try:
            module = ast.parse(decode(data))
        except SyntaxError:
            return ""
    return tidy("\n\n".join(_described(module, "")))


def _described(node: ast.AST, name: str) -> Iterator[str]:
    body = getattr(node, "body", [])
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        docstring = body[0].value.value
        if isinstance(docstring, str):
            first, _, rest = docstring.expandtabs(8).partition("\n")
            text = rst_text("\n".join([first.strip(), *dedent(rest.split("\n"))]))
            if text and not _LEGAL.search(text[:300]):
                yield f"{name}\n\n{text}" if name else text
    for child in body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = f"{name}.{child.name}" if name else child.name
            signature = "" if isinstance(child, ast.ClassDef) else f"({', '.join(_arguments(child.args))})"
            yield from _described_as(child, inner, signature)


def _described_as(node: ast.AST, name: str, signature: str) -> Iterator[str]:
    for place, text in enumerate(_described(node, name)):
        yield text.replace(name, name + signature, 1) if place == 0 and text.startswith(f"{name}\n") else text


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    for argument in [*arguments.posonlyargs, *arguments.args]:
        yield argument.arg
    if arguments.vararg:
        yield f"*{arguments.vararg.arg}"
    for argument in arguments.kwonlyargs:
        yield argument.arg
    if arguments.kwarg:
        yield f"**{arguments.kwarg.arg}"
