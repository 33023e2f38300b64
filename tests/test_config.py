from pathlib import Path

import pytest

from megacontext_vllm.config import MegaContextConfig, default_store, parse_config
from megacontext_vllm.errors import ConfigError, MegaContextError


def test_an_empty_section_takes_every_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEGACONTEXT_CACHE", raising=False)
    settings = parse_config({})
    assert (settings.window, settings.output_reserve, settings.gist_net, settings.gist_pool_pages) == (None,) * 4
    assert settings.history_limit == 16_777_216
    assert settings.store == Path.home() / ".cache" / "megacontext" / "store"
    assert (settings.head_tokens, settings.tail_tokens) == (64, 128)
    assert settings.lens == "blend"


def test_the_cache_variable_moves_the_default_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEGACONTEXT_CACHE", str(tmp_path))
    assert parse_config({}).store == default_store() == tmp_path / "store"
    assert parse_config({"store": "/elsewhere"}).store == Path("/elsewhere")


def test_values_arrive() -> None:
    settings = parse_config({"window": 512, "gist_net": "random:3", "traces_kept": 2, "store": "s"})
    assert (settings.window, settings.gist_net, settings.traces_kept, settings.store) == (512, "random:3", 2, Path("s"))


def test_settings_cannot_be_changed_later() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_config({}).window = 512  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "meant"),
    [("windw", "window"), ("history_limt", "history_limit"), ("tail_token", "tail_tokens"), ("gistnet", "gist_net")],
)
def test_an_unknown_key_names_the_closest(key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown setting '{key}'.*Did you mean '{meant}'"):
        parse_config({key: 1})


def test_a_key_like_no_other_lists_all() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({"qqqqqq": 1})
    for name in MegaContextConfig.model_fields:
        assert name in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("window", 127),
        ("window", "many"),
        ("window", 200.5),
        ("output_reserve", 0),
        ("history_limit", 0),
        ("head_tokens", -1),
        ("tail_tokens", 0),
        ("lens", "bm25"),
        ("gist_tokens_per_step", 31),
        ("gist_pool_pages", 0),
        ("traces_kept", 0),
        ("store", None),
    ],
)
def test_a_bad_value_is_named_with_what_was_given(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({key: value})
    assert key in str(refused.value) and repr(value) in str(refused.value)


def test_all_bad_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({"window": 1, "traces_kept": 0})
    assert "window" in str(refused.value) and "traces_kept" in str(refused.value)


@pytest.mark.parametrize("section", [True, "window", ["window"], 3])
def test_a_section_that_is_no_object_is_refused(section: object) -> None:
    with pytest.raises(ConfigError, match="must be an object"):
        parse_config(section)  # type: ignore[arg-type]


def test_config_errors_are_value_errors_of_the_one_hierarchy() -> None:
    assert issubclass(ConfigError, MegaContextError) and issubclass(ConfigError, ValueError)


@pytest.mark.parametrize(
    ("section", "max_model_len", "window"),
    [
        ({}, 8192, 8192 - 1024),  # at most 1,024 are kept for the answer
        ({}, 1000, 750),  # a quarter
        ({}, 171, 129),
        ({"output_reserve": 10}, 1000, 990),
        ({"output_reserve": 4000}, 8192, 4192),
        ({"window": 512}, 1000, 512),
        ({"window": 999}, 1000, 999),  # one position is left for an answer
        ({"window": 512, "output_reserve": 488}, 1000, 512),
        ({"output_reserve": 872}, 1000, 128),
    ],
)
def test_window_for(section: dict[str, int], max_model_len: int, window: int) -> None:
    assert parse_config(section).window_for(max_model_len) == window


@pytest.mark.parametrize(
    ("section", "max_model_len"),
    [
        ({"window": 1000}, 1000),
        ({"window": 512, "output_reserve": 489}, 1000),
        ({"output_reserve": 873}, 1000),
        ({"output_reserve": 2000}, 1000),
        ({}, 169),
    ],
)
def test_window_for_refuses_what_leaves_no_room(section: dict[str, int], max_model_len: int) -> None:
    with pytest.raises(ConfigError, match=f"max_model_len={max_model_len}.*--max-model-len"):
        parse_config(section).window_for(max_model_len)


def test_the_least_engine_that_works_by_default() -> None:
    assert parse_config({}).window_for(170) == 128
