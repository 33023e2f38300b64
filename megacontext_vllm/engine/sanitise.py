"""Keep content ids out of what the workers get.

Worker code (penalties, bad words, counting kernels, speculative decoding) indexes tables by prompt token; an id above
the vocabulary would read or write out of bounds there. It gets the span's first token instead.
"""

from collections.abc import Mapping

from vllm.v1.core.sched.output import SchedulerOutput

from megacontext_vllm.engine.plan import Plan


def sanitise(output: SchedulerOutput, plans: Mapping[str, Plan]) -> None:
    """Replace content ids in every list of token ids that a SchedulerOutput carries. ``plans``: by request id."""
    with_gists = {request_id: plan for request_id, plan in plans.items() if plan.gist_nodes}
    if not with_gists:
        return
    for new in output.scheduled_new_reqs:
        plan = with_gists.get(new.req_id)
        # Its prompt_token_ids are the request's, which were replaced when it was admitted.
        if plan is not None and new.prefill_token_ids is not None:
            new.prefill_token_ids = plan.worker_prompt + list(new.prefill_token_ids[len(plan.prompt) :])
    cached = output.scheduled_cached_reqs
    for request_id, ids in cached.all_token_ids.items():
        plan = with_gists.get(request_id)
        if plan is not None:
            cached.all_token_ids[request_id] = plan.worker_prompt + list(ids[len(plan.prompt) :])
    for i, new_ids in enumerate(cached.new_token_ids):
        plan = with_gists.get(cached.req_ids[i])
        start = cached.num_computed_tokens[i]
        if plan is not None and start < len(plan.prompt):
            known = plan.worker_prompt[start : start + len(new_ids)]
            cached.new_token_ids[i] = known + list(new_ids[len(known) :])
