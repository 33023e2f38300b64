"""The methods that are compared at equal budget, by name, in the order of tables."""

from collections.abc import Sequence

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.methods.base import Method, Tools
from megacontext_vllm.eval.methods.bm25 import BM25Blocks, BM25Passages
from megacontext_vllm.eval.methods.centred_mean_gists import CentredMean
from megacontext_vllm.eval.methods.dense import Dense
from megacontext_vllm.eval.methods.full import Full
from megacontext_vllm.eval.methods.gists_only import GistsOnly
from megacontext_vllm.eval.methods.head_tail import HeadTail
from megacontext_vllm.eval.methods.keyword_gists import Keyword
from megacontext_vllm.eval.methods.megacontext import MegaContext
from megacontext_vllm.eval.methods.oracle import Oracle
from megacontext_vllm.eval.methods.served import Served
from megacontext_vllm.eval.methods.tail import Tail
from megacontext_vllm.eval.methods.trained_gists import Trained

METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (
        Tail,
        HeadTail,
        BM25Blocks,
        BM25Passages,
        Dense,
        GistsOnly,
        CentredMean,
        Keyword,
        Trained,
        MegaContext,
        Oracle,
        Full,
        Served,
    )
}


def kinds(names: Sequence[str]) -> list[type[Method]]:
    """The classes of the methods of these names. Raises EvaluationError for an unknown one."""
    if unknown := [name for name in names if name not in METHODS]:
        raise EvaluationError(f"no method {unknown[0]!r}; there are: {', '.join(METHODS)}")
    return [METHODS[name] for name in names]


def make(names: Sequence[str], tools: Tools) -> list[Method]:
    """The methods of these names. Raises EvaluationError for an unknown one, or one that lacks what it needs."""
    return [kind(tools) for kind in kinds(names)]
