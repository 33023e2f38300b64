"""Does a paragraph of a prompt say how to answer, and not what is asked? English.

"Who kept the mill?", and behind it "Answer in one sentence. If you don't know, say so." or "Helpful Answer:". To look
for the words of the latter would find whatever speaks of sentences.
"""

import re

from megacontext_vllm.focus.follow_up import names
from megacontext_vllm.focus.stop_words import STOP_WORDS

_TELLS = re.compile(
    r"\W*(?:(?:please|also|and|but|then|just|now|finally|important|note|so)\b\W*)*"
    r"(?:answer|respond|reply|output|return|format|keep|avoid|limit|note|remember|think|reason|cite|quote|do|don['’]t|never"
    r"|always|be|if|use|only|start|begin|end|take|let['’]?s|make|in|give|write|provide|state|explain|show|put|phrase|present"
    r"|justify|support|your|the|my|helpful|final|short|direct|correct|best)\b",
    re.IGNORECASE,
)
"""How a paragraph begins that tells somebody what to do, or his answer."""
_ANSWER = re.compile(
    r"\b(?:answers?|respond|reply|replies|responses?|format(?:ted)?|json|markdown|yaml|xml|don['’]t\s+know)\b",
    re.IGNORECASE,
)
_MANNER = re.compile(
    r"\b(?:answers?|respond|reply|replies|responses?|output|format(?:ted)?|json|markdown|yaml|xml|concise(?:ly)?|brief(?:ly)?"
    r"|short|sentences?|words|bullets?|paragraphs?|step\s+by\s+step|don['’]t\s+know|up|guess|invent|assume|polite|simple|careful(?:ly)?)\b",
    re.IGNORECASE,
)
_POLITE = re.compile(r"\W*(?:please\W+)?(?:can|could|would|will)\s+you\b", re.IGNORECASE)
_PARTING = re.compile(
    r"\W*(?:(?:best|kind|warm|many)?\s*(?:regards|thanks|wishes)\b|thank\s+you|sincerely|cheers|yours)(?:\W+\w+){0,4}\W*$",
    re.IGNORECASE,
)
_REQUEST = re.compile(
    r"\W*(?:(?:please|so|now|and|hi|hello|well)\b\W*)*"
    r"(?:i\s+(?:would|want|need|am|wonder)|i['’](?:d|m)|tell|find|list|explain|describe|show|compare|summari[sz]e|extract|identify"
    r"|give|name|look|search|check|quote|determine|translate|state|question|query|task|who|whom|whose|what|when|where|which|why|how|is|are|was|were|does|do"
    r"|did|can|could|should|would|has|have|had)\b",
    re.IGNORECASE,
)
_INTRODUCES = re.compile(
    r"\W*(?:you\s+(?:are|will)|below|here\s+(?:is|are)|the\s+following|read|translate|use|given|from|based)\b",
    re.IGNORECASE,
)
_CONTINUES = re.compile(r"\W*(?:and|also|then|further(?:more)?|besides|second(?:ly)?|finally)\b", re.IGNORECASE)
_ITEM = re.compile(r"\s*(?:[-*•+]|\d{1,2}[.)])\s")
_RULE = re.compile(_ITEM.pattern + _TELLS.pattern, re.IGNORECASE)
_OPTION = re.compile(r"\W{0,3}\(?(?:[A-Ha-h]|[1-9])\s?(?:[):]|\.(?=\s))\s*\S")
_WORDS = """
    above according accurate add advance ai also anything answer answers answering apply article assistant assume avoid
    backticks based begin below best bold brief briefly bullet bullets careful carefully case characters check choose
    citation citations cite clear clearly code comma complete concise concisely confidence confident contain context
    correct correctly csv detail detailed details direct directly document documents double else emojis empty english
    ensure error every exact exactly exclude explain explanation explanations extra fact facts false file final first
    following follow format formatted formatting french friendly full german give given go guess heading headings help
    helpful html human ignore important include including info information input instructions invent json keep key keys
    kind know language length less let letter letters limit line lines list long make mark markdown mention message must
    name need never note nothing number numbers only option options output paragraph paragraphs passage phrase plain
    polite precise professional provide provided question questions quote quotes quoting reason reasoning reference
    references regards remember repeat reply respond response result return rule rules say section sentence sentences
    short simple simply sincerely single sorry source sources spanish specific start state step steps strictly style
    sure table text thank thanks think title tone true try unsure unknown use user using valid value values want word
    words write xml yaml yes yourself no without within
    one two three four five six seven eight nine ten
"""
_HOW = frozenset(_WORDS.split())
_WORD = re.compile(r"[^\W\d_]+")
_BLANK = re.compile(r"^\W*\w[\w ]{0,30}:\s*(?:<[\w ]+>|\{\w+\}|\[[A-Za-z][A-Za-z ]+\]|_{3,}|\.{3})\s*$", re.MULTILINE)
"""To be filled in: "Name: <name>"."""


def says_how(paragraph: str) -> bool:
    """Whether ``paragraph`` is about how to answer, as far as can be told: it has hardly a word to be looked for."""
    if _PARTING.match(paragraph) or _BLANK.search(paragraph):
        return True
    if "?" in paragraph and not _POLITE.match(paragraph):
        return False
    other = own_words(paragraph)
    if not other:
        return _MANNER.search(paragraph) is not None
    tells = _TELLS.match(paragraph) is not None and _ANSWER.search(paragraph) is not None
    return tells and len(other) == 1 and not names(paragraph)


def own_words(text: str) -> set[str]:
    """The words of ``text``, in lower case, that are to be looked for, as far as can be told."""
    return {word.casefold() for word in _WORD.findall(text)} - STOP_WORDS - _HOW


def continues(paragraph: str) -> bool:
    """Whether ``paragraph`` begins like one of which another one was said."""
    return _CONTINUES.match(paragraph) is not None


def is_item(paragraph: str) -> bool:
    """Whether ``paragraph`` is one of a list."""
    return _ITEM.match(paragraph) is not None


def is_rule(paragraph: str) -> bool:
    """Whether ``paragraph``, one of a list of rules, may be a rule, too: it tells somebody what to do."""
    return "?" not in paragraph and _RULE.match(paragraph) is not None


def is_option(paragraph: str) -> bool:
    """Whether ``paragraph`` is one of the answers among which one is to be chosen: "B) Amos Reed"."""
    return "?" not in paragraph and _OPTION.match(paragraph) is not None


def requests(paragraph: str) -> bool:
    """Whether ``paragraph`` asks for something: it has a question mark, or begins like a question or a request."""
    return "?" in paragraph or _REQUEST.match(paragraph) is not None


def introduces(line: str) -> bool:
    """Whether the first line of a message is meant for the reader, and no part of the text that follows."""
    told = requests(line) or says_how(line) or _INTRODUCES.match(line) is not None
    return told or line.rstrip().endswith(":")
