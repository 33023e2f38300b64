"""The model that gists are made for: loaded with transformers, frozen, run on embeddings."""

from pathlib import Path
from typing import Any

import torch

from megacontext_vllm.errors import ConfigError
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.nets.embedding_space import EmbeddingSpace
from megacontext_vllm.nets.model_fingerprint import table_fingerprint


class _Reached(Exception):
    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


class FrozenModel:
    """Any causal language model of transformers whose layers take input embeddings. Its weights never get a gradient.

    sink  the token that stands first in every context, in training as in serving (quality.md).
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.name = name
        # Dropout would only be on in training mode, which gradient checkpointing asks for.
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
        self.model = model.eval().requires_grad_(False)
        self.model.set_attn_implementation("sdpa")  # takes a mask of any shape
        self.table: Any = model.get_input_embeddings()
        self._body: Any = model.base_model
        self._whole: Any = self._body  # or its compiled form, which hooks would break
        self._head: Any = model.get_output_embeddings()
        self.layers: torch.nn.ModuleList | None = _find_layers(model)
        self.sink = ChatFormat(tokenizer).sink
        self.fingerprint = table_fingerprint(tokenizer, self.table.weight[: model.config.get_text_config().vocab_size])

    @classmethod
    def load(cls, folder: Path | str, dtype: torch.dtype, device: torch.device | str = "cpu") -> "FrozenModel":
        """Raises ConfigError if the folder is not a causal language model with its tokenizer."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--model {folder} cannot be loaded as a causal language model of transformers: {error}\nGive the "
                "folder of a model with its tokenizer; 'make model' fetches the default one."
            ) from error
        return cls(model.to(device), tokenizer, Path(folder).name)

    @property
    def dim(self) -> int:
        return int(self.table.weight.shape[1])

    @property
    def device(self) -> torch.device:
        device: torch.device = self.table.weight.device
        return device

    @property
    def limit(self) -> int | None:
        """Positions that the model knows; None if it does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @torch.no_grad()
    def space(self) -> EmbeddingSpace:
        return EmbeddingSpace.of(self.embed(torch.arange(self.table.weight.shape[0], device=self.device)))

    @torch.no_grad()
    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """``[...]`` -> ``[..., d]``, in the model's type."""
        embedded: torch.Tensor = self.table(ids)
        return embedded

    def hidden(
        self, embeds: torch.Tensor, positions: torch.Tensor | None = None, visible: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Last hidden states ``[B, T, d]``, as the head takes them, of embeddings ``[B, T, d]``.

        positions: int64 ``[T]``, None: from 0 on. visible: bool ``[T, T]``, None: causal.
        """
        states: torch.Tensor = self._run(self._whole, embeds, positions, visible).last_hidden_state
        return states

    def hidden_at(
        self,
        layer: int,
        embeds: torch.Tensor,
        positions: torch.Tensor | None = None,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What layer number ``layer`` puts out, ``[B, T, d]``; those above are not run."""
        assert self.layers is not None

        def stop(module: Any, given: Any, output: Any) -> None:
            raise _Reached(output[0] if isinstance(output, tuple) else output)

        handle = self.layers[layer].register_forward_hook(stop)
        try:
            self._run(self._body, embeds, positions, visible)
        except _Reached as reached:
            return reached.hidden
        finally:
            handle.remove()
        raise AssertionError(f"layer {layer} was not run")

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., d]`` -> float32 ``[..., V]``."""
        logits: torch.Tensor = self._head(hidden).float()
        return logits

    def use_checkpointing(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()

    def compile(self) -> None:
        self._whole = torch.compile(self._body, dynamic=True)

    def _run(
        self, body: Any, embeds: torch.Tensor, positions: torch.Tensor | None, visible: torch.Tensor | None
    ) -> Any:
        given: dict[str, Any] = {}
        if positions is not None:
            given["position_ids"] = positions.to(embeds.device)[None]
        if visible is not None:
            given["attention_mask"] = visible.to(embeds.device)[None, None]
        return body(inputs_embeds=embeds.to(self.table.weight.dtype), use_cache=False, **given)


def _find_layers(model: Any) -> torch.nn.ModuleList | None:
    number = model.config.get_text_config().num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == number)
    return next(lists, None)
