"""Windows of text to train and validate on: inside one document each, spread over the sources."""

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.corpus import TokenStream
from megacontext_vllm.errors import ConfigError


class Windows:
    """Draws windows of one length out of a split.

    A source is drawn by the square root of its size, so that the largest does not drown the rest; inside of it each
    place is as likely as any other.
    """

    def __init__(self, stream: TokenStream, length: int) -> None:
        self.length = length
        self._tokens = stream.tokens
        sizes = np.diff(stream.starts, append=len(stream.tokens))
        places = np.maximum(sizes - length + 1, 0)
        sources: dict[str, list[int]] = {}
        for document, name in enumerate(stream.ids):
            if places[document]:
                sources.setdefault(name.partition("/")[0], []).append(document)
        if not sources:
            raise ConfigError(
                f"No document of the corpus has the {length:,} tokens of a window: use shorter windows or longer texts."
            )
        self.sources = sorted(sources)
        self._starts = [stream.starts[sources[name]] for name in self.sources]
        self._ends = [np.cumsum(places[sources[name]]) for name in self.sources]
        weights = np.sqrt([float(ends[-1]) for ends in self._ends])
        self._weights = weights / weights.sum()

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Token ids ``[count, length]``."""
        return self._read(rng, rng.choice(len(self.sources), size=count, p=self._weights).tolist())

    def spread(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Token ids ``[count, length]``, from one source after the other."""
        return self._read(rng, [i % len(self.sources) for i in range(count)])

    def _read(self, rng: np.random.Generator, sources: list[int]) -> NDArray[np.int64]:
        windows = np.empty((len(sources), self.length), np.int64)
        for row, source in enumerate(sources):
            ends = self._ends[source]
            place = int(rng.integers(ends[-1]))
            document = int(np.searchsorted(ends, place, side="right"))
            start = int(self._starts[source][document]) + place - (int(ends[document - 1]) if document else 0)
            windows[row] = self._tokens[start : start + self.length]
        return windows
