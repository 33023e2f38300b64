"""A long conversation: the user said something in an old turn, beside other things, and asks for it now."""

import math
import random

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.sample import CHOICES, History, Layout, Sample, Span
from megacontext_vllm.eval.tasks.base import Question, Task, ask, depths
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.eval.tasks.planting import HEAD, TAIL, NoPlaceError, Planting, Wish, room
from megacontext_vllm.eval.tasks.remarks import FAMILIES
from megacontext_vllm.eval.tasks.values import Values

_INTRODUCTIONS = (
    "Here is the next part:",
    "This is how it goes on:",
    "Please read this part too:",
    "The next pages:",
    "Here is some more:",
)
_ACKNOWLEDGEMENTS = (
    "Thank you, I have read it.",
    "Noted. Please go on.",
    "I see. What comes next?",
    "Understood.",
    "Thanks, I am ready for the next part.",
)
_BY_THE_WAY = (" By the way:", " Before I forget:", " Something else:", " Just so you know:")
_HERE = "\u241f"
_SHORTEST_TURN, _LONGEST_TURN = 256, 1024
"""On average; histories shorter than 16,384 tokens have shorter turns."""
_SHORTEST_PIECE = 48
_FULL = 0.95
"""How much of the length that is asked for a history has at least: a turn ends with a sentence."""
_STRETCHES = 100


class Chat(Task):
    """Turns are long pieces of real text and short answers. The wrong candidates are what else the user said."""

    name = "chat"
    summary = "what the user said by the way in an old turn of a long conversation"

    def samples(self, filler: Filler, chat: ChatFormat, length: int, seed: int) -> list[Sample]:
        rng = self.randomness(length, seed)
        facts, questions = self._plan(Values(rng, filler, chat), seed)
        wishes = [Wish(chat.encode(text), depth) for text, depth in facts]
        turns = _Turns(chat)
        for _ in range(_STRETCHES):
            try:
                tokens, spans = _converse(filler, int(rng.choice(filler.beginnings)), turns, wishes, length, rng)
            except NoPlaceError:
                continue
            messages = chat.messages(chat.decode(tokens))
            history = History(f"{self.name}/{length}/{seed}", tokens, Layout.CHAT, messages)
            return ask(self.name, history, questions, spans, rng)
        raise EvaluationError(f"no conversation of {length:,} tokens can be made of this text: use prose")

    def _plan(self, values: Values, seed: int) -> tuple[list[tuple[str, float]], list[Question]]:
        """What the user says by the way, by depth, and asks."""
        rng = values.rng
        family = rng.choice(FAMILIES)
        answers = family.draw(values)
        facts, questions = [], []
        for i, (remark, depth) in enumerate(zip(rng.sample(family.remarks, CHOICES), depths(CHOICES, seed))):
            said = remark.says.format(answers[i])
            facts.append((f"{rng.choice(_BY_THE_WAY)} {said}", depth))
            wrong = tuple(f" {answer}" for answer in answers if answer != answers[i])
            questions.append(Question(remark.asks, remark.reply, f" {answers[i]}", wrong, (i,)))
        return facts, questions


class _Turns:
    """The tokens around what the user shows: a turn's beginning, and its end with the assistant's turn."""

    def __init__(self, chat: ChatFormat) -> None:
        self._opening: list[NDArray[np.uint32]] = []
        self._closing: list[NDArray[np.uint32]] = []
        for introduction, acknowledgement in zip(_INTRODUCTIONS, _ACKNOWLEDGEMENTS, strict=True):
            user = {"role": "user", "content": f"{introduction}{_HERE}"}
            before, after = chat.turns([user, {"role": "assistant", "content": acknowledgement}]).split(_HERE)
            self._opening.append(chat.encode(before))
            self._closing.append(chat.encode(after))

    def opening(self, rng: random.Random) -> NDArray[np.uint32]:
        return rng.choice(self._opening)

    def closing(self, rng: random.Random) -> NDArray[np.uint32]:
        return rng.choice(self._closing)

    def change(self, rng: random.Random) -> NDArray[np.uint32]:
        """From what the user shows in one turn to what he shows in the next."""
        return np.concatenate([self.closing(rng), self.opening(rng)])


def _converse(
    filler: Filler, start: int, turns: _Turns, wishes: list[Wish], length: int, rng: random.Random
) -> tuple[NDArray[np.uint32], list[Span]]:
    """Turns of nearly ``length`` tokens (uint32), and where each of ``wishes`` (by depth) lies in them."""
    planting = Planting(filler, start)
    planting.place(turns.opening(rng), 0, 0, 0)
    spans: list[Span] = []
    size = min(max(length // 16, _SHORTEST_TURN), _LONGEST_TURN)
    shortest = math.ceil(_FULL * length)  # what the tail is counted from, wherever the last turn will end
    free = room(shortest, sum(len(wish.tokens) for wish in wishes))
    left = [(HEAD + round(wish.depth * free), wish.tokens) for wish in wishes]
    while True:
        end = planting.length + rng.randint(size * 3 // 4, size * 5 // 4)
        if left and left[0][0] <= end:
            wish, fact = left.pop(0)
            latest = shortest - TAIL - len(fact)
            earliest = max(HEAD, planting.length + _SHORTEST_PIECE)
            at, _ = planting.place(np.concatenate([fact, turns.change(rng)]), earliest, wish, latest)
            spans.append((at, at + len(fact)))
        elif end < length - size // 2:
            planting.place(turns.change(rng), planting.length + _SHORTEST_PIECE, end, length - size // 2)
        else:
            break
    closing = turns.closing(rng)
    latest = length - len(closing)
    earliest = max(shortest - len(closing), planting.length + _SHORTEST_PIECE)
    planting.place(closing, earliest, latest, latest)
    return planting.finish(), spans
