"""Asking for the plugin, with vLLM's real configuration and command line; no engine is started."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from megacontext_vllm.engine import activation
from megacontext_vllm.engine.activation import is_active
from megacontext_vllm.engine.embedding import OVERLAY, OVERLAY_VERSION
from megacontext_vllm.engine.patches import MARK
from megacontext_vllm.engine.register import register
from megacontext_vllm.engine.versions import is_tested
from megacontext_vllm.errors import ConfigError, UnsupportedEngineError

Configure = Callable[..., Any]
STOCK_WORKERS = ("vllm.v1.worker.cpu_worker.CPUWorker", "vllm.v1.worker.gpu_worker.Worker")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody asks by environment, and what the plugin writes there goes with the test."""
    for name in ("VLLM_PLUGINS", "MEGACONTEXT_DISABLE", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(activation.WRITTEN, raising=False)
    yield
    os.environ.pop("VLLM_PLUGINS", None)


@pytest.fixture
def configure(tiny_model: Path) -> Configure:
    def create(megacontext: object = None, **arguments: Any) -> Any:
        if megacontext is not None:
            arguments["additional_config"] = {"megacontext": megacontext}
        defaults = {"load_format": "dummy", "max_model_len": 512, "enforce_eager": True}
        return EngineArgs(model=str(tiny_model), **{**defaults, **arguments}).create_engine_config()

    return create


def is_stock(config: Any) -> bool:
    return config.scheduler_config.scheduler_cls is None and config.parallel_config.worker_cls in STOCK_WORKERS


def assert_ours(config: Any) -> None:
    assert is_active(config)
    name = "MegaContextAsyncScheduler" if config.scheduler_config.async_scheduling else "MegaContextScheduler"
    assert config.scheduler_config.get_scheduler_cls().__name__ == name
    assert config.parallel_config.worker_cls in activation.WORKERS.values()
    assert isinstance(config.additional_config["megacontext"], dict)


def test_installed_but_not_asked_for_is_stock(configure: Configure) -> None:
    config = configure(additional_config={"other": {"x": 1}})
    assert hasattr(EngineArgs.create_engine_config, MARK), "the plugin was loaded"
    assert is_stock(config) and not is_active(config)
    assert config.additional_config == {"other": {"x": 1}}
    assert "VLLM_PLUGINS" not in os.environ


@pytest.mark.parametrize("section", [{}, {"window": 256, "store": "/somewhere"}])
def test_asked_for_by_additional_config(configure: Configure, section: dict[str, Any]) -> None:
    config = configure(section)
    assert_ours(config)
    assert config.additional_config == {"megacontext": section}


def test_asked_for_by_the_list_of_plugins(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other,megacontext")
    config = configure(additional_config={"other": 1})
    assert_ours(config)
    assert config.additional_config == {"other": 1, "megacontext": {}}
    assert os.environ["VLLM_PLUGINS"] == "other,megacontext"


def test_a_list_of_plugins_without_ours_does_not_ask(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "megacontextual")
    assert is_stock(configure())


def test_asking_lets_vllm_load_the_routes_and_all_else(configure: Configure) -> None:
    configure({})
    named = os.environ["VLLM_PLUGINS"].split(",")
    installed = {p.name for group in activation.PLUGIN_GROUPS for p in entry_points(group=group)}
    assert "megacontext" in named and len(named) == len(set(named))
    assert set(named) == installed - activation.CONSENT_BY_NAME
    # vLLM reads its mere name in the list as consent to downloads.
    assert "lora_hf_hub_resolver" in installed and "lora_hf_hub_resolver" not in named


def test_an_allow_list_keeps_what_it_named(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    configure({})
    assert os.environ["VLLM_PLUGINS"] == "other,megacontext"


def test_a_second_engine_that_does_not_ask_stays_stock(configure: Configure) -> None:
    assert_ours(configure({}))
    assert "megacontext" in os.environ["VLLM_PLUGINS"]
    assert is_stock(configure())
    assert_ours(configure({}))
    assert is_stock(configure())


def test_one_set_of_arguments_can_be_configured_twice(tiny_model: Path) -> None:
    arguments = EngineArgs(
        model=str(tiny_model), load_format="dummy", max_model_len=512, additional_config={"megacontext": {}}
    )
    assert_ours(arguments.create_engine_config())
    assert_ours(arguments.create_engine_config())


def test_registering_again_changes_nothing() -> None:
    before = EngineArgs.create_engine_config
    register()
    assert EngineArgs.create_engine_config is before
    assert not hasattr(getattr(before, MARK), MARK), "wrapped once"


def test_a_pooling_model_keeps_the_stock_path(configure: Configure) -> None:
    assert is_stock(configure({}, runner="pooling"))


# ---- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"windw": 256}, "Unknown setting 'windw'.*Did you mean 'window'"),
        ({"window": 12}, "window"),
        ({"window": 512}, "max_model_len=512"),
        ("yes", "must be an object"),
    ],
)
def test_a_wrong_section_fails_at_once(configure: Configure, section: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(section)
    assert "VLLM_PLUGINS" not in os.environ, "a failed start leaves nothing behind"


def test_another_scheduler_is_refused(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"--scheduler-cls \(some.Scheduler\)"):
        configure({}, scheduler_cls="some.Scheduler")
    with pytest.raises(ConfigError, match="--scheduler-cls"):
        configure({}, scheduler_cls="vllm.v1.core.sched.scheduler.Scheduler")


def test_an_engine_within_the_front_ends_process_is_refused(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with pytest.raises(UnsupportedEngineError, match="VLLM_ENABLE_V1_MULTIPROCESSING"):
        configure({})
    assert is_stock(configure())


def test_an_unknown_worker_is_refused(configure: Configure) -> None:
    with pytest.raises(UnsupportedEngineError, match="some_platform.Worker"):
        configure({}, worker_cls="some_platform.Worker")


def test_an_engine_without_tokenizer_is_refused(configure: Configure) -> None:
    with pytest.raises(UnsupportedEngineError, match="--skip-tokenizer-init"):
        configure({}, skip_tokenizer_init=True)


@pytest.mark.parametrize("found", ["0.31.9", "0.33.0", "0.33.0rc1", "1.0", "unknown"])
def test_an_untested_vllm_is_refused_only_if_asked(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    monkeypatch.setattr("megacontext_vllm.engine.versions.vllm_version", lambda: found)
    with pytest.raises(UnsupportedEngineError) as refused:
        configure({})
    assert found in str(refused.value) and "MEGACONTEXT_DISABLE=1" in str(refused.value)
    assert ">=0.32.0" in str(refused.value) and "<0.33" in str(refused.value)
    assert is_stock(configure())


@pytest.mark.parametrize("found", ["0.32.0", "0.32.0+cpu", "0.32.1", "0.32.0+cu130.dev"])
def test_builds_of_a_tested_vllm_are_tested(found: str) -> None:
    assert is_tested(found)


@pytest.mark.parametrize("found", ["0.32.0rc1", "0.32.1.dev3+g123", "0.33.0.dev1", "0.33.0"])
def test_versions_before_and_behind_are_not(found: str) -> None:
    assert not is_tested(found)


# ---- the command line -----------------------------------------------------------------------------------------------


def serve_parser() -> FlexibleArgumentParser:
    return make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))


def test_the_flag_asks(tiny_model: Path) -> None:
    line = ["--model", str(tiny_model), "--plugin", "megacontext", "--max-model-len", "512", "--load-format", "dummy"]
    arguments = AsyncEngineArgs.from_cli_args(serve_parser().parse_args(line))
    assert arguments.additional_config == {"megacontext": {}}
    assert_ours(arguments.create_engine_config())


def test_the_flag_and_dotted_settings_go_together(tiny_model: Path) -> None:
    line = ["--model", str(tiny_model), "--plugin", "megacontext", "--additional-config.megacontext.window", "256"]
    arguments = AsyncEngineArgs.from_cli_args(serve_parser().parse_args(line))
    assert arguments.additional_config == {"megacontext": {"window": 256}}


def test_without_the_flag_nothing_is_asked(tiny_model: Path) -> None:
    arguments = AsyncEngineArgs.from_cli_args(serve_parser().parse_args(["--model", str(tiny_model)]))
    assert "megacontext" not in (arguments.additional_config or {})


def test_an_unknown_plugin_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve_parser().parse_args(["--plugin", "megacontxt"])
    assert "megacontext" in capsys.readouterr().err


def test_the_flag_is_in_the_help() -> None:
    text = serve_parser().format_help()
    assert "MegaContext" in text and "--plugin" in text


# ---- the kill switch ------------------------------------------------------------------------------------------------

FRESH = """
import sys
from vllm.engine.arg_utils import EngineArgs
config = EngineArgs(model=sys.argv[1], load_format="dummy", max_model_len=512,
                    additional_config={"megacontext": {}}).create_engine_config()
print("classes", config.scheduler_config.scheduler_cls, config.parallel_config.worker_cls)
print("loaded", "megacontext_vllm.engine.front_end" in sys.modules)
"""
FLAG = """
import sys
from vllm.engine.arg_utils import EngineArgs
from vllm.plugins import load_general_plugins
from vllm.utils.argparse_utils import FlexibleArgumentParser
load_general_plugins()
parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
args = EngineArgs.from_cli_args(parser.parse_args(["--model", sys.argv[1], "--plugin", "megacontext"]))
print("asked", args.additional_config)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("switch", "ours"), [("1", False), ("0", True)])
def test_the_kill_switch_leaves_stock_vllm(tiny_model: Path, switch: str, ours: bool) -> None:
    """In a process of its own, where vLLM itself loads the plugin."""
    environment = {**os.environ, "MEGACONTEXT_DISABLE": switch, "VLLM_PLUGINS": "megacontext"}
    ran = subprocess.run(
        [sys.executable, "-c", FRESH, str(tiny_model)], env=environment, capture_output=True, text=True, check=True
    )
    classes = next(line for line in ran.stdout.splitlines() if line.startswith("classes"))
    assert ("MegaContextScheduler" in classes or "MegaContextAsyncScheduler" in classes) is ours
    if not ours:
        assert classes.split()[1] == "None" and classes.split()[2] in STOCK_WORKERS
    assert f"loaded {ours}" in ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("switch", "asked"), [("1", "asked {}"), ("0", "asked {'megacontext': {}}")])
def test_a_command_with_the_flag_stays_one(tiny_model: Path, switch: str, asked: str) -> None:
    """Whoever turns the plugin off should not have to take the flag out of every unit file."""
    environment = {**os.environ, "MEGACONTEXT_DISABLE": switch}
    ran = subprocess.run(
        [sys.executable, "-c", FLAG, str(tiny_model)], env=environment, capture_output=True, text=True, check=True
    )
    assert asked in ran.stdout
    assert ("--plugin megacontext does nothing" in ran.stdout + ran.stderr) is (switch == "1")


# ---- gists ----------------------------------------------------------------------------------------------------------


def test_gists_are_refused_beside_lora_only_if_they_are_asked_for(configure: Configure) -> None:
    with pytest.raises(UnsupportedEngineError, match="LoRA adapters"):
        configure({"gist_net": "random:1"}, enable_lora=True)
    assert configure({}, enable_lora=True).additional_config == {"megacontext": {"gist_net": "none"}}
    assert configure({"gist_net": "none"}, enable_lora=True).additional_config == {"megacontext": {"gist_net": "none"}}


def test_gists_are_refused_beside_ranks_that_are_added_later(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure({"gist_net": "random:1"})
    config.parallel_config.enable_elastic_ep = True
    assert activation._at_odds_with_gists(config) == "--enable-elastic-ep"


def test_settings_that_are_no_json_can_be_hashed(configure: Configure, tmp_path: Path) -> None:
    """vLLM does, for its cache of compiled models; and equal settings are equal to it."""
    config = configure({"store": tmp_path / "store"})
    assert config.additional_config == {"megacontext": {"store": str(tmp_path / "store")}}
    assert config.compute_hash() == configure({"store": str(tmp_path / "store")}).compute_hash()


def test_no_setting_has_a_model_compiled_anew(configure: Configure) -> None:
    config, other = configure({}), configure({"window": 256, "refocus_tokens": 64, "gist_net": "none"})
    assert config.compute_hash() == other.compute_hash()
    assert other.additional_config["megacontext"]["window"] == 256
    other.additional_config["another"] = 1
    assert config.compute_hash() != other.compute_hash()


def test_a_model_compiled_with_the_overlay_is_another_one_to_the_cache(configure: Configure) -> None:
    """As the worker notes it; else a model compiled without it would be loaded, and show no gists."""
    config = configure({})
    before = config.compute_hash()
    config.additional_config[OVERLAY] = OVERLAY_VERSION
    assert config.compute_hash() != before
