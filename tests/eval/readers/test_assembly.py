"""What a model is given is prefix, pieces, suffix: token by token."""

import numpy as np

from megacontext_vllm.eval.context import Context, Gap, Gist, Raw
from megacontext_vllm.eval.prompt import Prompt
from megacontext_vllm.eval.readers.assembly import GIST, assemble

PROMPT = Prompt(
    prefix=np.array([1, 2], dtype=np.uint32),
    history=np.arange(100, 200, dtype=np.uint32),
    suffix=np.array([3], dtype=np.uint32),
    question="",
)


def gist(start: int, stop: int, value: float) -> Gist:
    return Gist(start, stop, np.full(4, value, dtype=np.float32))


def test_pieces_stand_between_prefix_and_suffix() -> None:
    context = Context((gist(0, 32, 0.5), Raw(32, 34), Gap(34, 90), gist(90, 99, 2.0), Raw(99, 100)), gap=(7, 8))
    assembled = assemble(PROMPT, context)
    assert assembled.ids.tolist() == [1, 2, GIST, 132, 133, 7, 8, GIST, 199, 3]
    assert assembled.gists.tolist() == [[0.5] * 4, [2.0] * 4]
    assert len(assembled.ids) == PROMPT.overhead + context.cost


def test_an_empty_context() -> None:
    assembled = assemble(PROMPT, Context((), gap=()))
    assert assembled.ids.tolist() == [1, 2, 3] and assembled.gists.shape == (0, 0)


def test_the_key_tells_apart_what_differs() -> None:
    pieces = [
        (Raw(0, 2),),
        (Raw(0, 1), Raw(1, 3)),
        (gist(0, 1, 1.0),),
        (gist(0, 1, 2.0),),
        (gist(0, 1, 1.0), gist(1, 2, 1.0)),
    ]
    keys = {assemble(PROMPT, Context(some, gap=())).key(b"a") for some in pieces}
    keys |= {assemble(PROMPT, Context(pieces[0], gap=())).key(*more) for more in ([b"b"], [b"a", b"b"], [b"ab"], [])}
    assert len(keys) == len(pieces) + 4


def test_what_looks_the_same_has_the_same_key() -> None:
    whole = assemble(PROMPT, Context((Raw(0, 3),), gap=()))
    parts = assemble(PROMPT, Context((Raw(0, 1), Raw(1, 3)), gap=(9,)))
    assert whole.key(b"a") == parts.key(b"a")
