"""A reader in this process: any causal language model of transformers, whose probabilities are all at hand."""

import sys
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from megacontext_vllm.errors import ReaderError
from megacontext_vllm.eval.context import Context
from megacontext_vllm.eval.prompt import ChatFormat, Prompt
from megacontext_vllm.eval.readers.assembly import GIST, Assembly, assemble
from megacontext_vllm.eval.readers.base import Reader, Reading
from megacontext_vllm.eval.sample import Sample

REMEMBERED = 4096
"""Prompts whose outcome is kept: methods often show the same."""


@dataclass(frozen=True)
class _Judged:
    """Of each candidate its mean NLL (nats per token), and whether every token of it was the likeliest one."""

    losses: tuple[float, ...]
    greedy: tuple[bool, ...]
    seconds: float


class TransformersReader(Reader):
    """Prefills a prompt once and judges all candidates behind it.

    model_folder  what ``from_pretrained`` takes.
    dtype         of weights and arithmetic; losses are computed in float32.
    threads       CPU threads of torch, in this process from now on; None leaves them alone.
    device        None: a GPU if torch sees one.
    """

    def __init__(
        self,
        model_folder: Path | str,
        dtype: torch.dtype = torch.float32,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            model = AutoModelForCausalLM.from_pretrained(str(model_folder), dtype=dtype)
            # Histories are longer than any model; without this the tokenizer warns of each.
            self.chat = ChatFormat(AutoTokenizer.from_pretrained(str(model_folder), model_max_length=sys.maxsize))
        except (OSError, ValueError) as error:
            raise ReaderError(
                f"{model_folder} cannot be loaded as a causal language model of transformers: {error}\nGive the folder "
                "of a model with its tokenizer; 'make model' fetches the default one."
            ) from error
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.name = f"{Path(model_folder).name} (transformers, {str(dtype).removeprefix('torch.')})"
        self._remembered: OrderedDict[bytes, _Judged | float] = OrderedDict()

    @property
    def limit(self) -> int | None:
        """Entries that the model has positions for; None if it does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def embedding(self) -> NDArray[np.float32]:
        """Float32 ``[vocabulary, d]``: what the model's layers are given for each token; without rows for padding."""
        table, vocabulary = self.model.get_input_embeddings(), self.model.config.get_text_config().vocab_size
        with torch.inference_mode():
            return table(torch.arange(vocabulary, device=self.device)).float().cpu().numpy()

    def ask(self, prompt: Prompt, context: Context, sample: Sample) -> Reading:
        """Judge the candidates by likelihood; of equal losses the first candidate is preferred."""
        entries = assemble(prompt, context)
        candidates = [self.follow(sample.answer_start, text) for text in sample.candidates]
        key = entries.key(*(ids.tobytes() for ids in candidates))
        judged = self._recall(key)
        if not isinstance(judged, _Judged):
            judged = self._judge(entries, candidates)
            self._remember(key, judged)
        return Reading(
            choice=int(np.argmin(judged.losses)),
            exact=judged.greedy[sample.candidates.index(sample.answer)],
            answer=None,
            losses=judged.losses,
            prefill=len(entries.ids),
            seconds=judged.seconds,
        )

    def continue_text(self, prompt: Prompt, context: Context, sample: Sample) -> float:
        """Mean NLL of ``sample.target`` behind the prompt, nats per token."""
        assert sample.target is not None and len(sample.target)
        entries, target = assemble(prompt, context), sample.target.astype(np.int64)
        key = entries.key(b"continued", target.tobytes())
        loss = self._recall(key)
        if not isinstance(loss, float):
            self._check_length(len(entries.ids) + len(target))
            longer = Assembly(np.concatenate([entries.ids, target[:-1]]), entries.gists)
            with torch.inference_mode():
                logits = self.model(**self._inputs(longer), use_cache=False, logits_to_keep=len(target)).logits[0]
                loss = float(self._losses(logits, self._tensor(target)).mean())
            self._remember(key, loss)
        return loss

    def follow(self, start: str, text: str) -> NDArray[np.int64]:
        """Token ids of ``text`` as it follows ``start``, int64 ``[n]``."""
        # Some tokenizers mark the beginning of whatever they are given, so that text encoded alone has a token more.
        before, whole = self.chat.encode(start), self.chat.encode(start + text)
        joined = len(before) < len(whole) and np.array_equal(whole[: len(before)], before)
        ids = whole[len(before) :] if joined else self.chat.encode(text)
        assert len(ids), f"{text!r} has no tokens"
        return ids.astype(np.int64)

    @torch.inference_mode()
    def _judge(self, entries: Assembly, candidates: list[NDArray[np.int64]]) -> _Judged:
        begun = time.perf_counter()
        longest = max(len(ids) for ids in candidates)
        self._check_length(len(entries.ids) + longest)
        prefilled = self.model(**self._inputs(entries), use_cache=True, logits_to_keep=1)
        padded = torch.zeros(len(candidates), longest, dtype=torch.int64, device=self.device)
        for row, ids in zip(padded, candidates, strict=True):
            row[: len(ids)] = self._tensor(ids)
        logits = prefilled.logits.expand(len(candidates), -1, -1)
        if longest > 1:
            # What stands right of a token cannot change it in a causal model, so padding needs no mask.
            prefilled.past_key_values.batch_repeat_interleave(len(candidates))
            behind = self.model(input_ids=padded[:, :-1], past_key_values=prefilled.past_key_values, use_cache=True)
            logits = torch.cat([logits, behind.logits], dim=1)
        losses, greedy = [], []
        for row, ids, scores in zip(padded, candidates, logits, strict=True):
            real = slice(0, len(ids))
            losses.append(float(self._losses(scores[real], row[real]).mean()))
            greedy.append(bool((scores[real].argmax(dim=-1) == row[real]).all()))
        return _Judged(tuple(losses), tuple(greedy), time.perf_counter() - begun)

    def _losses(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """NLL in nats, float32 ``[n]``, of ``ids`` ``[n]`` under ``logits`` ``[n, vocabulary]``."""
        return torch.nn.functional.cross_entropy(logits.float(), ids, reduction="none")

    def _inputs(self, entries: Assembly) -> dict[str, torch.Tensor]:
        ids = self._tensor(entries.ids)
        if not len(entries.gists):
            return {"input_ids": ids[None]}
        is_gist = ids == GIST
        rows = self.model.get_input_embeddings()(ids.masked_fill(is_gist, 0)).clone()
        if rows.shape[1] != entries.gists.shape[1]:
            raise ReaderError(
                f"The gists have {entries.gists.shape[1]} values, the embeddings of {self.name} {rows.shape[1]}: "
                "use gists that were made for this model."
            )
        rows[is_gist] = self._tensor(entries.gists).to(rows.dtype)
        return {"inputs_embeds": rows[None]}

    def _tensor(self, array: NDArray[np.int64] | NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _check_length(self, length: int) -> None:
        if self.limit is not None and length > self.limit:
            raise ReaderError(
                f"{length} entries, and {self.name} has positions for {self.limit}: use a smaller budget, or a "
                "shorter history with methods that show all of it."
            )

    def _recall(self, key: bytes) -> _Judged | float | None:
        if key in self._remembered:
            self._remembered.move_to_end(key)
        return self._remembered.get(key)

    def _remember(self, key: bytes, outcome: _Judged | float) -> None:
        self._remembered[key] = outcome
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
