"""The plugin's configuration: one typed object, made once from vLLM's ``--additional-config``.

``--additional-config '{"megacontext": {"window": 1024}}'`` or, dotted, ``--additional-config.megacontext.window 1024``,
or ``vllm.LLM(..., additional_config={"megacontext": {"window": 1024}})``. An empty object takes every default.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megacontext_vllm.errors import ConfigError
from megacontext_vllm.tree.nodes import BLOCK

SECTION = "megacontext"


def default_store() -> Path:
    """Where trees live by default: ``$MEGACONTEXT_CACHE/store``, else ``~/.cache/megacontext/store``."""
    cache = os.environ.get("MEGACONTEXT_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "megacontext") / "store"


class MegaContextConfig(BaseModel):
    """Settings of one engine. Sizes are in tokens, or in Working Context entries where the text says so."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window: int | None = Field(
        default=None,
        ge=4 * BLOCK,
        description="Working Context budget in entries. Default: max_model_len - output_reserve.",
    )
    output_reserve: int | None = Field(
        default=None,
        ge=1,
        description="Positions kept free for the answer. Default: a quarter of max_model_len, at most 1,024.",
    )
    history_limit: int = Field(
        default=1 << 24,
        ge=1,
        le=1 << 30,
        description="Longest history accepted; reported as max_model_len by /v1/models.",
    )
    store: Path = Field(default_factory=default_store, description="Folder of the trees and their index.")
    fsync: Literal["never", "interval", "always"] = Field(
        default="interval",
        description="When what is stored is forced to the disk: only a power cut makes a difference, never a crash of "
        "the server. 'interval' loses at most fsync_seconds, 'always' nothing, at the disk's pace.",
    )
    fsync_seconds: float = Field(default=5.0, gt=0, description="How often fsync='interval' forces out.")
    retain_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Delete the least recently used trees beyond this many bytes on disk. Default: keep all.",
    )
    retain_days: float | None = Field(
        default=None, gt=0, description="Delete trees that were not used for so many days. Default: keep all."
    )
    head_tokens: int = Field(
        default=64,
        ge=0,
        description="First tokens pinned raw, at most an eighth of the window; a longer system message to a quarter.",
    )
    tail_tokens: int = Field(
        default=128,
        ge=1,
        description="Last tokens pinned raw, in a chat at most an eighth of the window. A longer question is pinned "
        "from its start, and so is one behind a document, if what answers was found and it does not speak of the "
        "end. Behind what a tool returned, a question is pinned where it stands.",
    )
    lens: Literal["blend", "lexical"] = Field(
        default="blend",
        description="What scores where detail is needed. 'lexical': words that the question has. 'blend': also words "
        "that mean the like (LensNet, English).",
    )
    lens_net: Path | None = Field(
        default=None,
        description="LensNet of lens='blend': a folder that 'megacontext train lensnet' made. Default: the one that "
        "comes with this version.",
    )
    encoder: Path | None = Field(
        default=None,
        description="A third lens: the folder of a sentence-transformers model, which reads the sentences that the "
        "lenses found, at most 128 places a question: a second or more on a CPU, not measured on a GPU. Default: none.",
    )
    encoder_device: str | None = Field(
        default=None, description="Where the encoder runs, e.g. 'cpu' or 'cuda:1'. Default: a GPU where there is one."
    )
    refocus_tokens: int | None = Field(
        default=None,
        ge=BLOCK,
        description="While a question about a history is answered, scores are renewed every so many tokens of the "
        "answer, and what is shown is changed where that shows enough that was not. Default: only when the answer has "
        "used up the engine's length.",
    )
    refocus_share: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="With refocus_tokens: how much of the time of an answer the prefills of what it is newly shown may "
        "take. At 0.05 a window of 2,048 entries can be changed from its start after about 1,300 tokens, and its end "
        "sooner; 1 changes it as soon as something is found.",
    )
    gap_marker: str = Field(default="\n[...]\n", description="Text shown in place of a hidden span.")
    gist_net: str | None = Field(
        default=None,
        description=(
            "GistNet that unexpanded spans are shown with. Default: they are hidden behind the gap marker, unless this "
            "version comes with weights for the model served that were found to be worth it (its card: by_default). "
            "'none': always hide them. 'shipped': the weights that come with this version for the model served; refuse "
            "to start where there are none. A folder: what 'megacontext train gistnet' made. "
            "'random:SEED': an untrained net for tests; it turns the model's output into noise."
        ),
    )
    gist_tokens_per_step: int = Field(
        default=8192,
        ge=BLOCK,
        description="Tokens that one engine step makes gists of at most: bounds what others wait for an ingest.",
    )
    gist_pool_pages: int | None = Field(
        default=None,
        ge=1,
        description="Pages of 32 gists beside the KV cache. Default: room for four steps of nothing but gists.",
    )
    text_memory: int | None = Field(
        default=None,
        ge=0,
        description="Bytes of memory that each front-end process and each engine may take to remember the texts that "
        "were asked about last, so that a chat's next turn and another question are not tokenised and indexed from "
        "their start: about 9 and 25 bytes a token. The last text is kept whatever it takes. Default: a 32nd of the "
        "machine's memory, or of what its container is allowed, at most 4 GiB.",
    )
    traces_kept: int = Field(default=256, ge=1, description="Focus traces kept per namespace (megacontext_trace).")

    def window_for(self, max_model_len: int) -> int:
        """The Working Context budget in entries for an engine of ``max_model_len`` positions.

        Raises ConfigError if window and output reserve do not fit into max_model_len.
        """
        reserve = self.output_reserve
        if self.window is not None:
            if self.window + (reserve or 1) > max_model_len:
                raise ConfigError(
                    f"megacontext.window={self.window} plus an output reserve of {reserve or 1} exceeds "
                    f"max_model_len={max_model_len}: lower the window or raise --max-model-len."
                )
            return self.window
        if reserve is None:
            reserve = min(1024, max_model_len // 4)
        if max_model_len - reserve < 4 * BLOCK:
            raise ConfigError(
                f"max_model_len={max_model_len} leaves {max_model_len - reserve} entries beside an output reserve of "
                f"{reserve}; MegaContext needs at least {4 * BLOCK}: raise --max-model-len or lower output_reserve."
            )
        return max_model_len - reserve


def parse_config(section: Mapping[str, Any]) -> MegaContextConfig:
    """Validate the ``megacontext`` section of the additional config.

    Raises ConfigError that names the setting, and for an unknown key the closest known one.
    """
    if not isinstance(section, Mapping):
        raise ConfigError(f"additional_config['{SECTION}'] must be an object of settings, not {section!r}.")
    known = list(MegaContextConfig.model_fields)
    for key in section:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else f" Known settings: {', '.join(known)}."
            raise ConfigError(f"Unknown setting '{key}' in additional_config['{SECTION}'].{hint}")
    try:
        return MegaContextConfig.model_validate(dict(section))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or SECTION}: {e['msg']} (got {e['input']!r})" for e in error.errors()
        )
        raise ConfigError(f"additional_config['{SECTION}']: {problems}") from error
