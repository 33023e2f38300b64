"""The reader against a server that says what it is told to, over real HTTP: requests, readings, and every fault."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from megacontext_vllm.errors import ReaderError
from megacontext_vllm.eval.context import Context, Raw
from megacontext_vllm.eval.prompt import ChatFormat, Prompt
from megacontext_vllm.eval.readers.server_reader import ServerReader
from megacontext_vllm.eval.sample import History, Layout, Sample

CANDIDATES = (" 39120", " 48213", " 70554", " 11876")


class Server(ThreadingHTTPServer):
    """``replies``: (status, body) for each chat request in turn; a body that is a dict is sent as JSON."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: Any = {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "x"}]}
        self.replies: list[tuple[int, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.delay = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send(200, self.server.models) if self.path == "/v1/models" else self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self._send(404, {"detail": "Not Found"})
        self.server.requests.append(body)
        time.sleep(self.server.delay)
        self._send(*self.server.replies.pop(0))

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if data.startswith(b"{") else "text/html")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the client did not wait

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def chat(model_dir: Path) -> ChatFormat:
    return ChatFormat(AutoTokenizer.from_pretrained(model_dir))


@pytest.fixture
def sample(chat: ChatFormat) -> Sample:
    history = History("h", chat.encode("It rained. The code of Mira is 48213. Then it snowed."), Layout.DOCUMENT)
    return Sample(
        *("s", "needle", history, "What is the code of Mira?", "The code of Mira is", " 48213", CANDIDATES, ((4, 9),))
    )


@pytest.fixture
def prompt(chat: ChatFormat, sample: Sample) -> Prompt:
    return chat.prompt(sample)


def reader(server: Server, chat: ChatFormat, **changes: Any) -> ServerReader:
    return ServerReader(server.url, **{"chat": chat, "retries": 0, **changes})


def says(text: str | None, **changes: Any) -> tuple[int, dict[str, Any]]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 777, "completion_tokens": 5, "total_tokens": 782}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return 200, {**body, **changes}


def test_what_is_asked(server: Server, chat: ChatFormat, sample: Sample, prompt: Prompt) -> None:
    server.replies = [says("It is 48213, Mira.")]
    asking = reader(server, chat)
    reading = asking.ask(prompt, None, sample)
    (request,) = server.requests
    text = "It rained. The code of Mira is 48213. Then it snowed.\n\nWhat is the code of Mira?"
    assert request["messages"] == [{"role": "user", "content": text}]
    assert request["model"] == "m" and request["temperature"] == 0 and request["max_tokens"] == 32
    assert "structured_outputs" not in request and "continue_final_message" not in request
    assert reading.exact and reading.choice == 1 and reading.answer == "It is 48213, Mira."
    assert reading.prefill == 777 and reading.losses == () and reading.seconds > 0
    assert asking.continue_text(prompt, Context((), ()), sample) is None
    assert "m" in asking.name


@pytest.mark.parametrize(
    ("text", "exact", "choice"),
    [
        ("39120", False, 0),
        ("It is 39120 or 48213.", True, None),
        ("I do not know.", False, None),
        ("", False, None),
        (None, False, None),
        ("482131", False, None),
    ],
)
def test_what_the_answer_counts_as(
    server: Server,
    chat: ChatFormat,
    sample: Sample,
    prompt: Prompt,
    text: str | None,
    exact: bool,
    choice: int | None,
) -> None:
    server.replies = [says(text)]
    reading = reader(server, chat).ask(prompt, None, sample)
    assert (reading.exact, reading.choice) == (exact, choice)


def test_a_choice_by_structured_outputs(server: Server, chat: ChatFormat, sample: Sample, prompt: Prompt) -> None:
    server.replies = [says("It is 48213."), says("70554")]
    reading = reader(server, chat, structured_choice=True).ask(prompt, Context((Raw(0, 5),), ()), sample)
    free, constrained = server.requests
    assert constrained["structured_outputs"] == {"choice": ["39120", "48213", "70554", "11876"]}
    assert constrained["messages"] == free["messages"]
    assert reading.exact and reading.choice == 2 and reading.answer == "It is 48213."


def test_a_server_that_does_not_know_structured_outputs(
    server: Server, chat: ChatFormat, sample: Sample, prompt: Prompt
) -> None:
    server.replies = [says("48213"), says("The code is 48213.")]
    with pytest.raises(ReaderError, match="structured"):
        reader(server, chat, structured_choice=True).ask(prompt, None, sample)


def test_an_answer_that_is_begun(server: Server, chat: ChatFormat, sample: Sample, prompt: Prompt) -> None:
    server.replies = [says(" 48213."), says(" 48213")]
    reading = reader(server, chat, structured_choice=True, start_answer=True).ask(prompt, None, sample)
    for request in server.requests:
        assert request["messages"][-1] == {"role": "assistant", "content": "The code of Mira is"}
        assert request["continue_final_message"] is True and request["add_generation_prompt"] is False
    assert server.requests[1]["structured_outputs"] == {"choice": list(CANDIDATES)}
    assert reading.choice == 1


def test_a_server_that_does_not_count(server: Server, chat: ChatFormat, sample: Sample, prompt: Prompt) -> None:
    server.replies = [says("48213", usage=None)] * 2
    asking = reader(server, chat)
    assert asking.ask(prompt, None, sample).prefill == len(prompt.tokens)
    assert asking.ask(prompt, Context((Raw(0, 5),), ()), sample).prefill == prompt.overhead + 5


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((500, {"error": {"message": "out of memory"}}), "500.*out of memory.*log"),
        ((500, b"<html>oops</html>"), "500"),
        ((400, {"error": {"message": "too long"}}), "400.*too long"),
        ((401, {"error": {"message": "bad key"}}), "API key"),
        ((404, {"error": {"message": "no model m"}}), "/v1"),
        ((200, b"<html>a login page</html>"), "no answer of the OpenAI API"),
        ((200, {"choices": []}), "no answer of the OpenAI API"),
        ((200, {"hello": 1}), "no answer of the OpenAI API"),
        ((200, {"choices": [{"message": {"content": [1]}}]}), "no answer of the OpenAI API"),
        ((200, {"choices": [{"message": {"content": "x"}}], "usage": {}}), "no answer of the OpenAI API"),
    ],
)
def test_faults(
    server: Server, chat: ChatFormat, sample: Sample, prompt: Prompt, reply: tuple[int, Any], message: str
) -> None:
    server.replies = [reply]
    with pytest.raises(ReaderError, match=f"(?s){message}"):
        reader(server, chat).ask(prompt, None, sample)


def test_json_that_is_cut_off(server: Server, chat: ChatFormat, sample: Sample, prompt: Prompt) -> None:
    server.replies = [(200, b'{"choices": [{"message": {"cont')]
    with pytest.raises(ReaderError, match="no answer of the OpenAI API"):
        reader(server, chat).ask(prompt, None, sample)


def test_a_passing_fault_is_tried_again(server: Server, chat: ChatFormat, sample: Sample, prompt: Prompt) -> None:
    server.replies = [(503, {"error": {"message": "busy"}}), says("48213")]
    assert reader(server, chat, retries=1).ask(prompt, None, sample).exact


def test_a_server_that_takes_too_long(server: Server, chat: ChatFormat, sample: Sample, prompt: Prompt) -> None:
    server.replies = [says("48213")]
    server.delay = 1.0
    with pytest.raises(ReaderError, match="within 0.2 s"):
        reader(server, chat, timeout=0.2).ask(prompt, None, sample)


def test_no_server(server: Server, chat: ChatFormat) -> None:
    url = server.url
    server.server_close()
    with pytest.raises(ReaderError, match="cannot be reached"):
        ServerReader(url, chat=chat, retries=0)


def test_a_base_url_without_its_version(server: Server, chat: ChatFormat) -> None:
    with pytest.raises(ReaderError, match="/v1"):
        ServerReader(server.url.removesuffix("/v1"), chat=chat, retries=0)


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_which_model(server: Server, chat: ChatFormat, names: list[str]) -> None:
    server.models["data"] = [{**server.models["data"][0], "id": name} for name in names]
    with pytest.raises(ReaderError, match="which model"):
        reader(server, chat)
    assert reader(server, chat, model="b").model == "b"
