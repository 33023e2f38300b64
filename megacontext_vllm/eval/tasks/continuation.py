"""How well a long text can be gone on with: language modelling, no question."""

import numpy as np

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.sample import History, Layout, Sample
from megacontext_vllm.eval.tasks.base import Task
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.tree.nodes import BLOCK

TARGET = 64
"""Tokens that are to be foretold."""
_KNOWN = 4096
"""Tokens of the last document in a history, at least, where documents are as long: its past is to matter."""


class Continuation(Task):
    """The history ends inside of a long document; others may stand before it."""

    name = "continuation"
    summary = "the next 64 tokens of a long text"

    def samples(self, filler: Filler, chat: ChatFormat, length: int, seed: int) -> list[Sample]:
        if length + TARGET > len(filler):
            raise EvaluationError(
                f"the text has {len(filler):,} tokens, too few to go on after {length:,}: ask for shorter histories, "
                "or give it a longer text"
            )
        rng = self.randomness(length, seed)
        sizes = np.diff(filler.documents, append=len(filler))
        needed = min(_KNOWN, length, int(sizes.max()) - TARGET - BLOCK) + TARGET + BLOCK
        if needed <= TARGET + BLOCK:
            raise EvaluationError("no document of the text is long enough to be gone on with: give it longer ones")
        # How many ends each document has room for: a place in the text is as likely as any other.
        ends = np.maximum(sizes - needed + 1, 0).tolist()
        [document] = rng.choices(range(len(ends)), ends)
        stop = int(filler.documents[document]) + needed - TARGET - BLOCK + rng.randrange(ends[document])
        # Blocks of the history are aligned blocks of the stream, so it starts at a multiple of 32.
        start = -(-(stop - length) // BLOCK) * BLOCK % len(filler)
        tokens = filler.read(start, start + length + TARGET)
        history = History(f"{self.name}/{length}/{seed}", tokens[:length], Layout.TEXT)
        return [Sample(id=f"{history.id}/0", task=self.name, history=history, target=tokens[length:])]
