"""``megacontext eval gists``: everything from a model's folder to the report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from megacontext_vllm.corpus import token_stream
from megacontext_vllm.corpus.document import Split
from megacontext_vllm.eval.gists.layouts import HARMLESS, QUICK, QUICK_WINDOWS, STANDARD, GistLayout
from megacontext_vllm.eval.gists.makers import standard_makers
from megacontext_vllm.eval.gists.measure import Progress, measure
from megacontext_vllm.eval.gists.report import GistReport
from megacontext_vllm.eval.gists.showing import Positions
from megacontext_vllm.eval.gists.windows import Documents
from megacontext_vllm.eval.readers.transformers_reader import TransformersReader
from megacontext_vllm.nets.gistnet import GistNet


def measure_gists(
    model_folder: Path,
    nets: Sequence[tuple[str, GistNet]] = (),
    documents: Documents | None = None,
    layouts: Sequence[GistLayout] = (*STANDARD, *HARMLESS),
    windows: int = 256,
    seed: int = 0,
    *,
    split: Split = "validation",
    positions: Sequence[Positions] = (Positions.COMPACT,),
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    device: str | None = None,
    quick: bool = False,
    progress: Progress = lambda done, total: None,
) -> GistReport:
    """Gists of the ``nets`` (each with its name), beside controls and what needs no training.

    documents  None: the ``split`` of the corpus.
    quick      few windows and layouts, instead of ``windows`` and ``layouts``: whether something is badly wrong.
    """
    reader = TransformersReader(model_folder, dtype, threads, device)
    chosen = token_stream(split, Path(model_folder) / "tokenizer.json") if documents is None else documents
    embedding = torch.from_numpy(reader.embedding)
    counts = torch.from_numpy(np.bincount(chosen.tokens, minlength=len(embedding)))
    makers = standard_makers(embedding, counts, nets)
    if quick:
        layouts, windows = QUICK, QUICK_WINDOWS
    return GistReport.of(
        reader.name, seed, measure(reader, chosen, makers, layouts, windows, seed, positions, progress)
    )
