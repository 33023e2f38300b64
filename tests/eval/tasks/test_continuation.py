"""The text goes on as it does in the stream, within one document."""

import numpy as np
import pytest

from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.sample import Layout
from megacontext_vllm.eval.tasks.continuation import TARGET, Continuation
from megacontext_vllm.eval.tasks.filler import Filler


@pytest.mark.parametrize("length", [4096, 5000, 65_536, 300_000])
def test_the_target_follows_in_the_same_document(filler: Filler, chat: ChatFormat, length: int) -> None:
    round_about = np.concatenate([filler.tokens, filler.tokens])
    for seed in range(8):
        [sample] = Continuation().samples(filler, chat, length, seed)
        assert sample.history.layout is Layout.TEXT and sample.target is not None
        assert not sample.candidates and not sample.evidence and len(sample.target) == TARGET == 64
        tokens = np.concatenate([sample.history.tokens, sample.target])
        # It starts at a whole block, found by its first one.
        first = np.flatnonzero((filler.tokens.reshape(-1, 32) == tokens[:32]).all(axis=1)) * 32
        starts = [start for start in first.tolist() if np.array_equal(round_about[start:][: len(tokens)], tokens)]
        assert starts
        stop = (starts[0] + length) % len(filler)
        document = np.searchsorted(filler.documents, stop, side="right") - 1
        end = [*filler.documents.tolist(), len(filler)][document + 1]
        assert stop + TARGET <= end
        assert stop - filler.documents[document] >= min(length, 4096)


def test_short_documents_are_gone_on_with_too(chat: ChatFormat) -> None:
    filler = Filler(np.arange(6400, dtype=np.uint32), np.array([0]), np.arange(0, 6400, 640), "")
    for seed in range(20):
        [sample] = Continuation().samples(filler, chat, 4096, seed)
        assert sample.target is not None
        known = int(sample.history.tokens[-1] + 1) % 640
        assert 640 - TARGET - 32 <= known <= 640 - TARGET
