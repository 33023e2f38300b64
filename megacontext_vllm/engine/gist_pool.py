"""The worker's side of the gist path: the pool of pages on the device, GistNet jobs, fills, the span table."""

import logging
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from megacontext_vllm.engine.embedding import GistEmbedding, SpanTable
from megacontext_vllm.engine.gist_fills import GistFills, Rows
from megacontext_vllm.engine.step_work import GistFill, GistJob, StepWork
from megacontext_vllm.errors import CorruptTreeError, MegaContextError, StoreError
from megacontext_vllm.kernels.span_gather import span_gather_
from megacontext_vllm.nets.gistnet import GistNet
from megacontext_vllm.tree.files.header import Header, RowType, level_path
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.gists import append_missing_gists, level_header, made_by, replace_gists
from megacontext_vllm.tree.nodes import BLOCK

logger = logging.getLogger("vllm.megacontext")

ROW_TYPES = {torch.float16: RowType.FLOAT16, torch.bfloat16: RowType.BFLOAT16, torch.float32: RowType.FLOAT32}
TORCH_TYPES = {row_type: dtype for dtype, row_type in ROW_TYPES.items()}


def rows_to_tensor(rows: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Rows of a gist file as a tensor; bfloat16 rows arrive as their raw 16 bits."""
    return torch.from_numpy(np.array(rows)).view(dtype)


def tensor_to_rows(gists: torch.Tensor) -> np.ndarray:
    """The inverse of :func:`rows_to_tensor`."""
    host = gists.detach().cpu().contiguous()
    return (host.view(torch.uint16) if host.dtype is torch.bfloat16 else host).numpy()


class GistPool:
    """Pages of gists on one device, and the work the scheduler asks for before each forward pass.

    ``writes``: whether this rank is the one that writes gists to the tree's files.
    """

    def __init__(self, net: GistNet, embedding: GistEmbedding, pages: int, writes: bool) -> None:
        weight = embedding.weight
        if weight.dtype not in ROW_TYPES:
            raise MegaContextError(f"Gists cannot be stored in the embedding's type {weight.dtype}.")
        self.net = net.to(weight.device).eval()
        self.embedding = embedding
        self.dtype: torch.dtype = weight.dtype
        self.device = weight.device
        self.dim: int = embedding.embedding_dim
        self.writes = writes
        self.pages = torch.zeros(pages, BLOCK, self.dim, dtype=self.dtype, device=self.device)
        self.spans: SpanTable | None = None
        self._fills = GistFills(self.pages)
        self._shown = torch.empty(0, dtype=torch.int64, device=self.device)

    def bind(self, num_slots: int, layer: str, graphs: bool) -> SpanTable:
        """Make the span table once the size of the KV cache is known; ``graphs``: as of :class:`SpanTable`."""
        table = torch.full((num_slots,), -1, dtype=torch.int32, device=self.device)
        self._shown = self._shown[:0]
        self.spans = SpanTable(self.pages, table, layer, graphs)
        # On a GPU the kernel is compiled now, and not while somebody waits for a first answer.
        nothing = torch.full((BLOCK,), -1, dtype=torch.int64, device=self.device)
        span_gather_(torch.zeros(BLOCK, self.dim, dtype=self.dtype, device=self.device), self.pages, table, nothing)
        return self.spans

    @torch.inference_mode()
    def profile(self, tokens_per_step: int) -> None:
        """Make as many gists as one step does at most, of nothing: vLLM then leaves the memory that this takes free."""
        if self.writes:
            self._gists(torch.zeros(tokens_per_step // BLOCK, BLOCK, self.dim, device=self.device), 1)

    @torch.inference_mode()
    def run(self, work: StepWork | None) -> None:
        """Do one step's work. Called before every forward pass, also with nothing to do: it clears the last step."""
        spans = self.spans
        if spans is None:  # vLLM's V2 runner profiles through this, before there is a KV cache
            assert work is None, "a step before the KV cache exists"
            return
        self._fills.begin_step()
        if len(self._shown):
            spans.table.index_fill_(0, self._shown, -1)  # `table[shown] = -1` would wait for the device
            self._shown = self._shown[:0]
        spans.active = False
        if work is None:
            return
        with gpu_sync_allowed():  # rows have to be on the disk before the step is done; only ingest waits
            for job in work.jobs:
                self._make_gists(job, work.model_fingerprint)
        self._fills.copy([self._read_fill(fill) for fill in work.fills])
        if len(work.slots):
            self._shown = self._to_device(work.slots)
            spans.table[self._shown] = self._to_device(work.rows)
            spans.active = True

    def _make_gists(self, job: GistJob, model_fingerprint: bytes) -> None:
        if job.tokens is not None:
            # Every rank takes part: the look-up is collective where the embedding is sharded.
            ids = self._to_device(job.tokens.astype(np.int64))
            children = self.embedding.look_up(ids.reshape(-1)).view(*ids.shape, self.dim)
        if not self.writes:
            return
        path = level_path(Path(job.tree_path), job.level)
        try:
            begun = level_header(path)
            if begun and not job.again and begun.count >= job.stop and begun.gist_fingerprint == self.net.fingerprint:
                return  # another engine of this store was asked about the same text, and was first
            if job.tokens is None:
                below = level_path(Path(job.tree_path), job.level - 1)
                rows = self._read(below, job.start * BLOCK, job.stop * BLOCK).to(self.device)
                children = rows.view(-1, BLOCK, self.dim)
            dtype = TORCH_TYPES[begun.dtype] if begun else self.dtype  # a file keeps that of the engine which began it
            gists = self._gists(children.float(), job.level).to(dtype)
            header = Header(job.level, ROW_TYPES[dtype], self.dim, 0, model_fingerprint, self.net.fingerprint)
            (replace_gists if job.again else append_missing_gists)(path, header, job.start, tensor_to_rows(gists))
        except (MegaContextError, OSError, IndexError, torch.OutOfMemoryError) as error:
            # Not committed; the scheduler sees the count stand still, tries again and then does without gists.
            logger.error("MegaContext could not write gists of level %d: %s", job.level, error)

    def _gists(self, children: torch.Tensor, level: int) -> torch.Tensor:
        # Where the model itself is computed in bfloat16, the net's products are, too, as they were in its training: on
        # processors made for it, this is several times as fast, and what comes out is rounded to it anyway.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            return self.net(children, level)

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        """Without waiting for what the device is still computing, which memory that is not pinned would do."""
        # A copy: Ray's channel lends an array for this step only, and waits for it to be let go of before the next.
        tensor = torch.tensor(array)
        return (tensor.pin_memory() if self.device.type == "cuda" else tensor).to(self.device, non_blocking=True)

    def _read_fill(self, fill: GistFill) -> Rows:
        """Zeros for what cannot be read: answers that show them will be wrong, and the log says so.

        They were committed when the step was scheduled, so that somebody has taken the file away or damaged it since.
        """
        path, gists = Path(fill.path), torch.zeros(len(fill.gists), self.dim, dtype=self.dtype)
        try:
            with closing(LevelReader(path)) as reader:
                for page in np.split(np.arange(len(gists)), np.nonzero(np.diff(fill.gists // BLOCK))[0] + 1):
                    _read_page(reader, fill.gists[page], gists[int(page[0]) : int(page[-1]) + 1])
            # Asked behind the reading: a row's version is taken away before it changes.
            if not made_by(self.net.fingerprint, path, fill.gists):
                raise StoreError(f"{path}: its gists are another GistNet's; give each net a store of its own")
        except (MegaContextError, OSError, IndexError) as error:
            gists.zero_()  # whose they are was not asked
            _note_zeros(error)
        return Rows(fill.rows, gists)

    def _read(self, path: Path, start: int, stop: int) -> torch.Tensor:
        with closing(LevelReader(path)) as reader:
            return _checked(reader, start, stop).to(self.dtype)


def _read_page(reader: LevelReader, indexes: np.ndarray, out: torch.Tensor) -> None:
    """Gists of one page of a file, compared with its checksum; those of a damaged page stay as they are."""
    first, last = int(indexes[0]), int(indexes[-1])
    try:
        rows = _checked(reader, first, last + 1)
    except CorruptTreeError as error:
        _note_zeros(error)
    else:
        out.copy_(rows[torch.from_numpy(indexes - first)])


def _checked(reader: LevelReader, start: int, stop: int) -> torch.Tensor:
    """Committed rows of a gist file in its own type, compared with their checksums: ``[stop - start, d]``, host."""
    return rows_to_tensor(reader.read(start, stop), TORCH_TYPES[reader.header.dtype])


def _note_zeros(error: Exception) -> None:
    logger.error("MegaContext shows zeros for gists that it cannot read any more: %s", error)
