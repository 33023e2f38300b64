"""A question that leans on the one before it: "he" is one of many of whom the text says the like."""

from itertools import product
from typing import ClassVar

from megacontext_vllm.eval.sample import CHOICES, Layout
from megacontext_vllm.eval.tasks.base import Question, depths
from megacontext_vllm.eval.tasks.planted import Fact, PlantedTask
from megacontext_vllm.eval.tasks.planting import room
from megacontext_vllm.eval.tasks.values import FIRST_NAMES, LAST_NAMES, Values

_FIRSTS, _LASTS = 8, 4
_SPACING = 100  # tokens a fact; short histories tell of fewer people
_OFFICES = ("harbour master", "bell ringer", "lamp lighter", "toll collector", "ferry keeper", "clock winder")
_PRONOUNS = ("he", "she", "they")


class FollowUp(PlantedTask):
    """The first question is for the holder of an office, and is answered rightly; the second names nobody."""

    name = "follow_up"
    summary = "a number of whoever the question before and its answer were about"
    layout: ClassVar[Layout] = Layout.FOLLOW_UP

    def plan(self, values: Values, length: int, seed: int) -> tuple[list[Fact], list[Question]]:
        rng = values.rng
        count = max(CHOICES, min(_FIRSTS * _LASTS, room(length, 0) // _SPACING - CHOICES))
        names = list(product(rng.sample(FIRST_NAMES, _FIRSTS), rng.sample(LAST_NAMES, _LASTS)))
        people = [" ".join(name) for name in rng.sample(names, count)]
        numbers = values.numbers(count, digits=5)
        facts = [
            Fact(f" {person} wrote the number {number} in the ledger.", depth)
            for person, number, depth in zip(people, numbers, depths(count, seed))
        ]
        asked = [int(depth * count) for depth in depths(CHOICES, seed)]
        at = depths(CHOICES, seed + 1)
        rng.shuffle(at)
        facts += [
            Fact(f" The {office} of that time was {people[i]}.", depth)
            for office, i, depth in zip(_OFFICES, asked, at)
        ]
        return facts, [
            Question(
                f"Which number did {rng.choice(_PRONOUNS)} write in the ledger?",
                "The number in the ledger was",
                f" {numbers[i]}",
                tuple(f" {numbers[other]}" for other in asked if other != i),
                (i,),
                said=(
                    ("user", f"Who was the {office} of that time?"),
                    ("assistant", f"The {office} of that time was {people[i]}."),
                ),
            )
            for office, i in zip(_OFFICES, asked)
        ]
