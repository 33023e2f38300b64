"""Renewing the focus of an answer while it is said: what it has come to speak of may stand in what is not shown.

Every ``refocus_tokens`` of the answer, prompt and answer so far are planned anew, in a thread, while the answer goes
on. A little later, at a position that only the tokens decide, the plan is looked at: where it shows enough that was not
shown, and the answer has gone on for long enough to pay for the prefill, it takes the place of the one before, as it
does when an answer is folded; else nothing happens, at no cost. A plan that is not there by then is waited for, so that
the same request says the same, whatever the load.
"""

import logging
from concurrent.futures import Future
from typing import TYPE_CHECKING

from vllm.v1.request import Request

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.engine.folding import FoldingAnswers
from megacontext_vllm.engine.held import Growing, HeldRequest, Look
from megacontext_vllm.engine.plan import Plan, PlanRequest
from megacontext_vllm.focus.swap import first_difference, gain, pays
from megacontext_vllm.tree.nodes import BLOCK

logger = logging.getLogger("vllm.megacontext")

LATER = BLOCK
"""Tokens of the answer between the look and the decision: time to make the plan in."""


class RefocusingAnswers(FoldingAnswers):
    """The part of the scheduler that does it."""

    if TYPE_CHECKING:
        settings: MegaContextConfig
        held: dict[str, HeldRequest]
        keeps_prefixes: bool
        _due: list[Request]

        def _give_up(self, future: Future[Plan], created: bool = False) -> None: ...

    def _look_later(self, growing: Growing, said: int) -> None:
        """The focus was made or looked at after ``said`` tokens: again after as many as the settings say."""
        every = self.settings.refocus_tokens
        growing.next_look = None if every is None else (said // every + 1) * every

    def _look(self, request: Request, growing: Growing) -> None:
        """``request`` has said more: plan it anew if that is due, or decide upon the plan that was made."""
        if growing.next_look is None:
            return
        said = growing.said(request)
        if growing.look is None:
            if said >= growing.next_look:
                plan_request = self._plan_request(request, growing, growing.next_look)
                growing.look = Look(plan_request, self._plan(plan_request))
        elif said >= growing.look.plan_request.answer + LATER:
            self._due.append(request)

    def _decide(self) -> None:
        """Put plans that are due in place, where they are worth it."""
        due, self._due = self._due, []
        for request in due:
            growing = self.growing.get(request.request_id)
            if growing is None or growing.look is None or request.request_id in self.held:
                continue
            look, growing.look = growing.look, None
            asked, future = look.plan_request, look.future
            made = future.done() and future.exception() is None
            if made and not self._is_worth(request, asked, future.result()):
                self._give_up(future)
                self._look_later(growing, asked.answer)
                continue
            self._set_aside(request)
            self._hold(request, asked, future, folding=True, needed=False)

    def _is_worth(self, request: Request, look: PlanRequest, plan: Plan) -> bool:
        before, growing = self.plans[request.request_id], self.growing[request.request_id]
        kept = first_difference(before.prompt, plan.prompt) if self.keeps_prefixes else 0
        entries = len(plan.prompt) + len(plan.going_on) + LATER - kept
        return pays(
            gain(before.context, plan.context), entries, look.answer - growing.changed, self.settings.refocus_share
        )

    def _stay(self, request: Request, looked: int, error: Exception | None = None) -> None:
        """``request``, set aside for what was found after ``looked`` tokens, goes on with what it was shown so far."""
        if error is not None:
            logger.error("MegaContext: the focus of request %s could not be renewed: %s", request.request_id, error)
        self._look_later(self.growing[request.request_id], looked)
        request.spec_token_ids = []  # drafts that came in meanwhile
        self.waiting.prepend_request(request)  # as a preempted one

    def _forget_look(self, growing: Growing) -> None:
        if growing.look is not None:
            self._give_up(growing.look.future)
            growing.look = None
