"""Real engines for the tests. The two that several files use live for the session; idle they cost memory only."""

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from engines import GIST_SEED, SERVED_LIMIT, SERVED_WINDOW, Engine, starter
from reference import Reference
from servers import serve


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a machine with a GPU all of these are tests of it, but for those that repair vLLM's CPU build."""
    for item in items:
        if torch.cuda.is_available() and item.path.parent == Path(__file__).parent:
            on_cpu = "repair" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.skip(reason="repairs vLLM's CPU build") if on_cpu else pytest.mark.gpu)


@pytest.fixture(scope="session")
def _session_engines(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    yield from starter(model_dir, tmp_path_factory)


@pytest.fixture(scope="module")
def start_engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """``start_engine(megacontext={...}, **engine_args)`` for the tests of one file; ``None`` is stock vLLM."""
    yield from starter(model_dir, tmp_path_factory)


@pytest.fixture(scope="session")
def engine(_session_engines: Callable[..., Engine]) -> Engine:
    """Gists of an untrained net are shown; whole prefills; small ingest steps so that tests can catch it ingesting."""
    return _session_engines(
        {"gist_net": f"random:{GIST_SEED}", "window": 512, "gist_tokens_per_step": 1024}, max_num_batched_tokens=2048
    )


@pytest.fixture(scope="session")
def reference(model_dir: Path) -> Reference:
    return Reference(model_dir, GIST_SEED)


@pytest.fixture(scope="session")
def tokens(engine: Engine, text: str) -> list[int]:
    """The first 250,000 tokens or so of the text."""
    return list(engine.llm.get_tokenizer().encode(text[:1_200_000]))


@pytest.fixture(scope="session")
def history(model_dir: Path, text: str) -> list[int]:
    """35,000 tokens."""
    return list(AutoTokenizer.from_pretrained(model_dir).encode(text[:200_000])[:35_000])


@pytest.fixture
def repair(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``repair("parallel", ...)``: engines of this test get what vLLM's CPU build lacks (``cpu_repairs``)."""
    platform = "vllm.platforms.cpu"

    def repair(*names: str) -> None:
        monkeypatch.setenv("CPU_REPAIRS", " ".join(names))
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "cpu_repairs"), prepend=os.pathsep)
        # This process imported vLLM long ago, and makes the settings that the engine's gets.
        module = import_module(platform)
        for name in ("check_and_update_config", "graph_pool_handle", "support_static_graph_mode", "ray_device_key"):
            monkeypatch.setattr(module.CpuPlatform, name, getattr(module.CpuPlatform, name, None), raising=False)
        for name in names:
            import_module(f"cpu_repairs.{name}").REPAIRS[platform](module)

    return repair


@pytest.fixture(scope="session")
def address(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that several files ask."""
    options = [
        *("--max-model-len", "2048", "--max-num-seqs", "8", "--enable-prompt-tokens-details"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "granite"),
        # Where whitespace may be anything, a small model may go on with it for ever.
        *("--structured-outputs-config.backend", "xgrammar"),
        *("--structured-outputs-config.disable_any_whitespace", "true"),
        *("--additional-config.megacontext.window", str(SERVED_WINDOW)),
        *("--additional-config.megacontext.history_limit", str(SERVED_LIMIT)),
    ]
    # As a user has it, and not as `make test` does: the tokenizer has threads.
    environment = {"TOKENIZERS_PARALLELISM": "true"}
    with serve(model_dir, tmp_path_factory.mktemp("server"), *options, environment=environment) as server:
        yield server.address


@pytest.fixture(scope="session")
def tiny(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random Llama layers behind the default model's tokenizer; weights large enough for clear decisions."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
