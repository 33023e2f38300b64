"""Windows of held-out documents, drawn seeded and spread evenly over the sources."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import EvaluationError


class Documents(Protocol):
    """Documents one after the other, as ``megacontext_vllm.corpus.token_stream`` gives them.

    ``tokens``: uint32 ``[N]``. ``starts``: int64 ``[documents]``. ``ids``: ``"source/name"`` of each.
    """

    @property
    def tokens(self) -> NDArray[np.uint32]: ...
    @property
    def starts(self) -> NDArray[np.int64]: ...
    @property
    def ids(self) -> list[str]: ...


@dataclass(frozen=True, eq=False)
class Window:
    """``tokens``: uint32 ``[n]``, from one document."""

    source: str
    document: str
    tokens: NDArray[np.uint32]


def draw(documents: Documents, length: int, count: int, seed: int) -> list[Window]:
    """``count`` windows of ``length`` tokens, the sources in turn; the same for the same arguments.

    In a source every place where a window fits is equally likely. Raises EvaluationError if there is none at all.
    """
    sizes = np.diff(np.append(documents.starts, len(documents.tokens)))
    places: dict[str, list[int]] = {}
    for number, (name, size) in enumerate(zip(documents.ids, sizes, strict=True)):
        if size >= length:
            places.setdefault(name.partition("/")[0], []).append(number)
    if not places:
        raise EvaluationError(
            f"No document has the {length:,} tokens of a window (the longest has {sizes.max(initial=0):,}): measure "
            "layouts with fewer gists, or with longer documents."
        )
    generator = np.random.default_rng([seed, length])
    sources = sorted(places)
    windows = []
    for turn in range(count):
        source = sources[turn % len(sources)]
        room = np.cumsum([sizes[number] - length + 1 for number in places[source]])
        drawn = int(generator.integers(room[-1]))
        which = int(np.searchsorted(room, drawn, side="right"))
        number = places[source][which]
        start = int(documents.starts[number]) + drawn - int(room[which - 1] if which else 0)
        tokens = np.array(documents.tokens[start : start + length], dtype=np.uint32)
        windows.append(Window(source, documents.ids[number], tokens))
    return windows
