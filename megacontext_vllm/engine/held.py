"""What the scheduler keeps of requests that vLLM's queues do not know, or whose answers outgrow the engine."""

import copy
from concurrent.futures import Future
from dataclasses import dataclass

from vllm.v1.request import Request
from vllm.v1.utils import ConstantList

from megacontext_vllm.engine.folded_output import remember_folded
from megacontext_vllm.engine.ingest import TreeIngest
from megacontext_vllm.engine.plan import Plan, PlanRequest, Tokens


@dataclass
class HeldRequest:
    """A request that waits for its plan and its gists, outside vLLM's queues.

    ``created``: whether it made its tree. ``folding``: it was running before, and vLLM still knows it by its id.
    ``needed``: it cannot go on as it was, so that its plan is put in place whatever it shows.
    """

    request: Request
    plan_request: PlanRequest
    future: Future[Plan]
    plan: Plan | None = None
    ingest: TreeIngest | None = None
    created: bool = False
    folding: bool = False
    needed: bool = True
    held_since: float = 0.0


@dataclass(frozen=True)
class Look:
    """A plan made for an answer of which so many tokens were said (``plan_request.answer``)."""

    plan_request: PlanRequest
    future: Future[Plan]


@dataclass
class Growing:
    """A request whose answer may become longer than the engine has positions for, or whose focus is renewed meanwhile.

    ``tokens`` uint32 [n]: its prompt, and behind it what of its answer was folded into the history: no longer among the
    output tokens that vLLM knows. ``asked``: how many of them are the prompt. ``window``: the budget in entries that is
    left to the history when the answer is folded. ``folds``: whether it may be, once the positions are used up.
    ``next_look``: so many tokens into the answer its scores are renewed; None: never. ``look``: what was found then,
    and is decided upon a little later. ``changed``: so many tokens into it the plan was made that is shown now.
    ``renewed``: how many plans took the place of the one before.
    """

    tokens: Tokens
    asked: int
    window: int
    namespace: str
    trace: bool
    folds: bool
    next_look: int | None = None
    look: Look | None = None
    changed: int = 0
    renewed: int = 0

    def said(self, request: Request) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.asked + request.num_output_tokens


def give_prompt(request: Request, plan: Plan, answer: list[int]) -> list[int]:
    """Make the Working Context of ``plan`` the prompt of ``request``, which is in none of vLLM's queues.

    ``answer``: the output tokens that it has behind it. Returns the list that the request had of its tokens, its own.
    """
    before = request._all_token_ids
    # vLLM hashes _all_token_ids; everything that looks into the prompt itself gets ordinary tokens.
    request.prompt_token_ids = plan.worker_prompt
    request._all_token_ids = plan.prompt + answer
    request.all_token_ids = ConstantList(request._all_token_ids)
    request._output_token_ids[:] = answer
    request.num_prompt_tokens = len(plan.prompt)
    request.block_hashes.clear()
    request.update_block_hashes()
    return before


def go_on(request: Request, plan: Plan, folded_before: Tokens, answer: list[int]) -> None:
    """Give ``request``, which is in none of vLLM's queues, the prompt of ``plan`` and the end of its answer to go on.

    What is counted from the start of the answer (``max_tokens``, ``min_tokens``) is counted from what is left of it;
    penalties count ``folded_before``, uint32, all that was said before ``answer``, beside it.
    """
    folded = request.num_output_tokens - len(answer)
    give_prompt(request, plan, answer)
    request.spec_token_ids = []
    request.max_tokens -= folded
    params = copy.copy(request.sampling_params)
    assert params is not None
    params.max_tokens = request.max_tokens
    params.min_tokens = max(params.min_tokens - folded, 0)
    remember_folded(params, folded_before)
    request.sampling_params = params
