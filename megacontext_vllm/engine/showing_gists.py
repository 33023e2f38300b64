"""Where the gists of a step are: which positions are gists, which KV slots those are, which rows they come from."""

from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from megacontext_vllm.engine.gist_rows import GistRows
from megacontext_vllm.engine.kv_group import slot_group
from megacontext_vllm.engine.plan import Plan
from megacontext_vllm.engine.step_work import StepWork
from megacontext_vllm.tree.nodes import num_nodes


class ShowingGists:
    """The part of the scheduler that tells the workers; see ``scheduler.py`` for the rest."""

    if TYPE_CHECKING:
        requests: dict[str, Request]
        plans: dict[str, Plan]
        gist_rows: GistRows | None
        kv_cache_config: Any
        kv_cache_manager: Any

    def _show_gists(self, output: SchedulerOutput, work: StepWork) -> None:
        """Find the gist positions of this step and their rows."""
        slots: list[np.ndarray] = []
        wanted: list[tuple[str, int, int]] = []
        for request_id, scheduled in output.num_scheduled_tokens.items():
            plan = self.plans.get(request_id)
            if plan is None or not plan.gist_nodes:
                continue
            stop = self.requests[request_id].num_computed_tokens
            first, last = np.searchsorted(plan.gist_positions, (stop - scheduled, stop))
            if first == last:
                continue
            slots.append(self._kv_slots(request_id, plan.gist_positions[first:last]))
            for level, index in plan.gist_nodes[first:last]:
                # The request was admitted once every complete node of its history had its gist committed.
                wanted.append((str(plan.tree.gist_path(level)), index, num_nodes(plan.length, level)))
        if wanted:
            assert self.gist_rows is not None
            rows, work.fills = self.gist_rows.place(wanted)
            work.slots, work.rows = np.concatenate(slots), np.array(rows, dtype=np.int32)

    def _kv_slots(self, request_id: str, positions: np.ndarray) -> np.ndarray:
        index = slot_group(self.kv_cache_config)
        size = self.kv_cache_config.kv_cache_groups[index].kv_cache_spec.block_size
        blocks = np.asarray(self.kv_cache_manager.get_block_ids(request_id)[index], np.int64)
        return blocks[positions // size] * size + positions % size
