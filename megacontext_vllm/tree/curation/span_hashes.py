"""The chained prefix hashes of spans that are about to be sealed, in order along the history."""

from megacontext_vllm.errors import SealedSpanError, StoreError
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.sealed import SealedSpans
from megacontext_vllm.tree.store.prefix_hash import ANCHOR, chained_hashes

_CHUNK = 1024 * ANCHOR


class SpanHashes:
    """Walks along a history once. ``reader``: of LOD0; ``sealed``: the spans that bring hashes of their own.

    (``store/chain.py`` does this for an open tree, as far as it can be read. Here nobody has the tree open.)
    """

    def __init__(self, reader: LevelReader, sealed: SealedSpans) -> None:
        self._reader = reader
        self._sealed = sealed
        self._at = 0
        self._previous = b""
        self._stuck: StoreError | None = None

    def of(self, start: int, stop: int) -> tuple[bytes, ...]:
        """Hashes at the end of each run of tokens ``[start, stop)``, which starts where the last call ended or behind.

        Raises SealedSpanError behind a span that was lost with its hashes, CorruptTreeError where tokens are damaged,
        StoreError (disk).
        """
        assert start % ANCHOR == stop % ANCHOR == 0
        if self._stuck is not None and not self._skip(start):
            raise self._stuck
        try:
            self._skip(start)
            self._advance(start)
            return tuple(self._advance(stop))
        except StoreError as error:
            self._stuck = error
            raise

    def before(self, start: int) -> bytes:
        """The hash that a span at ``start`` is chained to, empty at the start of the history. Raises like ``of``."""
        self._skip(start)
        self._advance(start)
        return self._previous

    def _skip(self, start: int) -> bool:
        """Go on behind the last sealed span before ``start``, if there is one; what is before it need not be read."""
        known = [item for item in self._sealed.overlapping(self._at, start) if item.hashes and item.stop <= start]
        if known:
            self._at, self._previous, self._stuck = known[-1].stop, known[-1].hashes[-1], None
        return bool(known)

    def _advance(self, to: int) -> list[bytes]:
        hashes: list[bytes] = []
        while self._at < to:
            span = next(iter(self._sealed.overlapping(self._at, to)), None)
            if span is not None and span.start <= self._at:
                if not span.hashes:
                    raise SealedSpanError(f"tokens {span.start} to {span.stop} were lost with their hashes")
                found = list(span.hashes)
                stop = span.stop
            else:
                stop = min(to, self._at + _CHUNK, to if span is None else span.start)
                found = chained_hashes(self._reader.read(self._at, stop), self._previous)
            hashes += found
            self._at, self._previous = stop, found[-1]
        return hashes
