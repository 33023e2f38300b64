"""What occurs most often: no sentence has the answer, all of them together have it."""

from dataclasses import dataclass

from megacontext_vllm.eval.tasks.base import Question, depths
from megacontext_vllm.eval.tasks.planted import Fact, PlantedTask
from megacontext_vllm.eval.tasks.planting import room
from megacontext_vllm.eval.tasks.values import Values

_OFTEN, _RARELY = (8, 3, 2, 1), (6, 2, 1, 1)
"""How often each candidate is stated; short histories have no room for many."""
_SPACIOUS = 10_000


@dataclass(frozen=True)
class _Habit:
    """Who did what to which kind of thing, in words of one token where possible."""

    did: str
    ask: str
    adjectives: str
    nouns: str


_COLOURS = "red blue white black green yellow purple pink brown grey"
_HABITS = (
    _Habit("The gardener planted a {}.", "flower did the gardener plant", _COLOURS, "rose tulip lily daisy poppy iris"),
    _Habit("The tailor sewed a {}.", "garment did the tailor sew", _COLOURS, "shirt coat dress jacket skirt robe"),
    _Habit("The potter made a {}.", "vessel did the potter make", _COLOURS, "bowl cup plate jar vase mug"),
    _Habit("The shepherd saw a {}.", "animal did the shepherd see", _COLOURS, "wolf fox deer bear bird snake"),
    _Habit("The carpenter built a {}.", "piece did the carpenter build", _COLOURS, "table chair bench shelf desk bed"),
)


class Aggregation(PlantedTask):
    """The wrong candidates are what was stated less often, at most half as often."""

    name = "aggregation"
    summary = "which of four things is stated most often"

    def plan(self, values: Values, length: int, seed: int) -> tuple[list[Fact], list[Question]]:
        rng = values.rng
        counts = _OFTEN if room(length, 0) > _SPACIOUS else _RARELY
        habits = rng.sample(_HABITS, len(counts))
        at = depths(len(habits) * sum(counts), seed)
        rng.shuffle(at)
        facts: list[Fact] = []
        questions = []
        for habit in habits:
            things = values.phrases(len(counts), habit.adjectives.split(), habit.nouns.split())
            first = len(facts)
            for thing, count in zip(things, counts):
                facts += [Fact(f" {habit.did.format(thing)}", at.pop()) for _ in range(count)]
            questions.append(
                Question(
                    f"Which {habit.ask} most often?",
                    f"Most often {habit.did.removesuffix(' {}.').replace('The', 'the')}",
                    f" {things[0]}",
                    tuple(f" {thing}" for thing in things[1:]),
                    tuple(range(first, len(facts))),
                )
            )
        return facts, questions
