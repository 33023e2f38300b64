"""A thing goes from hand to hand: the question names the first one, and only the last one's sentence has the answer."""

from itertools import pairwise

from megacontext_vllm.eval.sample import CHOICES
from megacontext_vllm.eval.tasks.base import Question, depths
from megacontext_vllm.eval.tasks.planted import Fact, PlantedTask
from megacontext_vllm.eval.tasks.values import FIRST_NAMES, MATERIALS, PLACES, Values

_PEOPLE = (2, 3, 2, 3)
"""Hands in each of a history's chains; as many sentences lead to the answer."""


class VariableTracking(PlantedTask):
    """The wrong candidates are where the other chains of the history end."""

    name = "variable_tracking"
    summary = "where a thing is in the end, after it went through two or three hands"

    def plan(self, values: Values, length: int, seed: int) -> tuple[list[Fact], list[Question]]:
        rng = values.rng
        names = rng.sample(FIRST_NAMES, sum(_PEOPLE))
        places = values.phrases(CHOICES, MATERIALS, PLACES)
        at = depths(sum(_PEOPLE), seed)
        rng.shuffle(at)
        facts: list[Fact] = []
        questions = []
        for place, count in zip(places, _PEOPLE):
            people, when = [names.pop() for _ in range(count)], sorted(at.pop() for _ in range(count))
            links = [f" {people[0]} gave the parcel to {people[1]}."]
            links += [f" What {one} got went to {other}." for one, other in pairwise(people[1:])]
            links += [f" What {people[-1]} got was put in the {place}."]
            wrong = tuple(f" {other}" for other in places if other != place)
            numbers = tuple(range(len(facts), len(facts) + count))
            questions.append(
                Question(
                    f"Where is the parcel from {people[0]} now?",
                    f"The parcel from {people[0]} is in the",
                    f" {place}",
                    wrong,
                    numbers,
                )
            )
            facts += [Fact(link, depth) for link, depth in zip(links, when, strict=True)]
        return facts, questions
