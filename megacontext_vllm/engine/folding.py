"""Answers longer than the engine has positions for: what was said first becomes history, and the answer goes on.

Where vLLM would end an answer because the engine's positions are used up, the request is set aside, its prompt and all
that was said are planned like any history, with the question and the end of the answer raw, and it comes back with that
Working Context for its prompt. To vLLM's workers it is a session that was updated, to the client one stream. It happens
at a token position, never at a time: the same request says the same, alone or among others.
"""

import logging
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreEventType
from vllm.v1.request import Request, RequestStatus

from megacontext_vllm.engine.answers import ANSWER
from megacontext_vllm.engine.held import Growing, go_on
from megacontext_vllm.engine.plan import Plan, PlanRequest
from megacontext_vllm.engine.request_options import RequestOptions
from megacontext_vllm.errors import MegaContextError
from megacontext_vllm.tree.nodes import BLOCK
from megacontext_vllm.tree.store.library import namespace_of

logger = logging.getLogger("vllm.megacontext")


class FoldingAnswers:
    """The part of the scheduler that does it; see ``scheduler.py`` for the rest."""

    if TYPE_CHECKING:
        requests: dict[str, Request]
        running: list[Request]
        waiting: Any
        deferred_waiting: set[Request]
        max_model_len: int
        growing: dict[str, Growing]
        plans: dict[str, Plan]
        _full: list[Request]
        _ended: list[Request]

        def _plan(self, plan_request: PlanRequest) -> Future[Plan]: ...
        def _hold(
            self,
            request: Request,
            plan_request: PlanRequest,
            future: Future[Plan],
            folding: bool = False,
            needed: bool = True,
        ) -> None: ...
        def _look(self, request: Request, growing: Growing) -> None: ...
        def _look_later(self, growing: Growing, said: int) -> None: ...
        def _forget_look(self, growing: Growing) -> None: ...
        def _release(self, tree: Any, discard: bool = False) -> None: ...
        def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None: ...
        def finish_requests(self, request_ids: Any, finished_status: RequestStatus) -> list[Request]: ...

    def _may_grow(self, request: Request, options: RequestOptions) -> None:
        """Keep what it takes to plan ``request`` anew while it is answered."""
        prompt = request.prompt_token_ids or []
        # Of a history that gets a plan, the plan has the tokens.
        tokens = np.array(prompt if len(prompt) <= self.max_model_len else [], dtype=np.uint32)
        # A quarter of the positions at least is for what is said until the next time: each time costs a prefill.
        window = max(min(options.window, self.max_model_len * 3 // 4), 4 * BLOCK)
        namespace = namespace_of(request.cache_salt)
        self.growing[request.request_id] = Growing(tokens, len(prompt), window, namespace, options.trace, options.fold)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], *args: Any, **kwargs: Any
    ) -> tuple[list[int], bool]:
        status = request.status
        new_token_ids, stopped = super()._update_request_with_output(  # type: ignore[misc]
            request, new_token_ids, *args, **kwargs
        )
        growing = self.growing.get(request.request_id)
        if growing is None:
            return new_token_ids, stopped
        full = stopped and request.status == RequestStatus.FINISHED_LENGTH_CAPPED
        if full and growing.folds and request.num_output_tokens < request.max_tokens:
            request.status = status
            self._full.append(request)
            return new_token_ids, False
        if not stopped:
            self._look(request, growing)
        return new_token_ids, stopped

    def _fold_full(self) -> None:
        """Take requests that have used up the engine's positions out of vLLM's queues and have them planned."""
        full, self._full = self._full, []
        for request in full:
            if request.is_finished():  # by what vLLM looked at after the length
                continue
            self._set_aside(request)
            growing = self.growing[request.request_id]
            self._forget_look(growing)
            plan_request = self._plan_request(request, growing, growing.said(request))
            self._hold(request, plan_request, self._plan(plan_request), folding=True)

    def _plan_request(self, request: Request, growing: Growing, said: int) -> PlanRequest:
        """What to plan when ``said`` tokens of the answer are said."""
        behind = request._output_token_ids[: growing.asked + said - len(growing.tokens)]
        return PlanRequest(
            request.request_id, growing.namespace, growing.tokens, growing.window, growing.trace, said, behind
        )

    def _set_aside(self, request: Request) -> None:
        if request.status == RequestStatus.RUNNING:
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())
            # It was no preemption: nobody should think that memory is short.
            request.num_preemptions -= 1
            if request.events and request.events[-1].type == EngineCoreEventType.PREEMPTED:
                request.events.pop()
        request.drop_stale_output = True  # what is in flight, whoever preempted it, saw what was shown before
        self.waiting.remove_request(request)
        self.deferred_waiting.discard(request)

    def _go_on(self, request: Request, plan: Plan) -> None:
        """Hand ``request`` back to vLLM with ``plan`` for its prompt."""
        before = self.plans.pop(request.request_id, None)
        if before is not None:
            self._release(before.tree)
        growing = self.growing[request.request_id]
        assert plan.tokens is not None
        # Since the plan was made, the answer may have gone on.
        answer = plan.going_on + request._output_token_ids[plan.length - len(growing.tokens) :]
        growing.tokens = plan.tokens[: plan.length - len(plan.going_on)]
        go_on(request, plan, growing.tokens[growing.asked :], answer)
        plan.tokens = None
        growing.changed = plan.length - growing.asked
        growing.renewed += 1
        self._look_later(growing, growing.changed)
        self.plans[request.request_id] = plan
        request.status = RequestStatus.WAITING  # a preempted one would keep its old prompt in the workers
        self.waiting.prepend_request(request)

    def _cut_short(self, request: Request, error: Exception) -> None:
        """End an answer that could not be folded where it is: what was said is worth more than an error."""
        logger.error(
            "MegaContext: the answer of request %s ends at the engine's length, since it could not be folded: %s",
            request.request_id,
            error,
            exc_info=not isinstance(error, MegaContextError),
        )
        self.finish_requests(request.request_id, RequestStatus.FINISHED_LENGTH_CAPPED)
        self._ended.append(request)

    def _send_answers(self, output: SchedulerOutput) -> None:
        """Tell the workers which part of a returning request is its answer: vLLM's older model runner does not know."""
        for new in output.scheduled_new_reqs:
            if new.prefill_token_ids is not None:  # the newer one's, which say it
                continue
            if new.req_id in self.growing and (said := self.requests[new.req_id]._output_token_ids):
                setattr(new, ANSWER, list(said))
