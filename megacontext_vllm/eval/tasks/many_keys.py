"""One number among many that are stated in the same words: what only looks like the question is not enough."""

from itertools import product

from megacontext_vllm.eval.sample import CHOICES
from megacontext_vllm.eval.tasks.base import Question, depths
from megacontext_vllm.eval.tasks.planted import Fact, PlantedTask
from megacontext_vllm.eval.tasks.planting import room
from megacontext_vllm.eval.tasks.values import FIRST_NAMES, LAST_NAMES, Values

_FIRSTS, _LASTS = 8, 4
_SPACING = 100  # tokens a fact; short histories hold fewer facts


class ManyKeys(PlantedTask):
    """Each first name and each last name is shared by several people; one person of each quarter is asked about."""

    name = "many_keys"
    summary = "one of up to 32 numbers that differ in the name only"

    def plan(self, values: Values, length: int, seed: int) -> tuple[list[Fact], list[Question]]:
        rng = values.rng
        count = max(CHOICES, min(_FIRSTS * _LASTS, room(length, 0) // _SPACING))
        people = list(product(rng.sample(FIRST_NAMES, _FIRSTS), rng.sample(LAST_NAMES, _LASTS)))
        subjects = [f"secret code of {first} {last}" for first, last in rng.sample(people, count)]
        numbers = values.numbers(count, digits=5)
        facts = [
            Fact(f" The {subject} is {number}.", depth)
            for subject, number, depth in zip(subjects, numbers, depths(count, seed))
        ]
        asked = [int(depth * count) for depth in depths(CHOICES, seed)]
        return facts, [
            Question(
                f"What is the {subjects[i]}?",
                f"The {subjects[i]} is",
                f" {numbers[i]}",
                tuple(f" {numbers[other]}" for other in asked if other != i),
                (i,),
            )
            for i in asked
        ]
