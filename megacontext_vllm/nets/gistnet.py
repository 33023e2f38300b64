"""GistNet: 32 children (token embeddings or gists) to one gist."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megacontext_vllm.errors import ConfigError

BLOCK = 32


class GistNet(torch.nn.Module, ABC):
    """What every GistNet offers to the engine.

    ``forward(children, level)``: ``[n, 32, d]`` float32 children of ``n`` nodes of ``level`` (LOD1: token embeddings,
    above: gists of the level below) to ``[n, d]`` float32 gists in the model's input-embedding space.
    """

    trained: bool
    fingerprint: bytes  # 16 bytes over the weights; equal fingerprints mean equal gists

    @abstractmethod
    def forward(self, children: torch.Tensor, level: int) -> torch.Tensor: ...


class RandomGistNet(GistNet):
    """A seeded, untrained net for tests of the gist path: every child, its place and the level matter to the result.

    The output has the mean norm of the children, so that it is at the embedding's scale. Shown to a model it is noise.
    """

    trained = False

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("place", torch.randn(BLOCK, generator=generator))
        self.register_buffer("sign", torch.randint(0, 2, (dim,), generator=generator).float() * 2 - 1)
        self.fingerprint = hashlib.blake2b(f"random:{dim}:{seed}".encode(), digest_size=16).digest()

    def forward(self, children: torch.Tensor, level: int) -> torch.Tensor:
        assert children.dim() == 3 and children.shape[1] == BLOCK, children.shape
        mixed = torch.einsum("nkd,k->nd", children.float(), self.place.roll(level)) * self.sign
        scale = children.float().norm(dim=-1).mean(dim=-1, keepdim=True)
        return mixed / mixed.norm(dim=-1, keepdim=True).clamp_min(1e-12) * scale


def load_gist_net(name: str, dim: int, model_fingerprint: bytes | None = None) -> GistNet:
    """The GistNet that the configuration names, for a model of embedding width ``dim``.

    ``random:SEED``; ``shipped``: the weights that come with this package for the model of this fingerprint; or the path
    of a folder that ``megacontext train gistnet`` made. Raises ConfigError, naming what to do, for everything else.
    """
    from megacontext_vllm.nets.checkpoints import load  # here, since nets are built on this module
    from megacontext_vllm.nets.shipped import find_shipped

    require_gist_net(name)
    if (seed := _seed(name)) is not None:
        return RandomGistNet(dim, seed)
    if name == "shipped":
        assert model_fingerprint is not None, "shipped weights are found by the model's fingerprint"
        path = find_shipped(model_fingerprint)
        if path is None:
            raise ConfigError(
                f"megacontext.gist_net={name!r}: no GistNet for this model (fingerprint {model_fingerprint.hex()}) "
                "comes with this version; leave it unset (unexpanded spans are hidden), or train one with 'megacontext "
                "train gistnet --model MODEL' and give its folder."
            )
        return load(path, dim, model_fingerprint)
    with _named(name):
        return load(Path(name), dim, model_fingerprint)


def require_gist_net(name: str) -> None:
    """Raises ConfigError for a name that is nothing to ``load_gist_net``, whatever the model."""
    from megacontext_vllm.nets.checkpoints import card_of

    if name == "shipped" or _seed(name) is not None:
        return
    if not name or not Path(name).exists():
        raise ConfigError(
            f"megacontext.gist_net={name!r} is no folder, and no name of a GistNet: leave it unset (unexpanded spans "
            "are hidden), give the folder that 'megacontext train gistnet' made, 'shipped' for the weights that come "
            "with this version, or 'random:SEED' to test the gist path."
        )
    with _named(name):
        card_of(Path(name))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """What is wrong with the net is told with the setting that asked for it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"megacontext.gist_net={name!r}: {error}") from error


def _seed(name: str) -> int | None:
    """Of ``random:SEED``; None for other names."""
    kind, _, seed = name.partition(":")
    return int(seed) if kind == "random" and seed.isdigit() else None
