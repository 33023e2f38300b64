"""A real engine renews its focus while it answers, and goes on as transformers does from what is shown then."""

from collections.abc import Callable

import pytest
import torch
from engines import GAP, Engine, greedy
from reference import Reference

EVERY, LATER, STEPS = 64, 32, 130


@pytest.fixture(scope="module")
def renewing(start_engine: Callable[..., Engine]) -> Engine:
    settings = {"window": 256, "refocus_tokens": EVERY, "refocus_share": 1.0}
    return start_engine(settings, max_model_len=512, max_num_seqs=2)


def test_what_the_answer_speaks_of_is_shown(renewing: Engine, reference: Reference, tokens: list[int]) -> None:
    history = tokens[80_000:84_000]
    params = greedy(STEPS, repetition_penalty=1.3)
    (before,) = renewing.ask([history], params)
    said = list(before.outputs[0].token_ids)
    # What it says stands, word for word, where nothing of the history was shown, and nothing else speaks of it.
    hidden = [e for e in renewing.trace(before)["entries"] if e["kind"] == "gap" and e["end"] - e["start"] >= 96]
    place = hidden[0]["start"] + 32
    planted = [*history[:place], *said[20:50], *history[place + 30 :]]

    (output,) = renewing.ask([planted], params)
    again = list(output.outputs[0].token_ids)
    assert again[: EVERY + LATER] == said[: EVERY + LATER], "nobody asked for it before"
    trace = renewing.trace(output)
    assert trace["history_tokens"] == len(planted) + EVERY, "planned at the look"
    assert trace["renewed"] == 1
    assert any(entry["kind"] == "raw" and entry["start"] == place for entry in trace["entries"])

    gap_ids = renewing.llm.get_tokenizer().encode(GAP, add_special_tokens=False)
    everything = [*planted, *again[:EVERY]]
    embeddings, ids = reference.working_context(everything, trace["entries"], gap_ids)
    later = again[EVERY : EVERY + LATER]
    embeddings = torch.cat([embeddings, reference.table[torch.tensor(later)][None]], dim=1)
    rest = again[EVERY + LATER :]
    assert rest == reference.greedy(embeddings, [*ids, *later], len(rest), 1.3)
