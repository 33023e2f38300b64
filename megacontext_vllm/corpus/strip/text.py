"""What all ways of stripping share: one way to write white space, and unwrapped paragraphs."""

import re

# Form feeds, zero-width and other marks that no reader sees; and spaces that only look different.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060\ufeff]")
_SPACES = re.compile("[\u00a0\u2000-\u200a\u202f\u3000]")


def decode(data: bytes) -> str:
    """UTF-8, with ``\\n`` at the end of each line and no marks that nobody sees."""
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return _INVISIBLE.sub("", _SPACES.sub(" ", text))


def tidy(text: str) -> str:
    """No space at the end of a line, at most one blank line in a row, none at the ends."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text + "\n")).strip("\n")


def one_line(text: str) -> str:
    return " ".join(text.split())


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def dedent(lines: list[str]) -> list[str]:
    """Without the indentation that all lines have that are not blank."""
    common = min((indent_of(line) for line in lines if line.strip()), default=0)
    return [line[common:] if line.strip() else "" for line in lines]


def strip_plain(data: bytes) -> str:
    """Plain text: every paragraph, a run of lines, becomes one line."""
    paragraphs = re.split(r"\n[ \t]*\n", decode(data))
    return tidy("\n\n".join(one_line(paragraph) for paragraph in paragraphs if paragraph.strip()))
