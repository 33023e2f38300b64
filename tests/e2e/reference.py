"""What the served model must say, computed without vLLM: transformers on the same ``inputs_embeds``.

The Working Context comes from the focus trace; everything else, gists included, is computed here from the tokens.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from megacontext_vllm.nets.gistnet import GistNet, RandomGistNet

BLOCK = 32


class Reference:
    def __init__(self, model_dir: Path, net: GistNet | int) -> None:
        """``net``: what makes the gists, or the seed of an untrained one."""
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
        self.table = self.model.get_input_embeddings().weight.detach()
        self.net = RandomGistNet(self.table.shape[1], net) if isinstance(net, int) else net

    def gist(self, tokens: torch.Tensor, level: int) -> torch.Tensor:
        """``[d]`` gist of a node of ``level`` from all tokens under it, ``[32**level]``."""
        rows = self.table[tokens]
        for n in range(1, level + 1):
            rows = self.net(rows.view(-1, BLOCK, rows.shape[-1]), n)
        assert rows.shape[0] == 1
        return rows[0]

    @torch.inference_mode()
    def working_context(
        self, tokens: list[int], entries: list[dict[str, Any]], gap_ids: list[int]
    ) -> tuple[torch.Tensor, list[int]]:
        """``[1, W, d]`` embeddings of the entries, and the ids that penalties count ([W])."""
        rows, ids = [], []
        for entry in entries:
            under = tokens[entry["start"] : entry["end"]]
            if entry["kind"] == "gist":
                rows.append(self.gist(torch.tensor(under), entry["level"])[None])
                ids.append(under[0])
            else:
                shown = under if entry["kind"] == "raw" else gap_ids
                rows.append(self.table[torch.tensor(shown)])
                ids.extend(shown)
        return torch.cat(rows)[None], ids

    @torch.inference_mode()
    def greedy(
        self, embeddings: torch.Tensor, ids: list[int], steps: int, repetition_penalty: float = 1.0
    ) -> list[int]:
        seen, answer = set(ids), []
        out = self.model(inputs_embeds=embeddings, use_cache=True)
        for _ in range(steps):
            logits = out.logits[0, -1].clone()
            if repetition_penalty != 1.0:
                index = torch.tensor(sorted(seen))
                chosen = logits[index]
                logits[index] = torch.where(chosen > 0, chosen / repetition_penalty, chosen * repetition_penalty)
            token = int(logits.argmax())
            answer.append(token)
            seen.add(token)
            out = self.model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
        return answer

    def greedy_tokens(self, tokens: list[int], steps: int) -> list[int]:
        return self.greedy(self.table[torch.tensor(tokens)][None], tokens, steps)
