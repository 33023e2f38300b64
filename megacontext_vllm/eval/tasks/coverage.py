"""Whether a topic came up at all: what an overview of the history can tell without any detail of it."""

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.sample import CHOICES
from megacontext_vllm.eval.tasks.base import Question, depths
from megacontext_vllm.eval.tasks.planted import Fact, PlantedTask
from megacontext_vllm.eval.tasks.topics import PASSAGES, TOPICS
from megacontext_vllm.eval.tasks.values import Values


class Coverage(PlantedTask):
    """The wrong candidates are topics that the history does not mention. The question names all four."""

    name = "coverage"
    summary = "which of four topics a passage of the history is about"

    def plan(self, values: Values, length: int, seed: int) -> tuple[list[Fact], list[Question]]:
        rng = values.rng
        unmentioned = set(values.unmentioned(topic.name for topic in TOPICS))
        topics = [topic for topic in rng.sample(TOPICS, len(TOPICS)) if topic.name in unmentioned]
        if len(topics) < CHOICES * CHOICES:
            raise EvaluationError("the text mentions too many of the topics that were to be new in it: use less text")
        # Four of a question are of one length in tokens, nearly, and any of them may be the right one.
        topics.sort(key=lambda topic: values.size(topic.name))
        fours = [topics[i : i + CHOICES] for i in range(0, len(topics) - CHOICES + 1, CHOICES)]
        facts, questions = [], []
        for i, (four, depth) in enumerate(zip(rng.sample(fours, CHOICES), depths(CHOICES, seed))):
            covered = rng.choice(four)
            facts.append(Fact(rng.choice(PASSAGES).format(**vars(covered)), depth))
            listed = [topic.name for topic in rng.sample(four, CHOICES)]
            names = f"{', '.join(listed[:-1])} or {listed[-1]}"
            questions.append(
                Question(
                    f"{names[0].upper()}{names[1:]}: which of these does the text speak about?",
                    "In the text there are remarks about",
                    f" {covered.name}",
                    tuple(f" {name}" for name in listed if name != covered.name),
                    (i,),
                )
            )
        return facts, questions
