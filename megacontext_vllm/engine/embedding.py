"""The embedding layer of the frozen model, overlaid with gists where the batch holds them.

The model's own ``VocabParallelEmbedding`` gets :class:`GistEmbedding` as its class: weights, names and sharding stay.
Its forward calls a registered operator, so that torch.compile and CUDA graphs see one opaque call, and the operator
reads buffers that stay where they are for the life of the process.
"""

from dataclasses import dataclass

import torch
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from megacontext_vllm.errors import UnsupportedEngineError
from megacontext_vllm.kernels.span_gather import span_gather_


@dataclass
class SpanTable:
    """Which KV slots of the step under way hold gists.

    ``table``: int32 [KV slots], pool row or -1. ``layer``: the attention layer whose slot mapping speaks the same
    slots as the scheduler. ``graphs``: whether a CUDA graph may play again what one step launched, so that a step
    without gists has to launch the same. ``active``: whether this step has any.
    """

    pages: torch.Tensor
    table: torch.Tensor
    layer: str
    graphs: bool
    active: bool = False


OVERLAY = "megacontext_overlay"
OVERLAY_VERSION = 1
"""To be put into vLLM's ``additional_config`` where there is an overlay: its cache of compiled models is found by that,
and a model compiled without the overlay would show no gist, silently. Another number for another operator."""

# One model per worker process. A module global because the operator may only take tensors and plain values.
_span_table: SpanTable | None = None


def install_span_table(table: SpanTable | None) -> None:
    global _span_table
    _span_table = table


def _overlay(embeddings: torch.Tensor) -> None:
    spans = _span_table
    if spans is None:
        return
    if not is_forward_context_available():
        assert not spans.active, "this model looks embeddings up outside its forward pass; gists cannot be shown"
        return
    if not (spans.graphs or spans.active):
        return
    mapping = get_forward_context().slot_mapping
    assert not isinstance(mapping, list), "micro-batching is refused at start"
    slots = mapping.get(spans.layer)
    if slots is None:
        # A profiling run before there is a KV cache; with gists to show it would mean wrong tokens in their places.
        assert not spans.active, f"layer {spans.layer} has no slot mapping"
        return
    span_gather_(embeddings, spans.pages, spans.table, slots)


@torch.library.custom_op("megacontext::overlay_spans", mutates_args=("embeddings",))
def overlay_spans(embeddings: torch.Tensor) -> None:
    """Put gists into their places in ``[T, d]`` token embeddings (see :class:`SpanTable`)."""
    _overlay(embeddings)


@overlay_spans.register_fake
def _(embeddings: torch.Tensor) -> None:
    return None


class GistEmbedding(VocabParallelEmbedding):
    """A VocabParallelEmbedding that shows gists. Never constructed: a loaded layer is given this class."""

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        embeddings = super().forward(input_)
        torch.ops.megacontext.overlay_spans(embeddings)
        return embeddings

    def look_up(self, input_: torch.Tensor) -> torch.Tensor:
        """Plain token embeddings ``[*, d]``, without overlay. Collective under tensor parallelism."""
        return super().forward(input_)


def find_embedding(model: torch.nn.Module, vocab_size: int, hidden_size: int) -> VocabParallelEmbedding:
    """The one input-embedding layer of a model.

    Raises UnsupportedEngineError if there is none, or several and no telling which.
    """
    found = {
        id(module): module
        for module in model.modules()
        if isinstance(module, VocabParallelEmbedding)
        and not isinstance(module, ParallelLMHead)
        and module.embedding_dim == hidden_size
        and module.org_vocab_size >= vocab_size
    }
    if len(found) != 1:
        raise UnsupportedEngineError(
            f"{type(model).__name__} has {len(found)} input-embedding layers of width {hidden_size}; MegaContext needs "
            "exactly one. Serve this model without --plugin megacontext, or with megacontext.gist_net unset."
        )
    return next(iter(found.values()))


def overlay_embedding(layer: VocabParallelEmbedding) -> GistEmbedding:
    """Give a loaded embedding layer the class that shows gists."""
    if type(layer) is not VocabParallelEmbedding or not layer.reduce_results:
        raise UnsupportedEngineError(
            f"The embedding layer is a {type(layer).__name__}, not a plain VocabParallelEmbedding whose rows are whole "
            "on every rank; serve this model with megacontext.gist_net unset."
        )
    layer.__class__ = GistEmbedding
    assert isinstance(layer, GistEmbedding)
    return layer
