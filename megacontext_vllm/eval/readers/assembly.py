"""A prompt with a context in place of its history, as the entries that a model is given."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.eval.context import Context, Gap, Gist, Raw
from megacontext_vllm.eval.prompt import Prompt

GIST = -1


@dataclass(frozen=True, eq=False)
class Assembly:
    """``ids``: int64 ``[W]``, ``GIST`` where a gist stands. ``gists``: float32 ``[g, d]``, ``[0, 0]`` if none."""

    ids: NDArray[np.int64]
    gists: NDArray[np.float32]

    def key(self, *more: bytes) -> bytes:
        """16 bytes that are equal for equal entries and equal ``more``."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.ids.tobytes(), self.gists.tobytes(), *more):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.digest()


def assemble(prompt: Prompt, context: Context) -> Assembly:
    """Prefix, the context's pieces, suffix."""
    parts: list[NDArray[np.int64]] = [prompt.prefix.astype(np.int64)]
    gists: list[NDArray[np.float32]] = []
    for piece in context.pieces:
        match piece:
            case Raw(start, stop):
                assert stop <= len(prompt.history), f"{piece} of a history of {len(prompt.history)} tokens"
                parts.append(prompt.history[start:stop].astype(np.int64))
            case Gap():
                parts.append(np.array(context.gap, dtype=np.int64))
            case Gist(_, _, vector):
                assert vector.ndim == 1, vector.shape
                parts.append(np.array([GIST], dtype=np.int64))
                gists.append(vector.astype(np.float32))
    parts.append(prompt.suffix.astype(np.int64))
    return Assembly(np.concatenate(parts), np.stack(gists) if gists else np.zeros((0, 0), dtype=np.float32))
