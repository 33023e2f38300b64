"""What a new Working Context of the same request shows that the one before does not: is it worth a prefill?"""

from collections.abc import Sequence

from megacontext_vllm.focus.working_context import Entry, Kind, WorkingContext

ENOUGH = 0.2
"""Gain that is worth the prefill of a changed Working Context at all."""
AT_ONCE = 32
"""Entries that are prefilled in the time of one token of an answer: what two CPU cores do (docs/architecture.md).

A number and not a measurement, so that the same request says the same on a quiet machine and on a busy one.
"""


def pays(gain: float, entries: int, said: int, share: float) -> bool:
    """Whether a change of ``gain`` is worth the prefill of so many ``entries``.

    said   tokens of the answer since what is shown was last changed.
    share  of the time that they took, at most, may go into the prefill.
    """
    return gain >= ENOUGH and entries <= share * said * AT_ONCE


def first_difference(before: Sequence[int], after: Sequence[int]) -> int:
    """The position of the first token in which two prompts differ: what stands before need not be prefilled again."""
    shorter = min(len(before), len(after))
    return next((i for i in range(shorter) if before[i] != after[i]), shorter)


def gain(before: WorkingContext, after: WorkingContext) -> float:
    """The share, in [0, 1], of what ``after`` was chosen to show that ``before`` does not have raw.

    Counted by the scores that ``after`` was made with, over the blocks that a lens chose; what is pinned is shown
    anyway, and what was said since ``before`` was made is in the model's sight as it is. 0 where no lens chose any.
    """
    had = {entry.index for entry in before.entries if entry.kind is Kind.RAW}
    chosen = [entry for entry in after.entries if entry.reason == "lens" and entry.score > 0]
    new = [entry for entry in chosen if entry.index not in had and entry.start < before.length]
    return _worth(new) / total if (total := _worth(chosen)) > 0 else 0.0


def _worth(entries: list[Entry]) -> float:
    return float(sum(entry.score for entry in entries))
