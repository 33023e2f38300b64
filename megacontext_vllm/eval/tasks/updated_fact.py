"""A fact that changes: several statements contradict each other, and the latest one holds."""

from megacontext_vllm.eval.sample import CHOICES
from megacontext_vllm.eval.tasks.base import Question, depths
from megacontext_vllm.eval.tasks.planted import Fact, PlantedTask
from megacontext_vllm.eval.tasks.values import MATERIALS, PLACES, Values

_CLUBS = ("rowing", "chess", "cycling", "knitting", "sailing", "archery", "fencing", "poetry")


class UpdatedFact(PlantedTask):
    """The wrong candidates are what held before. Statements name their week, so that their order needs no guessing."""

    name = "updated_fact"
    summary = "the latest of four statements that contradict each other"

    def plan(self, values: Values, length: int, seed: int) -> tuple[list[Fact], list[Question]]:
        rng = values.rng
        facts: list[Fact] = []
        questions = []
        latest = depths(CHOICES, seed)
        rng.shuffle(latest)
        for club, last in zip(rng.sample(_CLUBS, CHOICES), latest):
            places = values.phrases(CHOICES, MATERIALS, PLACES)
            weeks = sorted(rng.sample(range(10, 50), CHOICES))
            when = [*sorted(rng.uniform(0, last) for _ in places[1:]), last]
            subject = f"meeting point of the {club} club"
            facts += [
                Fact(f" In week {week} the {subject} moved to the {place}.", depth)
                for week, place, depth in zip(weeks, places, when, strict=True)
            ]
            questions.append(
                Question(
                    f"Where is the {subject} now?",
                    f"The {subject} is now the",
                    f" {places[-1]}",
                    tuple(f" {place}" for place in places[:-1]),
                    (len(facts) - 1,),
                )
            )
        return facts, questions
