"""All that decides what a training run makes, in one typed object that goes into the card."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from megacontext_vllm.errors import ConfigError
from megacontext_vllm.tree.nodes import BLOCK


@dataclass(frozen=True)
class Recipe:
    """Sizes in tokens; weights of losses are multiplied and added.

    arch        'pooling' takes heads and hidden, 'transformer' takes layers. levels: trained LODs, from LOD1 on.
    scale       norm of a gist in units of a token's.
    windows     lengths of text, short first: longer ones join in as training goes on.
    segments    lengths of raw text behind the gists; every token of them is a target.
    raw_share   upper bound of the share of raw blocks among the gists; each window draws its own.
    coarse_share  how often a gist of a higher level is shown where there is a whole node.
    kl, nll     KL to the model that sees all the text; NLL of the text itself.
    hidden_share  first part of the training that matches hidden states at the middle layer (cosine) instead.
    contrastive   a gist has to tell its own block from the others of the batch.
    batch, accumulate  windows at once, and how often, before a step is taken; on each process.
    copied_lr   factor on the learning rate of layers that come from the base model.
    warmup      steps until the learning rate is whole; final_lr: what is left of it at the end of the cosine.
    dtype       of the frozen model; autocast: GistNet's products in bfloat16.
    """

    arch: Literal["pooling", "transformer"] = "pooling"
    heads: int = 8
    hidden: int = 1024
    layers: int = 2
    levels: int = 2
    scale: float = 4.0
    windows: tuple[int, ...] = (512, 1024, 2048)
    segments: tuple[int, ...] = (32, 64, 128, 192, 320)
    raw_share: float = 0.3
    coarse_share: float = 0.5
    kl: float = 1.0
    nll: float = 0.0
    hidden_share: float = 0.0
    contrastive: float = 0.0
    batch: int = 1
    accumulate: int = 1
    lr: float = 2e-3
    copied_lr: float = 0.4
    weight_decay: float = 0.01
    warmup: int = 20
    final_lr: float = 0.1
    clip: float = 1.0
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    autocast: bool = False
    checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if wrong := next(self._problems(), None):
            raise ConfigError(f"This recipe cannot be trained: {wrong}.")

    def _problems(self) -> Iterator[str]:
        """Which value is wrong, and what is allowed."""
        for name, least in (("windows", 2 * BLOCK), ("segments", BLOCK)):
            lengths = getattr(self, name)
            if not lengths:
                yield f"it has no {name}; give at least one length"
            for length in lengths:
                if length % BLOCK or length < least:
                    yield f"--{name} {length}; give multiples of {BLOCK}, at least {least}"
        for name in ("batch", "accumulate", "levels", "heads", "layers"):
            if getattr(self, name) < 1:
                yield f"--{name} {getattr(self, name)}; give at least 1"
        for name in ("raw_share", "coarse_share", "hidden_share", "final_lr"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"--{name.replace('_', '-')} {getattr(self, name)}; give 0 to 1"
        if not self.scale > 0:
            yield f"--scale {self.scale}; give more than 0"
        if not (self.kl > 0 or self.nll > 0):
            yield f"--kl {self.kl} and --nll {self.nll}; give one of them more than 0"
        if max(self.windows) <= (node := BLOCK**self.levels):
            yield f"--levels {self.levels}; give --windows of more than {node} tokens, or fewer levels"

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Recipe":
        given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**given)


@dataclass(frozen=True)
class Limits:
    """When training ends: at whichever comes first. With steps or tokens only, a run can be repeated exactly."""

    steps: int | None = None
    tokens: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = [limit for limit in (self.steps, self.tokens, self.minutes) if limit is not None]
        if not given or min(given) <= 0:
            raise ConfigError("Say when training ends: --steps, --tokens or --minutes, more than 0.")

    def progress(self, steps: int, tokens: int, seconds: float) -> float:
        """0 at the start, 1 or more at the end."""
        shares = [
            done / limit
            for done, limit in ((steps, self.steps), (tokens, self.tokens), (seconds / 60, self.minutes))
            if limit is not None
        ]
        return max(shares)
