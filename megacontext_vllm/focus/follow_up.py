"""Does a question lean on what was said before it? English.

"Who kept the harbour?" – "Amos Reed." – "When did he die?" Every history has many who died: who is meant stands in the
question before, and in its answer. A pronoun says so, unless the question itself has somebody or something in front of
it that it may stand for; and so do a few ways to point, and a question without a word of its own, as "yes" to an offer.
"""

import re

from megacontext_vllm.focus.stop_words import STOP_WORDS
from megacontext_vllm.focus.wording import Span

_TEXT = r"(?:text|document|passage|article|book|story|transcript|conversation|context|file|report|page|chapter)s?"
_PRONOUN = re.compile(
    r"\b(?:he|she|his|they|their|its|her"
    # what the text says, and what is so or not, is no thing that was spoken of
    r"|(?<!\bif )it(?!\s+(?:say|mention|state|tell|describe|true|possible|clear|likely|known|necessary)\w*\b"
    r"|\s+(?!(?:up|down|out|off|over)\b)\w+\s+(?:to|that|for|if|whether)\b))\b",
    re.IGNORECASE,
)
_OTHERS = re.compile(r"\b(?:him|them|hers|theirs)\b", re.IGNORECASE)
"""Whoever does something to him is somebody else."""
_POINTS = re.compile(
    r"\b(?:that|this|these|those)"
    r"(?=\s*(?:[?.!,;)]|$)|\s+(?:one|man|woman|person|people|year|day|time|place|number|name)s?\b"
    rf"|\s+(?!{_TEXT}\b)\w+\s*(?:\?|$))"
    rf"|^\W*(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would)\s+(?:this|that|these|those)\s+(?!{_TEXT}\b)"
    r"|\bof\s+(?:that|this|those|them)\s+(?:is|are|was|were|has|have|had|did|do|does|can|could|will|would)\b"
    r"|(?<!\bis )(?<!\bare )(?<!\bwas )(?<!\bwere )\bthere(?=\s*(?:[?.!,;)]|$))"
    r"|\b(?:then|next)(?=\s*(?:[?.!)]|$))"
    r"|\bthe\s+(?:former|latter)\b"
    r"|\bthe\s+(?:same|other|others|first|second|last)(?:\s+one)?(?=\s*(?:[?.!,;)]|$))"
    r"|^\s*(?:what|how)\s+about\b|^\s*(?:what|who|where)\s+else\b",
    re.IGNORECASE,
)
_BEGINS = re.compile(r"\s*(?:and|but|so|or)\b", re.IGNORECASE)
_SHORT = 5  # words of a question that begins so; a longer one may begin with any word
_NAME = re.compile(r"(?<=[^.?!:\s\"“'(]\s)[A-Z]\w+")
_FULL_NAME = re.compile(r"\b[A-Z]\w+(?:\s+[A-Z]\w+)+")  # where a sentence begins, too
_THING = re.compile(r"\b(?:the|a|an|my|your|our|every|each|all|any|some|no)\s+\w+|\w+['’]s\b", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_SAID = (
    "yes no yeah yep nope ok okay sure right correct exactly exact thanks thank go continue elaborate explain clarify"
    " expand details detail example examples quote year day month come give"
)
_REPLIES = frozenset(_SAID.split())
_CHOICE = "option number choice first second third fourth fifth last two three four five both former latter"
_SAYS_NOTHING = _REPLIES.union(STOP_WORDS, _CHOICE.split())
_POINTING = """
    fail fails failed failing failure error errors wrong happen happens happened happening mean means meant problem
    problems issue issues fix fixed solve solved resolve resolved repair help helps work works working cause causes
    caused reason go goes going went matter avoid prevent debug exception traceback message warning bug crash
    crashes crashed idea ideas get getting understand know find tell think anyone anybody somebody someone here need
    want possible way let us answer reply brief briefly short concise concisely sentence sentences few english
"""
_NOTHING = _REPLIES.union(STOP_WORDS, _POINTING.split())


def points_only(question: str) -> bool:
    """Whether ``question`` has no word to be looked for: "Why does this fail?", "Can you help me to fix it?"."""
    return _NOTHING.issuperset(word.casefold() for word in _WORD.findall(question))


def leans_on_before(question: str) -> bool:
    """Whether ``question`` speaks of what only an earlier one names."""
    words = [word.casefold() for word in _WORD.findall(question)]
    # What is left of "option 2" or "b)" says which of the things that were offered.
    if _SAYS_NOTHING.issuperset(word for word in words if len(word) > 1 and not word.isdecimal()):
        return True
    if _POINTS.search(question) or (_BEGINS.match(question) and len(words) <= _SHORT):
        return True
    name = _first(_NAME, question)
    return _first(_PRONOUN, question) < min(name, _first(_THING, question)) or _first(_OTHERS, question) < name


def _first(pattern: re.Pattern[str], text: str) -> int:
    """Where ``pattern`` stands first in ``text``; behind its end where it does not."""
    match = pattern.search(text)
    return match.start() if match else len(text)


def names(text: str) -> list[Span]:
    """The characters of what is written like a name in ``text``."""
    return [match.span() for pattern in (_NAME, _FULL_NAME) for match in pattern.finditer(text)]
