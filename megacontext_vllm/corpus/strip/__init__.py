"""From the bytes of a file to text that reads like text, by the name that the manifest uses.

A way of stripping takes the content of one file and yields (suffix of the document's name, text); most files are one
document and have no suffix.
"""

from collections.abc import Callable, Iterator

from megacontext_vllm.corpus.strip.code import strip_code, strip_docstrings
from megacontext_vllm.corpus.strip.data import bible_books, strip_factbook, strip_service
from megacontext_vllm.corpus.strip.html import strip_html
from megacontext_vllm.corpus.strip.markdown import strip_markdown
from megacontext_vllm.corpus.strip.rst import strip_rst
from megacontext_vllm.corpus.strip.text import strip_plain

Stripper = Callable[[bytes], Iterator[tuple[str, str]]]


def _whole(strip: Callable[[bytes], str]) -> Stripper:
    return lambda data: iter([("", strip(data))])


STRIPPERS: dict[str, Stripper] = {
    "bible": bible_books,
    "code": _whole(strip_code),
    "docstrings": _whole(strip_docstrings),
    "factbook": _whole(strip_factbook),
    "html": _whole(strip_html),
    "markdown": _whole(strip_markdown),
    "plain": _whole(strip_plain),
    "rst": _whole(strip_rst),
    "service": _whole(strip_service),
}
