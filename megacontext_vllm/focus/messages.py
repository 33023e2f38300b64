"""The messages of a rendered prompt: who says what, told apart by the special tokens of the model's chat template.

The engine gets token ids, not messages. Templates say in four ways whose turn it is:

    <|im_start|>user\\n ...                          the first line (ChatML, Gemma)
    <|header|>user<|/header|> ...                   a short run between two special tokens (Llama 3, Granite, Phi 4)
    <|user|> ..., [INST] ..., <|USER_TOKEN|> ...    the special token itself (Phi 3, GLM, Mistral, DeepSeek, Cohere)
    <|start|>functions.find to=assistant<|channel|>commentary<|message|> ...    a header that ends so (Harmony)

What stands behind any other special token is more of the message before: a text may have "<filename>" in it, or an
image. Where turns are named in one of the first two ways, what looks like the third is text, too.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.plain_text import CUT, Decode

USER, ASSISTANT, SYSTEM, TOOL = "user", "assistant", "system", "tool"
_NAMES = {
    USER: ("user", "human", "inst"),
    ASSISTANT: ("assistant", "model", "bot", "chatbot"),
    SYSTEM: ("system", "developer", "tools"),
    TOOL: ("tool", "function", "ipython", "observation", "tool_response", "tool_output", "tool_result", "tool_results"),
}
_ROLE_OF = {name: role for role, names in _NAMES.items() for name in names}
_RETURNED = ("<tool_response>", "```tool_output")
"""How a message begins in which the user says what a tool returned: Qwen's templates, for one, have no other way."""
_HEADER_TOKENS = 4
_CHANNELS = 3  # parts of a Harmony header at most
_LOOK = 8
_MARKS = 64  # tokens without a word; a message that begins with more of them has words behind
_MOST = 1024
"""Special tokens that are looked at, counted from the end; of more than that, those with which turns begin and end."""
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Message:
    """What one of them says: tokens ``[start, end)``, at least one of them with a letter or digit.

    role    ``USER``, ``ASSISTANT``, ``SYSTEM`` or ``TOOL``; "" where the template names nobody that is known.
    opened  the start is where the message begins, not just where the search for it ended.
    """

    role: str
    start: int
    end: int
    opened: bool = True


def find_messages(
    tokens: npt.NDArray[np.uint32], special_ids: frozenset[int], decode: Decode
) -> tuple[list[Message], int]:
    """The messages of a prompt in their order, and how many tokens its instructions take.

    tokens       uint32 [N], the whole prompt with the template's special tokens. All of them are compared, in about a
                 millisecond per million; what is decoded is a few tokens per message.
    special_ids  ids that never stand for text.
    decode       token ids -> text.
    returns      messages that have words, the last 1,024 special tokens' worth, not counting those that are part of a
                 text; and the tokens up to the end of the system message that the prompt begins with, 0 without one.
    """
    runs = _Runs(tokens, special_ids, decode)
    if len(runs) > _MOST:
        marks = _Template(runs, range(len(runs) - _MOST, len(runs))).marks(runs) & special_ids
        runs = _Runs(tokens, marks, decode) if marks else runs
    last = range(max(0, len(runs) - _MOST), len(runs))
    template = _Template(runs, last)
    found = template.messages(runs, last)
    leading = found if not last.start else template.messages(runs, range(min(_MOST, len(runs))))
    instructions = 0
    for message in leading:
        if message.role != SYSTEM:
            break
        instructions = message.end
    return found, instructions


def has_word(text: str) -> bool:
    """Whether ``text`` has a letter or a digit."""
    return any(map(str.isalnum, text))


class _Runs:
    """The tokens between two special tokens each."""

    def __init__(self, tokens: npt.NDArray[np.uint32], special_ids: frozenset[int], decode: Decode) -> None:
        self._tokens, self._decode = tokens, decode
        self._texts: dict[int, str] = {}
        special = np.zeros(max(special_ids, default=0) + 2, dtype=np.bool_)
        special[list(special_ids)] = True
        cuts = np.flatnonzero(special.take(tokens, mode="clip"))
        self.starts: list[int] = [0, *(cuts + 1).tolist()]
        self.ends: list[int] = [*cuts.tolist(), len(tokens)]

    def __len__(self) -> int:
        return len(self.starts)

    def text(self, start: int, stop: int) -> str:
        """Of a few tokens, made of one at a time: what is read again and again is decoded once."""
        parts = []
        for token in self._tokens[start:stop].tolist():
            if token not in self._texts:
                self._texts[token] = self._decode([token])
            parts.append(self._texts[token])
        text = "".join(parts)
        # What is cut into parts of characters has to be read together.
        return self._decode(self._tokens[start:stop].tolist()) if CUT in text else text

    def before(self, i: int) -> int:
        """The special token in front of a run; -1 in front of the first, and behind the last."""
        return int(self._tokens[self.starts[i] - 1]) if 0 < i < len(self) else -1

    def name(self, i: int) -> str:
        """That token bare: ``start`` of ``<|start|>``."""
        start = self.starts[i]
        return self.text(start - 1, start).strip().casefold().strip("<>|[]") if i else ""

    def short(self, i: int) -> bool:
        return 0 < self.ends[i] - self.starts[i] < _HEADER_TOKENS

    def ends_prompt(self, i: int) -> bool:
        return self.ends[i] == len(self._tokens)

    def says(self, start: int, i: int) -> bool:
        """Whether run ``i`` has a word at ``start`` or behind it."""
        end = self.ends[i]
        return end - start > _MARKS or has_word(self.text(start, end))

    def first_line(self, i: int) -> tuple[str, int]:
        """(role, where what it says begins) of a run whose first line is a role, else ("", its start)."""
        start = self.starts[i]
        for stop in range(start + 1, min(start + _HEADER_TOKENS, self.ends[i]) + 1):
            text = self.text(start, stop)
            if text.endswith("\n"):
                role = _ROLE_OF.get(text.strip().casefold(), "")
                return role, stop if role else start
        return "", start

    def role(self, i: int) -> str:
        """That the whole of a short run names, or ""."""
        return _ROLE_OF.get(self.text(self.starts[i], self.ends[i]).strip().casefold(), "") if self.short(i) else ""


class _Template:
    """How turns begin. ``turns``: special tokens in front of whose turn it is; ``closers``: behind that."""

    def __init__(self, runs: _Runs, sample: range) -> None:
        headers = [i for i in sample if runs.role(i) and not runs.first_line(i)[0] and not _named(runs.name(i))]
        self.closers = {runs.before(i + 1) for i in headers} - {-1}
        self.turns = {runs.before(i) for i in headers} - self.closers
        self.turns |= {runs.before(i) for i in sample if runs.first_line(i)[0] and not _named(runs.name(i))}
        self.turns -= {-1}
        self._sample = sample

    def marks(self, runs: _Runs) -> frozenset[int]:
        """The special tokens that begin and end turns; none if nothing says whose turn it is."""
        marks = set(self.closers)
        for i in self._sample:
            if runs.before(i) in self.turns or (not self.turns and _named(runs.name(i))):
                marks |= {runs.before(i), runs.before(i - 1)}
        return frozenset(marks - {-1})

    def messages(self, runs: _Runs, of: range) -> list[Message]:
        """What the runs ``of`` are."""
        found: list[Message] = []
        turn: str | None = None  # whose it is, "" for somebody's, where nothing was said in it yet
        named = False
        for i in of:
            role, start = self._turn(runs, i)
            turn, named = (turn if role is None else role), named or bool(role)
            if self._is_header(runs, i) or not runs.says(start, i) or self._is_scrap(runs, i):
                continue
            end = runs.ends[i]
            if turn is None and found and named:
                found[-1] = replace(found[-1], end=end)
            else:
                if turn == USER and runs.text(start, min(end, start + _LOOK)).lstrip().startswith(_RETURNED):
                    turn = TOOL
                found.append(Message(turn or "", start, end, i > of.start or not of.start))
            turn = None
        # Without a user there are no turns, but for an answer to come: a file may begin with a line "model".
        if named and turn is None and not any(message.role == USER for message in found):
            return [Message("", runs.starts[i], runs.ends[i]) for i in of if runs.says(runs.starts[i], i)]
        return found

    def _turn(self, runs: _Runs, i: int) -> tuple[str | None, int]:
        """Whose turn a run begins, "" for nobody's that is known, None for none; and where what he says begins."""
        start = runs.starts[i]
        if not self.turns:
            return _named(runs.name(i)) or None, start
        if self._is_header(runs, i):
            return runs.role(i), start
        if runs.name(i) == "message":
            return _harmony(runs, i), start
        return runs.first_line(i) if runs.before(i) in self.turns else (None, start)

    def _is_header(self, runs: _Runs, i: int) -> bool:
        """Whether a run only says whose turn it is."""
        if runs.before(i) in self.turns:
            return runs.before(i + 1) in self.closers or (runs.ends_prompt(i) and runs.role(i) != "")
        return bool(self.turns) and runs.name(i) in ("channel", "constrain")

    def _is_scrap(self, runs: _Runs, i: int) -> bool:
        """Whether a run is most likely the header of an answer to come, of a role with a name of its own."""
        if not runs.ends_prompt(i):
            return False
        if runs.before(i) in self.turns:
            return runs.short(i)
        words = _WORD.findall(runs.text(runs.starts[i], min(runs.ends[i], runs.starts[i] + _LOOK)).casefold())
        return i > 0 and runs.ends[i] - runs.starts[i] < _LOOK and all(word in _ROLE_OF for word in words)


def _named(name: str) -> str:
    """Whose turn a special token of this name begins by itself."""
    words = _WORD.findall(name)
    if name.startswith("/") or "end" in words or "sep" in words:
        return ASSISTANT if name in ("/inst", "/tool_results") else ""
    if "call" in words or "calls" in words:
        return ASSISTANT
    return next((_ROLE_OF[word] for word in words if word in _ROLE_OF), "")


def _harmony(runs: _Runs, i: int) -> str | None:
    """Whose turn it is, of a run behind a header that ends with ``<|message|>``; None without a header."""
    for header in range(i - 1, max(-1, i - 1 - _CHANNELS), -1):
        if runs.name(header) == "start":
            words = _WORD.findall(runs.text(runs.starts[header], runs.ends[header]).casefold())
            return _ROLE_OF.get(words[0], TOOL) if words else ""
    return None
