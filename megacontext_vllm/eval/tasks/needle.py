"""The plainest question: a number that is stated once, asked for in the same words."""

from megacontext_vllm.eval.sample import CHOICES
from megacontext_vllm.eval.tasks.base import Question, depths
from megacontext_vllm.eval.tasks.planted import Fact, PlantedTask
from megacontext_vllm.eval.tasks.values import FIRST_NAMES, LAST_NAMES, Values

_WHAT = ("secret code", "locker number", "ticket number", "telephone number", "membership number", "account number")


class Needle(PlantedTask):
    """The wrong candidates are the numbers of others: all of them stand in the history."""

    name = "needle"
    summary = "a five-digit number stated once, asked for in the same words"

    def plan(self, values: Values, length: int, seed: int) -> tuple[list[Fact], list[Question]]:
        rng = values.rng
        numbers = values.numbers(CHOICES, digits=5)
        firsts, lasts = rng.sample(FIRST_NAMES, CHOICES), rng.sample(LAST_NAMES, CHOICES)
        at = depths(CHOICES, seed)
        rng.shuffle(at)
        facts, questions = [], []
        for i, what in enumerate(rng.sample(_WHAT, CHOICES)):
            subject = f"{what} of {firsts[i]} {lasts[i]}"
            facts.append(Fact(f" The {subject} is {numbers[i]}.", at[i]))
            wrong = tuple(f" {number}" for number in numbers if number != numbers[i])
            questions.append(Question(f"What is the {subject}?", f"The {subject} is", f" {numbers[i]}", wrong, (i,)))
        return facts, questions
