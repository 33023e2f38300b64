"""What a user tells by the way in a long conversation, and asks for much later."""

from collections.abc import Callable
from dataclasses import dataclass

from megacontext_vllm.eval.sample import CHOICES
from megacontext_vllm.eval.tasks.values import MATERIALS, Values


@dataclass(frozen=True)
class Remark:
    """``says``: the user, then, with ``{}`` for the answer; ``asks``: the user, now; ``reply``: the assistant."""

    says: str
    asks: str
    reply: str


@dataclass(frozen=True)
class Family:
    """Remarks whose answers are of one form, so that each is a wrong answer to the others."""

    remarks: tuple[Remark, ...]
    draw: Callable[[Values], list[str]]


_VESSELS = ("basket", "bottle", "bowl", "box", "chest", "cup", "drawer", "jar", "jug", "pot", "vase", "wardrobe")

FAMILIES = (
    Family(
        (
            Remark(
                "My sister's train leaves at {}.", "When does my sister's train leave?", "Your sister's train leaves at"
            ),
            Remark(
                "My brother's plane lands at {}.", "When does my brother's plane land?", "Your brother's plane lands at"
            ),
            Remark("My dentist expects me at {}.", "When does my dentist expect me?", "Your dentist expects you at"),
            Remark(
                "My choir rehearsal starts at {}.",
                "When does my choir rehearsal start?",
                "Your choir rehearsal starts at",
            ),
            Remark("My aunt's bus arrives at {}.", "When does my aunt's bus arrive?", "Your aunt's bus arrives at"),
            Remark(
                "My swimming lesson ends at {}.", "When does my swimming lesson end?", "Your swimming lesson ends at"
            ),
        ),
        lambda values: values.times(CHOICES),
    ),
    Family(
        (
            Remark(
                "My bicycle lock opens with {}.", "Which number opens my bicycle lock?", "Your bicycle lock opens with"
            ),
            Remark("My library card number is {}.", "What is my library card number?", "Your library card number is"),
            Remark("My garage alarm code is {}.", "What is my garage alarm code?", "Your garage alarm code is"),
            Remark("My hotel room number is {}.", "What is my hotel room number?", "Your hotel room number is"),
            Remark("My suitcase opens with {}.", "Which number opens my suitcase?", "Your suitcase opens with"),
            Remark(
                "My office phone extension is {}.",
                "What is my office phone extension?",
                "Your office phone extension is",
            ),
        ),
        lambda values: values.numbers(CHOICES, digits=4),
    ),
    Family(
        (
            Remark("I hid the spare key in the {}.", "Where did I hide the spare key?", "You hid the spare key in the"),
            Remark(
                "I put the concert tickets in the {}.",
                "Where did I put the concert tickets?",
                "You put the concert tickets in the",
            ),
            Remark("I left my passport in the {}.", "Where did I leave my passport?", "You left your passport in the"),
            Remark(
                "I keep the old letters in the {}.",
                "Where do I keep the old letters?",
                "You keep the old letters in the",
            ),
            Remark("I found my earring in the {}.", "Where did I find my earring?", "You found your earring in the"),
            Remark("I store the candles in the {}.", "Where do I store the candles?", "You store the candles in the"),
        ),
        lambda values: values.phrases(CHOICES, MATERIALS, _VESSELS),
    ),
)
