"""What a gisted context is compared with: the text itself, and the same model that was shown all of the text."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, cross_entropy, log_softmax, normalize

Head = Callable[[torch.Tensor], torch.Tensor]
ROWS_AT_ONCE = 256
"""Logits of so many targets exist at a time: at 49,152 tokens, 50 MB each for teacher, student and gradient."""


def head_loss(
    student: torch.Tensor, teacher: torch.Tensor | None, ids: torch.Tensor, head: Head, kl: float, nll: float
) -> torch.Tensor:
    """``kl · mean KL(teacher ‖ student) + nll · mean NLL(ids)`` over ``n`` targets, in nats; differentiable by student.

    student, teacher: hidden states ``[n, d]``; ids: int64 ``[n]``; head: ``[n, d]`` -> float32 logits ``[n, V]``.
    teacher may be None if kl is 0.
    """
    loss: torch.Tensor = _HeadLoss.apply(student, teacher, ids, head, kl, nll)
    return loss


class _HeadLoss(torch.autograd.Function):
    """Takes the gradient while the logits are there, chunk by chunk, instead of keeping ``[n, V]`` for later."""

    @staticmethod
    def forward(
        ctx: Any,
        student: torch.Tensor,
        teacher: torch.Tensor | None,
        ids: torch.Tensor,
        head: Head,
        kl: float,
        nll: float,
    ) -> torch.Tensor:
        assert teacher is not None or kl == 0
        total = student.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        for start in range(0, len(student), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            hidden = student[rows].detach()
            with torch.set_grad_enabled(gradient is not None):
                hidden.requires_grad_(gradient is not None)
                log_q = log_softmax(head(hidden), dim=-1)
                loss = log_q.new_zeros(())
                if nll:
                    loss = loss - nll * log_q.gather(1, ids[rows, None]).sum()
                if kl and teacher is not None:
                    with torch.no_grad():
                        log_p = log_softmax(head(teacher[rows]), dim=-1)
                        p = log_p.exp()
                        entropy = (p * log_p).sum()
                    loss = loss + kl * (entropy - (p * log_q).sum())
            if gradient is not None:
                (gradient[rows],) = torch.autograd.grad(loss, hidden)
            total += loss.detach()
        ctx.count = len(student)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total / len(student)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * (grad_outputs[0] / ctx.count).to(gradient.dtype), None, None, None, None, None


def hidden_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Ten times the mean cosine distance of hidden states ``[n, d]``, standardised as the teacher's are, n at least 2.

    As they are, a few dimensions that are large in every state make all of them look alike: at the same cost, without
    the standardising, gists learned a tenth less near by and half as much far away (docs/gistnet.md).
    """
    student, teacher = _one_size(student), _one_size(teacher)
    mean, spread = teacher.mean(dim=0), teacher.std(dim=0)
    spread = spread + 1e-3 * spread.mean()
    return 10 * (1 - cosine_similarity((student - mean) / spread, (teacher - mean) / spread, dim=-1)).mean()


def _one_size(states: torch.Tensor) -> torch.Tensor:
    """As the next layer's RMSNorm sees them, but for its weights, which standardising takes out again."""
    states = states.float()
    return states / states.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-6)


class ContrastiveHead(torch.nn.Module):
    """Whose block is this gist of? A linear view of the gist against what the model made of each block.

    Used in training only. Temperature as in SimCLR (arXiv:2002.05709).
    """

    TEMPERATURE = 0.1

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.view = torch.nn.Linear(dim, dim, bias=False)
        torch.nn.init.eye_(self.view.weight)

    def forward(self, gists: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """gists: ``[n, d]``; states: the blocks' mean hidden states ``[n, d]`` -> cross entropy of the right one."""
        keys = normalize((states - states.mean(dim=0)).float(), dim=-1)
        queries = normalize(self.view(gists), dim=-1)
        which = torch.arange(len(gists), device=gists.device)
        return cross_entropy(queries @ keys.T / self.TEMPERATURE, which)
