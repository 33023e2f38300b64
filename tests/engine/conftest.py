"""A tiny model folder, and a rig that drives our schedulers by hand: no engine, no model, real files."""

import copy
import os
import pickle
import shutil
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from megacontext_vllm.engine.answers import ANSWER
from megacontext_vllm.engine.description import WORKERS_ATTRIBUTE, WorkerDescription
from megacontext_vllm.engine.gist_rows import pages_needed
from megacontext_vllm.engine.scheduler import MegaContextAsyncScheduler
from megacontext_vllm.engine.step_work import ATTRIBUTE
from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.files.level_file import write_rows
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.nodes import span

BLOCK_SIZE, VOCABULARY, NET = 16, 49152, bytes(range(16))


@pytest.fixture(scope="session")
def tiny_model(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one small layer, for dummy weights, with a real tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-model")
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model_dir / name, folder / name)
    return folder


def node_row(tree: str | Path, level: int, index: int) -> tuple[float, float, float]:
    """What the fake worker takes for a gist: it names its node and the tokens under it."""
    with closing(LevelReader(Path(tree) / "LOD0.ctx")) as reader:
        under = reader.rows(*span(level, index))
    return float(level), float(index), float(zlib.crc32(under.tobytes()) % 1_000_003)


def spoken(ordinal: int) -> int:
    """What the fake model says as its ``ordinal``-th token of an answer."""
    return 1000 + ordinal % 1000


class FakeWorker:
    """Holds what a worker holds, executes StepWork late, and checks all that a worker relies on."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.blocks: dict[str, list[int]] = {}
        self.pages = np.full((scheduler.gist_pages_at_start * 32, 3), np.nan, np.float32)
        self.kv: dict[int, tuple[int, int]] = {}  # slot -> (position, id) that its KV was computed for
        self.broken = False
        self.seen_prompts: dict[str, list[list[int]]] = defaultdict(list)  # as the worker saw them
        self.prompt_lengths: dict[str, list[int]] = defaultdict(list)
        self.resumed: list[str] = []
        self.spans_shown: dict[str, int] = defaultdict(int)
        self.nodes_made = 0

    def receive(self, output: Any) -> tuple[Any, dict[int, tuple[float, float, float]]]:
        """At schedule time: the copy that travels, and by slot the node it must show."""
        computed = {}
        for new in output.scheduled_new_reqs:
            if new.req_id in self.blocks:
                self.resumed.append(new.req_id)
            self.blocks[new.req_id] = list(new.block_ids[0])
            computed[new.req_id] = new.num_computed_tokens
            visible = new.prefill_token_ids
            if visible is None:  # vLLM's first model runner, which is told the rest beside
                visible = new.prompt_token_ids + getattr(new, ANSWER, [])
            self.prompt_lengths[new.req_id].append(len(new.prompt_token_ids))
            assert visible[: len(new.prompt_token_ids)] == new.prompt_token_ids
            self.seen_prompts[new.req_id].append(list(visible))
        cached = output.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            if request_id in cached.resumed_req_ids:
                self.resumed.append(request_id)
                self.blocks[request_id] = []
            self.blocks[request_id] += (cached.new_block_ids[i] or ([],))[0]
            computed[request_id] = cached.num_computed_tokens[i]
            if request_id in cached.all_token_ids:
                self.seen_prompts[request_id].append(list(cached.all_token_ids[request_id]))
        visible = [*(ids for seen in self.seen_prompts.values() for ids in seen), *cached.new_token_ids]
        assert max((max(ids) for ids in visible if ids), default=0) < VOCABULARY, "a content id reached the worker"

        expected = {}
        for request_id, count in output.num_scheduled_tokens.items():
            plan, start = self.scheduler.plans.get(request_id), computed[request_id]
            request = self.scheduler.requests[request_id]
            growing = self.scheduler.growing.get(request_id)
            folded = len(growing.tokens) - growing.asked if growing and growing.tokens.size else 0
            ids = request.all_token_ids[: min(start + count, request.num_prompt_tokens)]
            answered = range(start + count - request.num_prompt_tokens)  # not known to the scheduler yet, if late
            ids = [*ids, *(spoken(folded + i) for i in answered)]
            for position, token in enumerate(ids):  # what is not computed now was computed for the same content
                slot = self.blocks[request_id][position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
                if position >= start:
                    self.kv[slot] = (position, token)
                assert self.kv[slot] == (position, token), "a hit on the cache of other content"
            for position, (level, index) in zip(plan.gist_positions, plan.gist_nodes) if plan else ():
                if start <= position < start + count:
                    slot = self.blocks[request_id][position // BLOCK_SIZE] * BLOCK_SIZE + int(position) % BLOCK_SIZE
                    expected[slot] = node_row(plan.tree.path, level, index)
                    self.spans_shown[request_id] += 1
        return pickle.loads(pickle.dumps(output)), expected

    def execute(self, output: Any, expected: dict[int, tuple[float, float, float]]) -> None:
        work = getattr(output, ATTRIBUTE, None)
        slots = [] if work is None else work.slots.tolist()
        assert sorted(slots) == sorted(expected), "exactly the slots of this step's gists"
        if work is None:
            return
        assert sum(job.stop - job.start for job in work.jobs) * 32 <= self.scheduler.settings.gist_tokens_per_step
        for job in () if self.broken else work.jobs:
            path = Path(job.tree_path) / f"LOD{job.level}.ctx"
            header = Header(job.level, RowType.FLOAT32, 3, 0, work.model_fingerprint, NET)
            try:
                rows = [node_row(job.tree_path, job.level, i) for i in range(job.start, job.stop)]
                write_rows(path, header, job.start, np.array(rows, np.float32))
                self.nodes_made += len(rows)
            except (StoreError, FileNotFoundError):
                pass  # as in the product: the tree may be gone
        for fill in work.fills:
            with closing(LevelReader(Path(fill.path))) as reader:
                self.pages[fill.rows] = reader.rows(0, reader.count)[fill.gists]
        for slot, row in zip(slots, work.rows.tolist(), strict=True):
            assert tuple(self.pages[row].tolist()) == expected[slot], "the row of another node"


class Rig:
    """One scheduler with its fake worker; outputs come back ``late`` steps after they were scheduled."""

    def __init__(self, scheduler: Any, late: int) -> None:
        self.scheduler, self.late = scheduler, late
        self.worker = FakeWorker(scheduler)
        self.under_way: deque[tuple[Any, Any, dict[str, bool]]] = deque()
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.finished: dict[str, list[Any]] = defaultdict(list)
        self.told_finished: list[str] = []  # what load balancers count
        self.hasher = get_request_block_hasher(BLOCK_SIZE, sha256)

    def add(
        self, request_id: str, prompt: list[int], max_tokens: int = 4, salt: str | None = None, **xargs: Any
    ) -> Request:
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, extra_args=xargs or None)
        request = Request(request_id, list(prompt), params, None, cache_salt=salt, block_hasher=self.hasher)
        self.scheduler.add_request(request)
        return request

    def step(self) -> Any:
        output = self.scheduler.schedule()
        received, expected = self.worker.receive(output)
        samples = {i: not self.scheduler.requests[i].is_prefill_chunk for i in output.num_scheduled_tokens}
        self.under_way.append((output, (received, expected), samples))
        if len(self.under_way) > self.late:
            self.deliver()
        return output

    def deliver(self) -> None:
        output, (received, expected), samples = self.under_way.popleft()
        self.worker.execute(received, expected)
        ids = list(samples)
        sampled = [[spoken(len(self.tokens[i]))] if samples[i] else [] for i in ids]
        result = ModelRunnerOutput(ids, {name: i for i, name in enumerate(ids)}, sampled)
        for answers in self.scheduler.update_from_output(output, result).values():
            self.told_finished += answers.finished_requests or ()
            for answer in answers.outputs:
                self.tokens[answer.request_id] += answer.new_token_ids
                if answer.finish_reason is not None:
                    self.finished[answer.request_id].append(answer.finish_reason)

    def run(self, until: Callable[[], bool] = lambda: False, limit: int = 20_000) -> None:
        """Steps as the engine's loop does them, until ``until`` or until all is done."""
        for _ in range(limit):
            if until():
                return
            if self.scheduler.has_requests():
                self.step()
            elif self.under_way:
                self.deliver()
            else:
                self.settle()
                return
        raise AssertionError("it never came to an end")

    def assert_clean(self) -> None:
        """Nothing of any request is left but stored trees."""
        scheduler = self.scheduler
        self.run()
        assert not (scheduler.held or scheduler.plans or scheduler.requests or scheduler.running)
        assert scheduler.get_request_counts() == (0, 0) and not scheduler.has_requests()
        assert scheduler.library.open_trees() == 0
        pool = scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # one is vLLM's null block
        assert len(scheduler.ingest) == 0

    def settle(self) -> None:
        """Wait for the planning thread, which also puts trees away."""
        self.scheduler._threads.submit(lambda: None).result()

    def trees(self) -> list[Path]:
        return sorted(path.parent for path in self.scheduler.settings.store.glob("trees/*/*/meta.json"))


@pytest.fixture(scope="session")
def async_config(tiny_model: Path) -> Any:
    init_none_hash(sha256)
    config = EngineArgs(
        model=str(tiny_model),
        load_format="dummy",
        max_model_len=512,
        max_num_batched_tokens=128,
        max_num_seqs=4,
        block_size=BLOCK_SIZE,
        enforce_eager=True,
    ).create_engine_config()
    config.scheduler_config.async_scheduling = True  # the CPU platform turned it off
    return config


@pytest.fixture
def make_rig(async_config: Any, tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """``make_rig(late=1, blocks=200, caching=True, gists=True, v2=False, **megacontext)``"""
    rigs = []

    def make(
        late: int = 1, blocks: int = 200, caching: bool = True, gists: bool = True, v2: bool = False, **section: Any
    ) -> Rig:
        config = copy.deepcopy(async_config)
        config.cache_config.num_gpu_blocks = blocks
        config.cache_config.enable_prefix_caching = caching
        # LensNet takes seconds to load, for every rig anew, and what is found is not the matter here.
        settings = {"store": str(tmp_path / "store"), "lens": "lexical", "gist_tokens_per_step": 1024, **section}
        config.additional_config = {"megacontext": settings}
        pages = pages_needed(128)
        description = WorkerDescription(bytes(16), NET if gists else None, False, pages if gists else 0)
        object.__setattr__(config, WORKERS_ATTRIBUTE, description)
        spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=32, dtype=torch.float32)
        group = KVCacheGroupSpec(["layer"], spec)
        scheduler = MegaContextAsyncScheduler(
            config,
            KVCacheConfig(blocks, [], [group]),
            StructuredOutputManager(config),
            BLOCK_SIZE,
            include_finished_set=True,
        )
        scheduler.use_v2_model_runner = v2
        scheduler.gist_pages_at_start = pages
        rigs.append(Rig(scheduler, late))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.scheduler.shutdown()
