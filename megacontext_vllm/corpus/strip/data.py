"""Texts that lie in files of data: JSON of the World Factbook and of AWS services, a Bible in SQLite."""

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from megacontext_vllm.corpus.strip.html import html_text
from megacontext_vllm.corpus.strip.text import decode, one_line, tidy


def strip_factbook(data: bytes) -> str:
    """A country of the World Factbook: its chapters, in each a paragraph a subject."""
    country = json.loads(decode(data))
    names = country.get("Government", {}).get("Country name", {})
    forms = [_said(names.get(f"conventional {length} form", "")) for length in ("long", "short")]
    blocks = [form for form in forms if form and form != "none"][:1]
    for chapter, subjects in country.items():
        blocks.append(chapter)
        blocks += [f"{subject}: {text}" for subject, entry in subjects.items() if (text := _said(entry))]
    return tidy("\n\n".join(blocks))


def _said(entry: Any) -> str:
    """What is said of one subject: "text", or several parts with names, one a line."""
    if isinstance(entry, str):
        return html_text(entry).replace("\n\n", "\n")
    parts = []
    for name, value in entry.items():
        text = _said(value)
        if text:
            parts.append(text if name in ("text", "note") else f"{name}: {text}")
    return "\n".join(parts)


def strip_service(data: bytes) -> str:
    """A description of an AWS service (botocore's service-2.json): what it is, then what each operation does."""
    service = json.loads(decode(data))
    blocks = [service["metadata"]["serviceFullName"], html_text(service.get("documentation") or "")]
    for name, operation in sorted(service["operations"].items()):
        blocks += [name, text] if (text := html_text(operation.get("documentation") or "")) else []
    return tidy("\n\n".join(filter(None, blocks)))


def bible_books(data: bytes) -> Iterator[tuple[str, str]]:
    """(name, text) of the books of a translation: chapters with a heading, a verse a line."""
    with tempfile.NamedTemporaryFile(suffix=".sqlite") as file:
        Path(file.name).write_bytes(data)
        with closing(sqlite3.connect(f"file:{file.name}?mode=ro", uri=True)) as database:
            for book, name, slug in database.execute("SELECT id, canonical_name, slug FROM books ORDER BY sort_order"):
                verses = "SELECT chapter_number, verse_number, text FROM verses WHERE book_id = ? ORDER BY 1, 2"
                lines = [name]
                for chapter, verse, text in database.execute(verses, (book,)):
                    lines += [f"\nChapter {chapter}\n"] if verse == 1 else []
                    lines.append(f"{verse} {one_line(text)}")
                yield slug, tidy("\n".join(lines))
