"""The worker's side of the gist path on the CPU, with a small embedding layer and real files."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megacontext_vllm.engine import gist_pool
from megacontext_vllm.engine.gist_pool import GistPool, rows_to_tensor, tensor_to_rows
from megacontext_vllm.engine.step_work import GistFill, GistJob, StepWork
from megacontext_vllm.errors import MegaContextError
from megacontext_vllm.nets.gistnet import RandomGistNet
from megacontext_vllm.tree.files.durability import NEVER
from megacontext_vllm.tree.files.header import HEADER_BYTES, Header, RowType
from megacontext_vllm.tree.files.level_file import LevelWriter
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.gists import begin_refresh, finish
from megacontext_vllm.tree.tree import MegaContextTree

MODEL = bytes(range(16))
DIM, VOCABULARY, SLOTS = 24, 500, 64
LENGTH = 2 * 32**2 + 100
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Embedding(torch.nn.Module):
    """What the pool uses of a GistEmbedding; the overlaid forward must never be asked for gists."""

    embedding_dim = DIM

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        table = torch.randn(VOCABULARY, DIM, generator=torch.Generator().manual_seed(0))
        self.weight = torch.nn.Parameter(table.to(dtype), requires_grad=False)
        self.looked_up = 0

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        assert ids.dim() == 1 and ids.dtype == torch.int64
        self.looked_up += len(ids)
        return self.weight[ids]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[MegaContextTree]:
    tree = MegaContextTree.create(tmp_path / "t", tree_id="t", namespace="default", model_fingerprint=MODEL)
    tree.append(np.random.default_rng(0).integers(0, VOCABULARY, LENGTH, dtype=np.uint32))
    yield tree
    tree.close()


def make_pool(dtype: torch.dtype = torch.float32, *, writes: bool = True, bound: bool = True) -> GistPool:
    pool = GistPool(RandomGistNet(DIM, 5), Embedding(dtype), 4, writes=writes)  # type: ignore[arg-type]
    if bound:
        pool.bind(SLOTS, "layer", graphs=False)
    return pool


def work(**parts: object) -> StepWork:
    return StepWork(MODEL, **parts)  # type: ignore[arg-type]


def job(tree: MegaContextTree, level: int, start: int, stop: int) -> GistJob:
    tokens = tree.tokens(start * 32, stop * 32).reshape(-1, 32).copy() if level == 1 else None
    return GistJob(str(tree.path), level, start, stop, tokens)


def fill(path: str, start: int, stop: int, row: int) -> GistFill:
    """Into neighbouring rows."""
    return GistFill(path, np.arange(start, stop), np.arange(row, row + stop - start))


def make_all(pool: GistPool, tree: MegaContextTree) -> None:
    """Two levels, in several jobs and steps."""
    pool.run(work(jobs=[job(tree, 1, 0, 5)]))
    pool.run(work(jobs=[job(tree, 1, 5, 40), job(tree, 2, 0, 1)]))
    pool.run(work(jobs=[job(tree, 1, 40, 67)]))
    pool.run(work(jobs=[job(tree, 2, 1, 2)]))


def expected_gists(pool: GistPool, tree: MegaContextTree) -> tuple[torch.Tensor, torch.Tensor]:
    """LOD1 and LOD2, straight from the tokens, rounded where the file rounds."""
    ids = torch.from_numpy(tree.tokens(0, 67 * 32).astype(np.int64)).view(-1, 32)
    first = pool.net(pool.embedding.weight[ids].float(), 1).to(pool.dtype)
    return first, pool.net(first[:64].float().view(2, 32, DIM), 2).to(pool.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_jobs_write_the_nets_gists(tree: MegaContextTree, dtype: torch.dtype) -> None:
    pool = make_pool(dtype)
    make_all(pool, tree)
    for level, expected in zip((1, 2), expected_gists(pool, tree), strict=True):
        with closing(LevelReader(tree.gist_path(level))) as reader:
            assert reader.count == len(expected)
            assert (reader.header.model_fingerprint, reader.header.gist_fingerprint) == (MODEL, pool.net.fingerprint)
            assert reader.header.dtype.name == str(dtype).removeprefix("torch.").upper()
            rows = rows_to_tensor(reader.rows(0, reader.count), dtype)
        # A model in bfloat16 has its gists computed in it, too, which rounds more than the rows in the end.
        most = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
        wrong = (rows.double() - expected.double()).norm(dim=1) / expected.double().norm(dim=1)
        assert float(wrong.max()) < most, wrong


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fills_put_committed_rows_where_they_belong(tree: MegaContextTree, dtype: torch.dtype) -> None:
    pool = make_pool(dtype)
    make_all(pool, tree)
    first, second = (str(tree.gist_path(level)) for level in (1, 2))
    pool.run(work(fills=[fill(first, 32, 40, 64), fill(second, 0, 2, 0)]))
    pool.run(work(fills=[GistFill(first, np.arange(40, 64), np.arange(95, 71, -1))]))  # in whatever rows there are
    pool.pages[2, 8:] = pool.pages[2, 8:].flip(0)
    for path, rows, place in ((first, (32, 64), pool.pages[2]), (second, (0, 2), pool.pages[0, :2])):
        with closing(LevelReader(Path(path))) as reader:
            assert torch.equal(place, rows_to_tensor(reader.rows(*rows), dtype)), "bit for bit"
    assert not pool.pages[1].any() and not pool.pages[3].any() and not pool.pages[0, 2:].any()
    assert pool.pages[2].dtype == dtype and pool.pages[2].any(dim=1).all()


def test_a_damaged_page_is_shown_as_zeros_and_the_others_as_they_are(
    tree: MegaContextTree, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    make_all(pool, tree)
    path = tree.gist_path(1)
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + 40 * DIM * 4)
        file.write(b"\xff\xff")
    pool.run(work(fills=[fill(str(path), 0, 67, 10)]))
    with closing(LevelReader(path)) as reader:
        expected = rows_to_tensor(reader.rows(0, 67), torch.float32).clone()
    expected[32:64] = 0
    assert torch.equal(pool.pages.view(-1, DIM)[10:77], expected) and "shows zeros" in caplog.text


def test_of_a_file_that_ends_too_soon_nothing_is_shown(
    tree: MegaContextTree, caplog: pytest.LogCaptureFixture
) -> None:
    """Whose they are is asked behind the reading, and was not."""
    pool = make_pool()
    make_all(pool, tree)
    pool.pages[:] = 1
    pool.run(work(fills=[fill(str(tree.gist_path(1)), 0, 80, 10)]))
    assert "shows zeros" in caplog.text and not pool.pages.view(-1, DIM)[10:90].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_round_trip_bit_for_bit(dtype: torch.dtype) -> None:
    gists = torch.tensor([[0.0, -0.0, 1 / 3, -1e-7, 65504.0, 6e-8]]).to(dtype)
    rows = tensor_to_rows(gists)
    assert rows.dtype == RowType[str(dtype).removeprefix("torch.").upper()].numpy
    assert torch.equal(rows_to_tensor(rows, dtype).view(torch.uint8), gists.view(torch.uint8))


@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("served", DTYPES, ids=str)
def test_a_tree_that_was_served_in_another_type(
    tree: MegaContextTree, stored: torch.dtype, served: torch.dtype
) -> None:
    """The fingerprints do not name the type: gists of one are read, and continued, by an engine of another."""
    before = make_pool(stored)
    before.run(work(jobs=[job(tree, 1, 0, 40)]))
    pool = make_pool(served)
    pool.run(work(jobs=[job(tree, 1, 40, 67), job(tree, 2, 0, 1)]))
    assert (tree.gist_count(1), tree.gist_count(2)) == (67, 1)
    path = str(tree.gist_path(1))
    pool.run(work(fills=[fill(path, 32, 64, 32), fill(str(tree.gist_path(2)), 0, 1, 96)]))
    first, second = expected_gists(before, tree)
    torch.testing.assert_close(pool.pages[1].float(), first[32:64].float(), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(pool.pages[3, 0].float(), second[0].float(), rtol=3e-2, atol=3e-2)


def test_the_table_holds_one_steps_spans(tree: MegaContextTree, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool()
    launched = []
    monkeypatch.setattr(gist_pool, "span_gather_", lambda *given: launched.append([x.dtype for x in given]))
    spans = pool.bind(SLOTS, "layer", graphs=False)
    assert launched == [[pool.dtype, pool.dtype, torch.int32, torch.int64]], "compiled before it is needed"
    assert spans is pool.spans and spans.pages is pool.pages and spans.table.shape == (SLOTS,)
    table = spans.table  # CUDA graphs hold this very tensor

    def shown() -> dict[int, int]:
        assert spans.table is table
        return {slot: row for slot, row in enumerate(table.tolist()) if row != -1}

    pool.run(work(slots=np.array([3, 9, 63]), rows=np.array([0, 127, 40], np.int32)))
    assert shown() == {3: 0, 9: 127, 63: 40} and spans.active
    pool.run(work(slots=np.array([9]), rows=np.array([1], np.int32)))
    assert shown() == {9: 1} and spans.active
    pool.run(work(fills=[]))
    assert shown() == {} and not spans.active
    pool.run(work(slots=np.array([5]), rows=np.array([1], np.int32)))
    pool.run(None)
    assert shown() == {} and not spans.active
    pool.run(None)
    assert shown() == {}


def test_a_rank_that_does_not_write_still_takes_part(tree: MegaContextTree) -> None:
    writer, reader = make_pool(), make_pool(writes=False)
    jobs = [job(tree, 1, 0, 40)]
    reader.run(work(jobs=jobs))
    assert tree.gist_count(1) == 0 and not tree.gist_path(1).exists()
    assert reader.embedding.looked_up == 40 * 32, "the look-up is collective"
    writer.run(work(jobs=jobs))
    reader.run(work(jobs=[job(tree, 2, 0, 1)]))
    assert not tree.gist_path(2).exists()
    fills = [fill(str(tree.gist_path(1)), 0, 32, 0)]
    writer.run(work(fills=fills))
    reader.run(work(fills=fills))
    assert torch.equal(writer.pages, reader.pages) and writer.pages[0].any()


def test_a_write_that_fails_is_logged_and_the_step_goes_on(
    tree: MegaContextTree, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    pool.run(work(jobs=[job(tree, 1, 0, 32)]))
    pool.run(work(jobs=[job(tree, 1, 40, 50)]))  # does not continue the file
    assert tree.gist_count(1) == 32
    assert "could not write gists of level 1" in caplog.text
    caplog.clear()
    first, second = job(tree, 1, 32, 40), job(tree, 2, 0, 1)
    shutil.rmtree(tree.path)
    pool.run(work(jobs=[first, second], slots=np.array([1]), rows=np.array([2], np.int32)))
    assert "level 1" in caplog.text and "level 2" in caplog.text
    assert pool.spans is not None and pool.spans.table[1] == 2
    assert not tree.path.exists()


def test_engines_of_one_store_make_the_same_gists(tree: MegaContextTree, caplog: pytest.LogCaptureFixture) -> None:
    """Each may find that the other was first with all of a job, with a part of it, or while it was computing."""
    one, other = make_pool(), make_pool()
    one.run(work(jobs=[job(tree, 1, 0, 20)]))
    seen: list[int] = []
    other.net.register_forward_pre_hook(lambda net, given: seen.append(len(given[0])))
    other.run(work(jobs=[job(tree, 1, 0, 15)]))
    assert seen == [], "nothing is computed that is there"
    other.run(work(jobs=[job(tree, 1, 15, 30)]))
    assert tree.gist_count(1) == 30

    def meanwhile(net: torch.nn.Module, given: tuple[torch.Tensor, int]) -> None:
        hook.remove()
        one.run(work(jobs=[job(tree, 1, 30, 64)]))

    hook = other.net.register_forward_pre_hook(meanwhile)
    other.run(work(jobs=[job(tree, 1, 30, 40)]))
    assert tree.gist_count(1) == 64
    with ThreadPoolExecutor(2) as threads:
        jobs = [job(tree, 1, 64, 67), job(tree, 2, 0, 2)]
        list(threads.map(lambda pool: pool.run(work(jobs=jobs)), (one, other)))
    assert not caplog.records, caplog.text
    for level, expected in zip((1, 2), expected_gists(one, tree), strict=True):
        with closing(LevelReader(tree.gist_path(level))) as reader:
            rows = rows_to_tensor(reader.rows(0, reader.count), torch.float32)
        assert float(((rows - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 1e-6


def test_gists_of_another_net_are_not_taken_for_ones_own(
    tree: MegaContextTree, caplog: pytest.LogCaptureFixture
) -> None:
    make_pool().run(work(jobs=[job(tree, 1, 0, 20)]))
    other = GistPool(RandomGistNet(DIM, 6), Embedding(torch.float32), 4, writes=True)  # type: ignore[arg-type]
    other.bind(SLOTS, "layer", graphs=False)
    for first, last in ((0, 15), (0, 30), (20, 30)):
        caplog.clear()
        other.run(work(jobs=[job(tree, 1, first, last)]))
        assert "could not write gists of level 1" in caplog.text
    assert tree.gist_count(1) == 20


def test_a_file_that_was_begun_in_another_type(tree: MegaContextTree, caplog: pytest.LogCaptureFixture) -> None:
    """Its engine was killed between the header and the first gists."""
    pool = make_pool()
    header = Header(1, RowType.BFLOAT16, DIM, 0, MODEL, pool.net.fingerprint)
    LevelWriter(tree.gist_path(1), header, NEVER).close()
    pool.run(work(jobs=[job(tree, 1, 0, 32)]))
    assert not caplog.records and tree.gist_count(1) == 32


def test_gists_that_another_net_makes_again_are_not_shown(
    tree: MegaContextTree, caplog: pytest.LogCaptureFixture
) -> None:
    pool, net = make_pool(), RandomGistNet(DIM, 6)
    other = GistPool(net, Embedding(torch.float32), 4, writes=True)  # type: ignore[arg-type]
    other.bind(SLOTS, "layer", graphs=False)
    pool.run(work(jobs=[job(tree, 1, 0, 64)]))
    path = str(tree.gist_path(1))
    begin_refresh(tree.path, net.fingerprint)
    other.run(work(jobs=[replace(job(tree, 1, 0, 32), again=True)]))
    pool.run(work(fills=[fill(path, 32, 64, 32)]))
    assert not caplog.records and pool.pages[1].any(dim=1).all(), "what is still this net's is shown"
    pool.pages[2] = 1
    pool.run(work(fills=[fill(path, 16, 48, 64)]))
    assert "another GistNet's" in caplog.text and not pool.pages[2].any()
    caplog.clear()
    other.run(work(jobs=[replace(job(tree, 1, 32, 64), again=True)], fills=[fill(path, 0, 32, 96)]))
    assert not caplog.records and other.pages[3].any(dim=1).all(), "and the new ones are, while the rest is made"
    assert finish(tree.path)
    pool.run(work(fills=[fill(path, 32, 64, 32)]))
    assert "another GistNet's" in caplog.text and not pool.pages[1].any()


def test_children_that_are_not_committed_are_logged(tree: MegaContextTree, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool()
    pool.run(work(jobs=[job(tree, 1, 0, 31)]))
    pool.run(work(jobs=[job(tree, 2, 0, 1)]))
    assert "level 2" in caplog.text and not tree.gist_path(2).exists()


def test_misuse() -> None:
    with pytest.raises(MegaContextError, match="float64"):
        GistPool(RandomGistNet(DIM, 0), torch.nn.Embedding(2, DIM, dtype=torch.float64), 1, True)  # type: ignore[arg-type]


def test_profiling_makes_as_many_gists_as_a_step_may() -> None:
    for writes in (True, False):
        pool, made = make_pool(bound=False, writes=writes), []
        pool.net.register_forward_pre_hook(lambda net, given, made=made: made.append(given[0].shape))
        pool.profile(1024)
        assert made == ([(32, 32, DIM)] if writes else [])


def test_a_profiling_run_before_there_is_a_kv_cache_does_nothing() -> None:
    """vLLM's V2 runner profiles through ``execute_model``; a step with work at that time would be a bug."""
    pool = make_pool(bound=False)
    pool.run(None)
    with pytest.raises(AssertionError, match="before the KV cache"):
        pool.run(work())
