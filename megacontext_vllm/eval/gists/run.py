"""``megacontext eval gists``: everything from a model's folder to the report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from megacontext_vllm.corpus import token_stream
from megacontext_vllm.corpus.document import Split
from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.gists.layouts import HARMLESS, QUICK, QUICK_WINDOWS, STANDARD, GistLayout
from megacontext_vllm.eval.gists.makers import GistMaker, standard_makers
from megacontext_vllm.eval.gists.measure import Progress, measure
from megacontext_vllm.eval.gists.report import GistReport
from megacontext_vllm.eval.gists.showing import Positions
from megacontext_vllm.eval.gists.windows import Documents
from megacontext_vllm.eval.readers.transformers_reader import TransformersReader
from megacontext_vllm.nets.checkpoints import load
from megacontext_vllm.nets.gistnet import GistNet
from megacontext_vllm.nets.model_fingerprint import table_fingerprint
from megacontext_vllm.nets.shipped import find_shipped

LAYOUTS = {layout.name: layout for layout in (*STANDARD, *HARMLESS)}


def measure_gists(
    model_folder: Path,
    nets: Sequence[tuple[str, GistNet]] = (),
    documents: Documents | None = None,
    layouts: Sequence[GistLayout] = tuple(LAYOUTS.values()),
    windows: int = 256,
    seed: int = 0,
    *,
    net_folders: Sequence[Path] | None = None,
    makers: Sequence[str] | None = None,
    split: Split = "validation",
    positions: Sequence[Positions] = (Positions.COMPACT,),
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    device: str | None = None,
    quick: bool = False,
    progress: Progress = lambda done, total: None,
) -> GistReport:
    """Gists of the ``nets`` (each with its name), beside controls and what needs no training.

    net_folders  further nets, by their folders; None: the one that comes with this package for the model, if any does.
    makers       names of what is measured; None: all. Raises EvaluationError for a name that is none.
    documents    None: the ``split`` of the corpus.
    quick        few windows and layouts, instead of ``windows`` and ``layouts``: whether something is badly wrong.
    """
    reader = TransformersReader(model_folder, dtype, threads, device)
    chosen = token_stream(split, Path(model_folder) / "tokenizer.json") if documents is None else documents
    embedding = torch.from_numpy(reader.embedding)
    counts = torch.from_numpy(np.bincount(chosen.tokens, minlength=len(embedding)))
    read = _read_nets(reader, embedding, net_folders)
    found = _chosen(standard_makers(embedding, counts, [*nets, *read]), makers)
    if quick:
        layouts, windows = QUICK, QUICK_WINDOWS
    return GistReport.of(reader.name, seed, measure(reader, chosen, found, layouts, windows, seed, positions, progress))


def _read_nets(
    reader: TransformersReader, embedding: torch.Tensor, folders: Sequence[Path] | None
) -> list[tuple[str, GistNet]]:
    """Raises ConfigError for a folder without a net, or with one for another model."""
    if folders is not None and not folders:
        return []
    fingerprint = table_fingerprint(reader.chat.tokenizer, embedding)
    if folders is None:
        shipped = find_shipped(fingerprint)
        return [("GistNet", load(shipped, embedding.shape[1], fingerprint))] if shipped else []
    return [(f"GistNet {folder.name}", load(folder, embedding.shape[1], fingerprint)) for folder in folders]


def _chosen(makers: list[GistMaker], names: Sequence[str] | None) -> list[GistMaker]:
    known = {maker.name: maker for maker in makers}
    if unknown := [name for name in names or () if name not in known]:
        raise EvaluationError(f"no gists {unknown[0]!r} are made; there are: {', '.join(known)}")
    return [known[name] for name in names] if names else makers
