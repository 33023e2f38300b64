"""vLLM's scheduler, with histories: over-long requests are planned and ingested before they are admitted.

A request that fits goes straight to vLLM. A longer one is held outside vLLM's queues while its plan is made in a
thread and its gists in the workers; then its prompt is replaced by the Working Context and vLLM takes over. What
vLLM then schedules is the stock path, but for two things done to each SchedulerOutput: ids that stand for gists are
replaced before the workers see them, and the KV slots of these positions are attached.
"""

import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from megacontext_vllm.config import SECTION, parse_config
from megacontext_vllm.engine.description import WORKERS_ATTRIBUTE
from megacontext_vllm.engine.gist_rows import GistRows
from megacontext_vllm.engine.giving_way import let_go
from megacontext_vllm.engine.held import Growing, HeldRequest, give_prompt
from megacontext_vllm.engine.ingest import Ingest
from megacontext_vllm.engine.plan import Plan, PlanRequest
from megacontext_vllm.engine.refocusing import RefocusingAnswers
from megacontext_vllm.engine.request_options import RequestOptions, needs_working_context, outgrows
from megacontext_vllm.engine.sanitise import sanitise
from megacontext_vllm.engine.showing_gists import ShowingGists
from megacontext_vllm.engine.step_work import ATTRIBUTE, StepWork
from megacontext_vllm.engine.traces import write_trace
from megacontext_vllm.engine.wiring import make_planner
from megacontext_vllm.errors import MegaContextError, RequestError
from megacontext_vllm.tree.store.library import namespace_of

logger = logging.getLogger("vllm.megacontext")

# How long an idle engine loop sleeps for a plan; bounds what a request that arrives meanwhile waits.
IDLE_WAIT_SECONDS = 0.002


class MegaContextScheduling(ShowingGists, RefocusingAnswers):
    """Mixin over vLLM's Scheduler; see the two classes at the end of this file."""

    if TYPE_CHECKING:
        requests: dict[str, Request]
        finished_req_ids_dict: dict[int, set[str]] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        vllm_config = self.vllm_config  # type: ignore[attr-defined]
        self.settings = parse_config(vllm_config.additional_config[SECTION])
        self.window = self.settings.window_for(self.max_model_len)
        workers = getattr(vllm_config, WORKERS_ATTRIBUTE)
        tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        self.planner = make_planner(self.settings, tokenizer, workers)
        self.library = self.planner.library
        self.gist_rows = GistRows(workers.pool_pages) if workers.gist_fingerprint else None
        self.ingest = Ingest(self.settings.gist_tokens_per_step, workers.gist_fingerprint)
        self.held: dict[str, HeldRequest] = {}
        self.plans: dict[str, Plan] = {}
        self.growing: dict[str, Growing] = {}
        # A connector may be told of blocks that a request has given back by then; not tried yet.
        self.may_change = vllm_config.kv_transfer_config is None
        self.keeps_prefixes = bool(vllm_config.cache_config.enable_prefix_caching)
        self._full: list[Request] = []
        self._due: list[Request] = []
        self._ended: list[Request] = []  # outside vLLM's steps; their answers leave with the next one's outputs
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="megacontext-plan")

    # ---- requests in ----------------------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        try:
            options = RequestOptions.of(request.sampling_params, self.window)
        except RequestError as error:  # a front end that did not check; only this request may suffer
            self._fail(request, error)
            return
        if self.may_change and outgrows(request, options, self.max_model_len):
            self._may_grow(request, options)
        if not needs_working_context(request, options, self.max_model_len):
            super().add_request(request)  # type: ignore[misc]
            return
        assert request.request_id not in self.held, "duplicate request id"
        assert request.prompt_token_ids is not None
        plan_request = PlanRequest(
            request.request_id,
            namespace_of(request.cache_salt),
            request.prompt_token_ids,
            options.window,
            options.trace,
        )
        if self.may_change and self.settings.refocus_tokens is not None and request.request_id not in self.growing:
            self._may_grow(request, options)
        self._hold(request, plan_request, self._plan(plan_request))

    def _plan(self, plan_request: PlanRequest) -> Future[Plan]:
        return self._threads.submit(self.planner.plan, plan_request, gists=self.gist_rows is not None)

    def _hold(
        self,
        request: Request,
        plan_request: PlanRequest,
        future: Future[Plan],
        folding: bool = False,
        needed: bool = True,
    ) -> None:
        self.held[request.request_id] = HeldRequest(
            request, plan_request, future, folding=folding, needed=needed, held_since=time.perf_counter()
        )

    def _advance_held(self) -> None:
        """Move every held request as far as it can go: planned, ingested, admitted."""
        for held in list(self.held.values()):
            if held.plan is None:
                if not held.future.done():
                    continue
                try:
                    held.plan = held.future.result()
                    held.created |= held.plan.created
                except Exception as error:
                    del self.held[held.request.request_id]
                    if not held.needed:
                        self._stay(held.request, held.plan_request.answer, error)
                    else:
                        (self._cut_short if held.folding else self._fail)(held.request, error)
                    continue
                if not held.needed and not self._is_worth(held.request, held.plan_request, held.plan):
                    del self.held[held.request.request_id]
                    self._release(held.plan.tree, discard=held.created)
                    self._stay(held.request, held.plan_request.answer)
                    continue
                if held.plan.gist_nodes:
                    try:
                        held.ingest = self.ingest.watch(held.plan.tree, held.plan.length)
                    except (MegaContextError, OSError) as error:  # unusable gists that we may not replace
                        logger.error("MegaContext: %s", error)
                        self._plan_without_gists(held)
                        continue
                    if held.ingest.refresh is not None and self.gist_rows is not None:
                        # What is on the device may be the damage that was found on the disk, or an older net's.
                        self.gist_rows.forget(str(held.plan.tree.path))
            if held.ingest is not None and not held.ingest.covers(held.plan.length):
                if not held.ingest.failed:
                    continue
                self._plan_without_gists(held)
                continue
            self._admit(held)

    def _plan_without_gists(self, held: HeldRequest) -> None:
        assert held.plan is not None
        logger.error(
            "MegaContext: the gists of tree %s could not be made; request %s hides unexpanded spans instead.",
            held.plan.tree.tree_id,
            held.request.request_id,
        )
        tree = held.plan.tree
        held.plan, held.ingest = None, None
        held.future = self._threads.submit(self.planner.plan, held.plan_request, gists=False)
        self._release(tree)

    def _admit(self, held: HeldRequest) -> None:
        """Replace the prompt by the Working Context and hand the request to vLLM."""
        request, plan = held.request, held.plan
        assert plan is not None
        del self.held[request.request_id]
        if held.plan_request.trace:
            plan.seconds["held"] = time.perf_counter() - held.held_since
            renewed = self.growing[request.request_id].renewed + 1 if held.folding else 0
            self._threads.submit(write_trace, self.settings, held.plan_request, plan, renewed)
        if held.folding:
            self._go_on(request, plan)
            return
        if request.request_id in self.growing:
            assert plan.tokens is not None
            self.growing[request.request_id].tokens = plan.tokens
            self._look_later(self.growing[request.request_id], 0)
        plan.tokens = None
        self._threads.submit(let_go, give_prompt(request, plan, answer=[]))
        self.plans[request.request_id] = plan
        super().add_request(request)  # type: ignore[misc]

    def _fail(self, request: Request, error: Exception) -> None:
        """End a request that vLLM's queues do not know; the error leaves with the next step's outputs."""
        expected = isinstance(error, MegaContextError)
        logger.error("MegaContext: request %s failed: %s", request.request_id, error, exc_info=not expected)
        request.status = RequestStatus.FINISHED_ERROR
        self.growing.pop(request.request_id, None)
        self._note_finished(request)
        self._ended.append(request)

    # ---- steps ----------------------------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        jobs = []
        paused = self.pause_state != PauseState.UNPAUSED  # type: ignore[attr-defined]
        if not paused:  # where it sleeps, a worker has no weights to make gists with
            self._advance_held()
            self._drop_idle_ingests()
            jobs = self.ingest.next_jobs()
        output: SchedulerOutput = super().schedule(throttle_prefills)  # type: ignore[misc]
        work = StepWork(self.planner.model_fingerprint, jobs)
        self._show_gists(output, work)
        sanitise(output, self.plans)
        self._send_answers(output)
        if work:
            setattr(output, ATTRIBUTE, work)
        elif self.held and not (paused or self.running):
            self._wait_for_a_plan()
        return output

    def _drop_idle_ingests(self) -> None:
        """Stop making gists that no request waits for; what is missing is made when one does."""
        wanted = {str(held.plan.tree.path) for held in self.held.values() if held.ingest is not None and held.plan}
        self.ingest.keep(wanted)

    def _wait_for_a_plan(self) -> None:
        planning = [held.future for held in self.held.values() if held.plan is None]
        if planning:
            try:
                planning[0].exception(timeout=IDLE_WAIT_SECONDS)
            except TimeoutError:
                pass

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )
        work: StepWork | None = getattr(scheduler_output, ATTRIBUTE, None)
        if work is not None:
            self.ingest.executed(work.jobs)
        self._fold_full()
        self._decide()
        for request in self._ended:
            answer = EngineCoreOutput(
                request_id=request.request_id,
                new_token_ids=[],
                finish_reason=request.get_finished_reason(),
                events=request.take_events(),
                trace_headers=request.trace_headers,
            )
            if request.client_index not in outputs:
                outputs[request.client_index] = EngineCoreOutputs(outputs=[])
            outputs[request.client_index].outputs.append(answer)
        self._ended.clear()
        return outputs

    # ---- requests out ---------------------------------------------------------------------------------------------

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        if isinstance(request_ids, str):
            request_ids = [request_ids]
        elif request_ids is not None:
            request_ids = list(request_ids)
        finished: list[Request] = super().finish_requests(request_ids, finished_status)
        for request_id in list(self.held) if request_ids is None else request_ids:
            held = self.held.pop(request_id, None)
            if held is None:
                continue
            self._abandon(held)
            if held.folding:  # vLLM knew it, and has finished it
                continue
            held.request.status = finished_status
            self.growing.pop(request_id, None)
            self._note_finished(held.request)
            finished.append(held.request)
        return finished

    def _note_finished(self, request: Request) -> None:
        if self.finished_req_ids_dict is not None:
            self.finished_req_ids_dict[request.client_index].add(request.request_id)

    def _abandon(self, held: HeldRequest) -> None:
        """The client went away before its request was admitted: leave nothing behind that it made."""

        if held.plan is not None:
            self._release(held.plan.tree, discard=held.created)
        else:
            self._give_up(held.future, held.created)

    def _give_up(self, future: Future[Plan], created: bool = False) -> None:
        """Nobody wants this plan any more. ``created``: whether a plan before it made the tree."""

        def release(future: Future[Plan]) -> None:
            if future.cancelled() or future.exception() is not None:
                return
            plan = future.result()
            self._release(plan.tree, discard=created or plan.created)

        if not future.cancel():
            future.add_done_callback(release)

    def _release(self, tree: Any, discard: bool = False) -> None:
        """Let go of a plan's tree, in the planning thread: the library's lock and the disk may keep it waiting."""

        def let_go() -> None:
            try:
                (self.library.discard if discard else self.library.release)(tree)
            except (MegaContextError, OSError) as error:
                logger.warning("MegaContext: tree %s could not be put away: %s", tree.tree_id, error)

        self._threads.submit(let_go)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        growing = self.growing.pop(request.request_id, None)
        if growing is not None:
            self._forget_look(growing)
        plan = self.plans.pop(request.request_id, None)
        if plan is not None:
            self._release(plan.tree)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]

    def get_request_counts(self) -> tuple[int, int]:
        running, waiting = super().get_request_counts()  # type: ignore[misc]
        return running, waiting + len(self.held) + len(self._ended)

    def shutdown(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.held.clear()
        self.plans.clear()
        self.growing.clear()
        self.library.close()
        super().shutdown()  # type: ignore[misc]


class MegaContextScheduler(MegaContextScheduling, Scheduler):
    """Over vLLM's synchronous scheduler."""


class MegaContextAsyncScheduler(MegaContextScheduling, AsyncScheduler):
    """Over vLLM's asynchronous scheduler."""
