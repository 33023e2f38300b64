"""What a new Working Context of the same request shows that the one before does not: is it worth a prefill?"""

from megacontext_vllm.focus.working_context import Entry, Kind, WorkingContext


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
