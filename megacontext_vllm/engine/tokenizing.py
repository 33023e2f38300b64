"""Text to tokens and back without a cost that grows with the history.

What was tokenised a moment ago is not tokenised again, what is new is tokenised in pieces on all cores, and an answer
is decoded behind the end of its prompt only.
"""

import asyncio
import copy
import inspect
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import tokenizers

from megacontext_vllm.config import SECTION, parse_config
from megacontext_vllm.engine.activation import is_active
from megacontext_vllm.engine.front_end import is_lifted
from megacontext_vllm.engine.patches import Patch
from megacontext_vllm.engine.text_memory import text_memory
from megacontext_vllm.engine.token_pieces import Encoder, Encoding
from megacontext_vllm.engine.token_reuse import LONG, TokenReuse

# The request's cache_salt, left on its tokenizing parameters; without it no known text is looked at.
SALT = "megacontext_cache_salt"
KNOWN_TEXTS = "megacontext_known_texts"
# Prompt tokens that the decoding of an answer looks back on. vLLM gives it all of them and decodes them with the first
# token of the answer: 0.6 s per million, during which the front end serves nobody. How a token is decoded depends on
# the few before it (spaces, bytes of one character).
LOOK_BACK = 1024
LONG_PROMPT = 65_536
_LONG_TEXTS = 2  # tokenised at a time, on all cores; each has its copy of the tokenizer, and vLLM has two
_NICENESS = 10  # more than usual: on Linux a tenth of the time that another thread gets beside it


def _wrap_init(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        # A process that is forked off one with such threads cannot use a tokenizer; `vllm serve` does not fork.
        if is_active(config) and os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") == "spawn":
            start_threads()
        original(self, config, *args, **kwargs)
        if is_active(config):
            _tokenise_long_texts_beside(self)

    return __init__


def _tokenise_long_texts_beside(renderer: Any) -> None:
    """vLLM has one thread for templates and tokens of all requests: a short one would wait for a long one."""
    beside = ThreadPoolExecutor(_LONG_TEXTS, thread_name_prefix="megacontext-tokenizer")
    renderer._resources.callback(beside.shutdown, wait=False)
    stock = renderer._tokenize_prompt_async

    def _tokenize_prompt_async(prompt: Any, params: Any) -> Any:
        if len(prompt["prompt"]) < LONG:
            return stock(prompt, params)
        return asyncio.get_running_loop().run_in_executor(beside, renderer._tokenize_prompt, prompt, params)

    renderer._tokenize_prompt_async = _tokenize_prompt_async


def _wrap_render(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    async def render(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_active(self.config):
            return await original(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        if bound.arguments.get("tok_params") is not None:
            salted = copy.copy(bound.arguments["tok_params"])
            salt = (bound.arguments.get("prompt_extras") or {}).get("cache_salt")
            object.__setattr__(salted, SALT, salt)
            bound.arguments["tok_params"] = salted
        return await original(*bound.args, **bound.kwargs)

    return render


def start_threads() -> None:
    """Have the threads that this process tokenises several texts on give way to others.

    The library starts them with the first batch of any tokenizer, one for each core, and a thread is as nice as the one
    that starts it. Where cores are short, those who wait for their next token come first; else it makes no difference.
    """

    def start() -> None:
        with suppress(OSError):
            me = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + _NICENESS)
        tokenizers.Tokenizer(tokenizers.models.BPE()).encode_batch(["a", "b"])

    # A thread that is nice cannot go back.
    thread = threading.Thread(target=start, name="megacontext-tokenizer", daemon=True)
    thread.start()
    thread.join(timeout=1)  # in a process forked off one that had such threads it would wait for them for ever


def encoder_of(tokenizer: Any) -> Encoder:
    """What ``tokenizer``, a fast one of transformers, makes of many texts at a time."""

    def encode(parts: list[str]) -> Sequence[Encoding]:
        # On the tokenizer's own threads, and without the interpreter's lock; TOKENIZERS_PARALLELISM=false: on this one.
        return tokenizer(
            parts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # or it warns of a text that is longer than the model's context
        ).encodings

    return Encoder(encode, at_words=not isinstance(tokenizer.backend_tokenizer.model, tokenizers.models.BPE))


def _wrap_tokenize_prompt(original: Callable[..., Any]) -> Callable[..., Any]:
    def _tokenize_prompt(self: Any, prompt: Any, params: Any) -> Any:
        text = prompt["prompt"]
        if not hasattr(params, SALT) or len(text) < LONG or self._wants_offsets(prompt, params):
            return original(self, prompt, params)
        tokenizer = self.get_tokenizer()
        arguments = params.get_encode_kwargs()
        adds = arguments["add_special_tokens"] and tokenizer.num_special_tokens_to_add() > 0
        if adds or not self._can_produce_offsets():
            return original(self, prompt, params)

        if not hasattr(self, KNOWN_TEXTS):
            settings = parse_config(self.config.additional_config[SECTION])
            setattr(self, KNOWN_TEXTS, TokenReuse(text_memory(settings)))
        ids = getattr(self, KNOWN_TEXTS).tokenise(getattr(params, SALT), text, encoder_of(tokenizer))
        if arguments["truncation"] and len(ids) > arguments["max_length"]:
            return original(self, prompt, params)
        built = self._build_tokens_prompt((), prompt)
        built["prompt_token_ids"] = ids  # vLLM would make a plain list of it
        return built

    return _tokenize_prompt


def _wrap_detokenizer(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, tokenizer: Any, request: Any) -> None:
        prompt = request.prompt_token_ids or ()
        if is_lifted() and len(prompt) > LONG_PROMPT:
            request = copy.copy(request)
            request.prompt_token_ids = prompt[-LOOK_BACK:]
        original(self, tokenizer, request)

    return __init__


PATCHES = (
    Patch(
        target="vllm.v1.engine.detokenizer:FastIncrementalDetokenizer.__init__",
        why="the first token of an answer decodes the whole prompt, on the front end's only event loop",
        until="vLLM primes its decode stream with the end of the prompt only",
        replace=_wrap_detokenizer,
    ),
    Patch(
        target="vllm.renderers.base:BaseRenderer.__init__",
        why="tokenises long texts beside short ones, on threads that were started to give way to the engine's",
        until="vLLM has no request wait for the tokens of another's long text",
        replace=_wrap_init,
    ),
    Patch(
        target="vllm.renderers.base:BaseRenderer.render_chat_async",
        why="tells the tokenizing step the request's cache_salt, so that token reuse stays within a namespace",
        until="vLLM hands cache_salt to tokenization",
        replace=_wrap_render,
    ),
    Patch(
        target="vllm.renderers.base:BaseRenderer.render_cmpl_async",
        why="as render_chat_async",
        until="as render_chat_async",
        replace=_wrap_render,
    ),
    Patch(
        target="vllm.renderers.base:BaseRenderer._tokenize_prompt",
        why="tokenises only what is new of a long text that continues or repeats a known one, and that in pieces",
        until="vLLM caches tokenization by prefix and tokenises a long text in pieces",
        replace=_wrap_tokenize_prompt,
    ),
)
