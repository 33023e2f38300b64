"""A reader behind HTTP: any OpenAI-compatible server, sent text and judged by what it says."""

import time
from dataclasses import dataclass
from typing import Any

from megacontext_vllm.errors import ReaderError
from megacontext_vllm.eval.context import Context
from megacontext_vllm.eval.prompt import ChatFormat, Prompt
from megacontext_vllm.eval.readers.base import Reader, Reading
from megacontext_vllm.eval.readers.messages import Messages, to_messages
from megacontext_vllm.eval.readers.spoken import said
from megacontext_vllm.eval.sample import Sample

_CHOICE_TOKENS = 64


@dataclass(frozen=True)
class _Said:
    text: str
    prompt_tokens: int | None


class ServerReader(Reader):
    """Asks greedily, and looks for the candidates in what is said.

    base_url           with the version, e.g. ``http://localhost:8000/v1``.
    model              None: the only one that the server lists.
    chat               of the tokenizer that made the histories, to turn them back to text.
    max_tokens         of an answer.
    timeout            seconds for one request; a MegaContext server reads a new history of a million tokens in it.
    retries            of requests that failed for a passing reason (the openai package knows which).
    structured_choice  asks once more, with the answer constrained to the candidates by vLLM's structured outputs. It is
                       decoded greedily: a small model that would have begun with "The code is" takes whatever candidate
                       begins most likely. Use it with ``start_answer``.
    start_answer       begins the answer with ``sample.answer_start``, as the transformers reader does, by vLLM's
                       ``continue_final_message``; other servers may answer the beginning instead.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str = "none",
        *,
        chat: ChatFormat,
        max_tokens: int = 32,
        timeout: float = 600.0,
        retries: int = 2,
        structured_choice: bool = False,
        start_answer: bool = False,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ReaderError("asking a server needs the openai package: pip install openai") from error
        self._openai = openai
        self._client = openai.OpenAI(base_url=base_url, api_key=api_key, timeout=timeout, max_retries=retries)
        self._url = base_url
        self._chat = chat
        self._max_tokens = max_tokens
        self._timeout = timeout
        self._structured_choice = structured_choice
        self._start_answer = start_answer
        self.model = model or self._only_model()
        self.name = f"{self.model} ({base_url})"

    def ask(self, prompt: Prompt, context: Context | None, sample: Sample) -> Reading:
        """Ask once, or twice with ``structured_choice``; ``context`` None sends the whole history.

        ``prefill`` is what the server counts as the prompt: of a MegaContext server the history, not its window.
        """
        begun = time.perf_counter()
        messages = to_messages(self._chat, prompt, context, sample)
        options: dict[str, Any] = {}
        if self._start_answer:
            messages.append({"role": "assistant", "content": sample.answer_start})
            options = {"continue_final_message": True, "add_generation_prompt": False}
        free = self._complete(messages, self._max_tokens, options)
        found = said(free.text, sample.candidates)
        choice = found.copy().pop() if len(found) == 1 else None
        if self._structured_choice:
            choice = self._choose(messages, sample, options)
        entries = prompt.overhead + (len(prompt.history) if context is None else context.cost)
        return Reading(
            choice=choice,
            exact=sample.candidates.index(sample.answer) in found,
            answer=free.text,
            losses=(),
            prefill=entries if free.prompt_tokens is None else free.prompt_tokens,
            seconds=time.perf_counter() - begun,
        )

    def _choose(self, messages: Messages, sample: Sample, options: dict[str, Any]) -> int:
        choices = [text if self._start_answer else text.strip() for text in sample.candidates]
        constrained = self._complete(messages, _CHOICE_TOKENS, {**options, "structured_outputs": {"choice": choices}})
        stripped = [text.strip() for text in choices]
        if constrained.text.strip() not in stripped:
            raise ReaderError(
                f"{self._url} was asked to choose among {stripped} and said {constrained.text!r}: it seems not to know "
                "vLLM's structured outputs. Ask it without the structured choice."
            )
        return stripped.index(constrained.text.strip())

    def _complete(self, messages: Messages, max_tokens: int, extra: dict[str, Any]) -> _Said:
        response = self._call(
            lambda: self._client.chat.completions.create(
                model=self.model,
                messages=messages,  # type: ignore[arg-type]
                temperature=0,
                max_tokens=max_tokens,
                extra_body=extra,
            )
        )
        try:
            text = response.choices[0].message.content
            tokens = None if response.usage is None else int(response.usage.prompt_tokens)
        except (AttributeError, IndexError, TypeError) as error:
            raise self._strange(response) from error
        if not isinstance(text, str | None):
            raise self._strange(response)
        return _Said(text or "", tokens)

    def _only_model(self) -> str:
        response = self._call(lambda: self._client.models.list())
        try:
            names = [str(model.id) for model in response.data]
        except (AttributeError, TypeError) as error:
            raise self._strange(response) from error
        if len(names) != 1:
            raise ReaderError(f"{self._url} serves {', '.join(names) or 'no model'}: say which model to ask.")
        return names[0]

    def _call(self, request: Any) -> Any:
        """What ``request()`` returns; what goes wrong on the way as a ReaderError."""
        openai = self._openai
        try:
            return request()
        except openai.APITimeoutError as error:
            raise ReaderError(
                f"{self._url} did not answer within {self._timeout:g} s: raise the timeout, or use shorter histories."
            ) from error
        except openai.APIConnectionError as error:
            raise ReaderError(
                f"{self._url} cannot be reached ({error.__cause__ or error}): is the server up, and is the base URL "
                "right, with its /v1?"
            ) from error
        except openai.AuthenticationError as error:
            raise ReaderError(f"{self._url} wants an API key that it knows: {error.message}") from error
        except openai.NotFoundError as error:
            raise ReaderError(
                f"{self._url} does not know this: {error.message}. Is the base URL right, with its /v1, and the model?"
            ) from error
        except openai.APIStatusError as error:
            raise ReaderError(
                f"{self._url} answered {error.status_code}: {error.message}. "
                + ("The server's log says more." if error.status_code >= 500 else "Change what is asked for.")
            ) from error
        except (openai.OpenAIError, ValueError) as error:
            raise self._strange(error) from error

    def _strange(self, what: object) -> ReaderError:
        return ReaderError(
            f"{self._url} answered something that is no answer of the OpenAI API: {str(what)[:200]!r}. Is the base URL "
            "right, with its /v1?"
        )
