"""What is left of mark-up: exact, on small pieces."""

import sqlite3
from pathlib import Path

import pytest

from megacontext_vllm.corpus.strip.code import strip_code, strip_docstrings
from megacontext_vllm.corpus.strip.data import bible_books, strip_factbook, strip_service
from megacontext_vllm.corpus.strip.html import html_text
from megacontext_vllm.corpus.strip.markdown import markdown_text
from megacontext_vllm.corpus.strip.rst import inline, rst_text
from megacontext_vllm.corpus.strip.text import strip_plain

RST = """\
.. _label:

=======
A title
=======

.. toctree::
   :maxdepth: 2

   one
   two

A paragraph that is
wrapped, with :func:`code <target>` and a `link <https://x.y>`_, ``literal``, *soft* and **loud**. For instance::

    for x in y:
        print("*x*")

Another
-------

* first, and
  it goes on
* second

.. note::
   Careful
   here.

.. function:: open(name, mode)
   :module: io

   Opens :class:`~io.File`.

.. code-block:: python
   :linenos:

   a = 1

.. versionadded:: 2.0
   The mode.

term
    What it means,
    at length.

:param x: how
  many

.. a comment
   of two lines

====  =====
head  other
====  =====
a     b
====  =====

>>> 1 + 1
2

The end, see |project| and [1]_.

.. [1] A book.
"""

PLAIN = """\
A title

A paragraph that is wrapped, with code and a link, literal, soft and loud. For instance:

    for x in y:
        print("*x*")

Another

- first, and it goes on
- second

Note: Careful here.

open(name, mode)

Opens File.

    a = 1

New in 2.0: The mode.

term
  What it means, at length.

param x: how many

head  other
a     b

>>> 1 + 1
2

The end, see project and [1].

[1] A book."""


def test_rst() -> None:
    assert rst_text(RST.replace("* first", "- first").replace("* second", "- second")) == PLAIN


@pytest.mark.parametrize(
    ("marked", "read"),
    [
        (":ref:`a title <label>`", "a title"),
        (":cmake:command:`add_test`", "add_test"),
        (":class:`~a.b.C` and :meth:`.Engine.run`, :class:`_pool.Pool`", "C and Engine.run, Pool"),
        ("``*args`` and ``**kwargs``", "*args and **kwargs"),
        ("a * b * c, x**2, snake_case_name", "a * b * c, x**2, snake_case_name"),
        ("`Python`_ is", "Python is"),
    ],
)
def test_rst_in_a_line(marked: str, read: str) -> None:
    assert inline(marked) == read


def test_markdown() -> None:
    marked = (
        "# Title #\n\nWrapped\nlines with **loud**, _soft_, `code` and [a link](http://x).\n\n* one\n* two\n\n"
        "```python\nx = *y*\n```\n\n---\n\n**NAME**  \nFirst line,  \nsecond \\[aside\\].\n\n> a <b>bold</b> &amp;\n"
    )
    assert markdown_text(marked) == (
        "Title\n\nWrapped lines with loud, soft, code and a link.\n\n* one\n* two\n\n    x = *y*\n\n"
        "NAME\nFirst line,\nsecond [aside].\n\na bold &"
    )


def test_html() -> None:
    marked = (
        "<html><head><title>no</title></head><body><h1>Title</h1><p>Two\nlines &amp; a<br>break, 1 < 2.</p><!-- no -->"
        "<ul><li><p>one <a href='x>y'>link</a></p></li><li>two</li></ul><pre>a  b\n  c</pre><script>x<y</script>"
        "<table><tr><td>a</td><td>b</td></tr></table>"
    )
    read = "Title\n\nTwo lines & a\nbreak, 1 < 2.\n\n- one link\n\n- two\n\n    a  b\n      c\n\na b"
    assert html_text(marked) == read


def test_plain_text_is_unwrapped() -> None:
    wrapped = "One\r\nline.  \r\n\r\n\r\n\r\nAnother\u00a0one\u200b.\n"
    assert strip_plain(wrapped.encode()) == "One line.\n\nAnother one."


def test_code_loses_its_licence_and_nothing_else() -> None:
    head = "#!/usr/bin/env python\n# Copyright 2020 Somebody.\n# Licensed under the BSD licence.\n\n"
    code = "def f():\n\treturn 1   \n\n\n\n\n\nx = 1\n"
    assert strip_code((head + code).encode()) == "def f():\n\treturn 1\n\n\nx = 1"
    assert strip_code(b"/*\n * (c) SPDX-License-Identifier: MIT\n */\nint x;\n") == "int x;"
    assert strip_code(b"# Adds two numbers.\nx = 1\n") == "# Adds two numbers.\nx = 1"
    assert strip_code(b"x = '" + b"a" * 2000 + b"'") == ""


def test_docstrings() -> None:
    code = (
        '"""About\nthe module."""\nclass A:\n    """A thing."""\n'
        '    def f(self, x, *rest, y=1, **more):\n        """Do\n        it.\n        """\n'
    )
    documented = "About the module.\n\nA\n\nA thing.\n\nA.f(self, x, *rest, y, **more)\n\nDo it."
    assert strip_docstrings(code.encode()) == documented
    assert strip_docstrings(b"no python (") == ""


def test_factbook() -> None:
    country = b"""{"Geography": {"Area": {"total": {"text": "5 sq km"}, "note": "<b>note:</b> small"}, "Empty": {}},
        "Government": {"Country name": {"conventional long form": {"text": "Republic of &Aring;"}}}}"""
    assert strip_factbook(country) == (
        "Republic of Å\n\nGeography\n\nArea: total: 5 sq km\nnote: small\n\nGovernment\n\n"
        "Country name: conventional long form: Republic of Å"
    )


def test_service() -> None:
    service = b"""{"metadata": {"serviceFullName": "Store"}, "documentation": "<p>Keeps things.</p>",
        "operations": {"Put": {"documentation": "<p>Puts <code>x</code>.</p>"}, "Get": {}}}"""
    assert strip_service(service) == "Store\n\nKeeps things.\n\nPut\n\nPuts x."


def test_bible(tmp_path: Path) -> None:
    file = tmp_path / "bible.sqlite"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE books (id, sort_order, canonical_name, slug)")
        database.execute("CREATE TABLE verses (book_id, chapter_number, verse_number, text)")
        database.execute("INSERT INTO books VALUES (7, 1, 'Ruth', 'ruth')")
        verses = [(7, 2, 1, "three"), (7, 1, 2, "two"), (7, 1, 1, "one")]
        database.executemany("INSERT INTO verses VALUES (?, ?, ?, ?)", verses)
    database.close()
    books = list(bible_books(file.read_bytes()))
    assert books == [("ruth", "Ruth\n\nChapter 1\n\n1 one\n2 two\n\nChapter 2\n\n1 three")]
