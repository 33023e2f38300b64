"""Is it English? The rules of this package that go by words know no other language, and say nothing there.

Where they cannot tell, what is doubtful is looked for each way.
"""

import re

_TEXT = """
    the what who whom whose where when why which how did does were with this that you your please tell and there from
    they it is of many much been would could should whether
    list find explain describe show compare summarize summarise extract identify give search check quote
"""
_WORDS = frozenset(_TEXT.split())
"""Hardly a sentence is without one of these, and few of them are words of other languages."""
_WORD = re.compile(r"[^\W\d_]+")
_ASCII = re.compile(r"[\x00-\x7f]+")


def may_be_english(text: str) -> bool:
    """Whether ``text`` has a word that hardly an English sentence is without, and its words are mostly in ASCII."""
    words = map(str.casefold, _WORD.findall(text))
    return not _WORDS.isdisjoint(words) and not is_in_another_script(text)


def is_other(text: str) -> bool:
    """Whether ``text`` is written in another language, as a letter says that English has not."""
    return not may_be_english(text) and any(map(str.isalpha, _ASCII.sub("", text)))


def is_in_another_script(text: str) -> bool:
    """Whether most words of ``text`` have letters that English has not: it is no English with a name in it."""
    words = _WORD.findall(text)
    return 2 * sum(map(str.isascii, words)) < len(words)
