"""A million tokens from the tokenizer to the planner without making a million Python numbers of them on the way.

vLLM's front end looks through a prompt's list of tokens and packs it number by number, on the loop that serves all
requests; the engine core unpacks it under the lock that its own loop needs. So a long prompt that was tokenised here
keeps its tokens as an array beside the list, and the array is what travels: as a tensor, which vLLM sends as it is.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.engine import EngineCoreRequest

from megacontext_vllm.engine.front_end import ENGINE_LENGTH
from megacontext_vllm.engine.patches import Patch
from megacontext_vllm.engine.request_options import unsupported_reason

LONG = 65_536  # tokens; a shorter list is packed in a millisecond


class TokenList(list[int]):
    """Token ids that are known as an array, too: ``array``, int32 ``[n]``. Nobody changes either."""

    array: npt.NDArray[np.int32]

    @staticmethod
    def of(array: npt.NDArray[np.int32]) -> "TokenList":
        """The list of ``array``, whose ids are in [0, some hundred thousand)."""
        tokens = TokenList()
        known = _numbers(int(array.max(initial=0)))
        for start in range(0, len(array), _PIECE):
            tokens.extend(known[array[start : start + _PIECE]].tolist())
        tokens.array = array
        return tokens


_PIECE = 32_768  # ids for which the interpreter's lock is held at a time
_known = np.zeros(0, dtype=np.object_)


def _numbers(greatest: int) -> npt.NDArray[np.object_]:
    """The numbers 0, 1, … as Python has them, once for all lists: to make a million takes 20 ms, and 32 MB for each."""
    global _known
    known = _known  # another thread may put a shorter one in its place
    if len(known) <= greatest:
        known = _known = np.arange(greatest + 1).astype(np.object_)
    return known


class TokenArray(Sequence[int]):
    """Token ids of a prompt that will be replaced by its Working Context, uint32 ``[n]``, in the place of a list."""

    def __init__(self, array: npt.NDArray[np.uint32]) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: int | slice) -> int | list[int]:
        found: int | list[int] = self.array[at].tolist()
        return found

    def __iter__(self) -> Iterator[int]:
        return iter(self.array.tolist())

    def copy(self) -> "TokenArray":
        """Itself: nobody changes it."""
        return self


def packed(request: Any, engine_length: int) -> Any:
    """``request`` as it is sent to the engine core: a copy with its tokens as a tensor, if they are many."""
    tokens = request.prompt_token_ids
    if not isinstance(tokens, TokenList) or len(tokens) <= max(LONG, engine_length) or unsupported_reason(request):
        return request
    request = copy.copy(request)
    request.prompt_token_ids = []
    request.prompt_embeds = torch.from_numpy(tokens.array)
    return request


def unpack(request: Any) -> None:
    """Undo ``packed`` in place, but for what the tokens are: a ``TokenArray``. What was not packed stays as it is."""
    tensor = request.prompt_embeds
    if tensor is None or request.prompt_token_ids != [] or tensor.dtype != torch.int32:
        return
    # vLLM's tensor is a view of what was received, and keeps all of that.
    request.prompt_token_ids = TokenArray(tensor.numpy().astype(np.uint32))
    request.prompt_embeds = None


def _wrap_send_input(original: Callable[..., Any]) -> Callable[..., Any]:
    def _send_input(self: Any, request_type: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(request, EngineCoreRequest):
            engine_length = getattr(self.vllm_config.model_config, ENGINE_LENGTH, None)
            if engine_length is not None:  # the limit was lifted, so that the plugin is at the other end
                request = packed(request, engine_length)
        return original(self, request_type, request, *args, **kwargs)

    return _send_input


def _wrap_validate_token_ids(original: Callable[..., Any]) -> Callable[..., Any]:
    def validate_token_ids(self: Any, token_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(token_ids, TokenList) and token_ids:
            token_ids = [int(token_ids.array.min()), int(token_ids.array.max())]
        return original(self, token_ids, *args, **kwargs)

    return validate_token_ids


PATCHES = (
    Patch(
        target="vllm.v1.engine.core_client:SyncMPClient._send_input",
        why="sends the tokens of a long prompt as one tensor: packing a million numbers holds the front end's loop",
        until="vLLM sends prompt tokens as an array",
        replace=_wrap_send_input,
    ),
    Patch(
        target="vllm.v1.engine.core_client:AsyncMPClient._send_input",
        why="as SyncMPClient._send_input",
        until="as SyncMPClient._send_input",
        replace=_wrap_send_input,
    ),
    Patch(
        target="vllm.renderers.base:BaseRenderer.validate_token_ids",
        why="looks at the least and the greatest of a million tokens in an array, not one by one on the loop",
        until="vLLM does not check tokens that its own tokenizer made",
        replace=_wrap_validate_token_ids,
    ),
)
