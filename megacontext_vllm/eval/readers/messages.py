"""A prompt with a context in place of its history, as the chat messages that a server is sent."""

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import ReaderError
from megacontext_vllm.eval.context import Context, Gap, Gist, Raw
from megacontext_vllm.eval.prompt import ChatFormat, Prompt, messages_around
from megacontext_vllm.eval.sample import Layout, Sample

Messages = list[dict[str, str]]


def to_messages(chat: ChatFormat, prompt: Prompt, context: Context | None, sample: Sample) -> Messages:
    """What the server's own template will render like ``prompt``; ``context`` None is the whole history.

    A conversation that is shown whole is sent turn by turn. Where something of it is missing, turns can be cut or lost,
    so what is left is sent as one text in front of the question, like a document. Raises ReaderError for gists.
    """
    if sample.history.layout is Layout.TEXT:
        raise ReaderError("a chat server cannot continue a text: use the transformers reader for continuations")
    whole = context is None or context.raw == [(0, len(prompt.history))]
    if whole and sample.history.messages:
        turns = [{"role": role, "content": content} for role, content in sample.history.messages]
        return [*turns, {"role": "user", "content": sample.question}]
    ids = prompt.history if context is None else _shown(prompt, context)
    if sample.history.layout is Layout.CHAT:
        # The server would take the marks of turns for the end of this message.
        text = str(chat.tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    else:
        text = chat.decode(ids)
    return messages_around(sample, text)


def _shown(prompt: Prompt, context: Context) -> NDArray[np.uint32]:
    """Token ids, uint32 ``[n]``, of all pieces: decoded together, since a character may lie across two of them."""
    parts = [np.zeros(0, dtype=np.uint32)]
    for piece in context.pieces:
        match piece:
            case Raw(start, stop):
                parts.append(prompt.history[start:stop])
            case Gap():
                parts.append(np.array(context.gap, dtype=np.uint32))
            case Gist():
                raise ReaderError(
                    "a server cannot be sent gists, only text: leave out the methods that show gists, or use the "
                    "transformers reader"
                )
    return np.concatenate(parts)
