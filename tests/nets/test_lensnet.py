"""LensNet on disk and what it knows: exact after saving, refused when damaged, small, and a help with English."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from megacontext_vllm.errors import ConfigError
from megacontext_vllm.nets.lensnet import NAME, SHIPPED, TOTALS, LensNet, load, regular_forms, save


def small(seed: int = 0) -> LensNet:
    vectors = np.random.default_rng(seed).normal(size=(5, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return LensNet(("boot", "carry", "dance", "plan", "été"), vectors, 0.15, 100.0, {"name": "LensNet"})


def test_saved_and_loaded(tmp_path: Path) -> None:
    save(small(), tmp_path)
    once = load(tmp_path)
    assert once.words == small().words and (once.temperature, once.weight) == (0.15, 100.0)
    assert np.abs(once.vectors - small().vectors).max() < 0.01, "int8"
    assert np.allclose(np.linalg.norm(once.vectors, axis=1), 1, atol=1e-6)
    assert once.card["name"] == "LensNet"
    save(once, tmp_path / "again")
    twice = load(tmp_path / "again")
    assert np.array_equal(once.vectors, twice.vectors) and once.fingerprint == twice.fingerprint
    assert small(1).fingerprint != small().fingerprint


def test_probabilities() -> None:
    net, every = small(), np.arange(5)
    of = net.probabilities([0, 1, 2, 3, 4], every)
    assert of.shape == (5, 5) and of.dtype == np.float32
    assert np.array_equal(of.argmax(axis=1), every) and np.allclose(of.sum(axis=1), 1, atol=1e-5)
    odds = np.exp((net.vectors @ net.vectors.T - 1) / net.temperature)
    np.testing.assert_allclose(of, odds / odds.sum(axis=1, keepdims=True), rtol=1e-5)


def test_probabilities_of_some_words_are_those_among_all() -> None:
    """Whatever was asked before, to the last digit: what it remembers must not show in an answer."""
    net = small()
    some = net.probabilities([3, 0], np.array([4, 1]))
    np.testing.assert_allclose(some, small().probabilities([3, 0], np.arange(5))[:, [4, 1]], rtol=1e-6)
    assert np.array_equal(some, net.probabilities([3, 0], np.array([4, 1])))
    fresh = small()
    for row in (4, 2, 0, 1, 3):
        fresh.probabilities([row], np.arange(5))
    assert np.array_equal(some, fresh.probabilities([3, 0], np.array([4, 1])))


@pytest.mark.parametrize("folder", [None, SHIPPED])
def test_totals_that_come_along_change_nothing(tmp_path: Path, folder: Path | None) -> None:
    if folder is None:
        save(small(), tmp_path)
    else:
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    known = load(tmp_path)
    (tmp_path / TOTALS).unlink()
    alone = load(tmp_path)
    assert len(known._totals) == len(known.words) and not alone._totals
    asked, words = [0, len(known.words) // 2, len(known.words) - 1], np.arange(len(known.words))
    np.testing.assert_allclose(known.probabilities(asked, words), alone.probabilities(asked, words), rtol=1e-5)


def test_other_totals_are_refused(tmp_path: Path) -> None:
    save(small(0), tmp_path / "a")
    save(small(1), tmp_path / "b")
    content = bytearray((tmp_path / "b" / TOTALS).read_bytes())
    shutil.copy(tmp_path / "a" / TOTALS, tmp_path / "b")
    with pytest.raises(ConfigError, match="damaged, or another LensNet's"):
        load(tmp_path / "b")
    content[-2] ^= 1
    (tmp_path / "b" / TOTALS).write_bytes(content)
    with pytest.raises(ConfigError, match="damaged, or another LensNet's"):
        load(tmp_path / "b")
    (tmp_path / "b" / TOTALS).write_bytes(content[:-2])
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "b")
    save(small(1), tmp_path / "b")
    assert load(tmp_path / "b").fingerprint == load(tmp_path / "b").fingerprint, "and made again where a net is saved"


def test_regular_forms() -> None:
    assert set(regular_forms("carry")) == {"carries", "carried", "carrying"}
    assert set(regular_forms("dance")) == {"dances", "danced", "dancing"}
    assert {"plans", "planned", "planning"} < set(regular_forms("plan"))
    assert "boxes" in set(regular_forms("box")) and "plays" in set(regular_forms("play"))
    rows = small().rows
    assert rows["planned"] == rows["plan"] == 3 and rows["carried"] == 1 and "planed" in rows
    assert len(LensNet(("plan", "plans"), np.eye(2, dtype=np.float32), 0.1, 1.0).rows) > 2
    assert LensNet(("plan", "plans"), np.eye(2, dtype=np.float32), 0.1, 1.0).rows["plans"] == 1, "a word is itself"


def damage(folder: Path, what: str) -> None:
    weights, card = folder / NAME, (folder / NAME).with_suffix(".json")
    match what:
        case "no weights":
            weights.unlink()
        case "no card":
            card.unlink()
        case "half a file":
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        case "another byte":
            content = bytearray(weights.read_bytes())
            content[-30] ^= 1
            weights.write_bytes(content)
        case "no JSON":
            card.write_text("{")
        case "a list":
            card.write_text("[]")
        case "another format":
            card.write_text(json.dumps(json.loads(card.read_text()) | {"format": 99}))
        case "no temperature":
            card.write_text(json.dumps({k: v for k, v in json.loads(card.read_text()).items() if k != "temperature"}))
        case "another temperature":
            card.write_text(json.dumps(json.loads(card.read_text()) | {"temperature": 0.2}))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no weights", "does not exist: give a folder"),
        ("no card", "not a whole LensNet"),
        ("half a file", "not a whole LensNet"),
        ("another byte", "do not belong together, or one is damaged"),
        ("no JSON", "not a whole LensNet"),
        ("a list", "not a whole LensNet"),
        ("another format", "format 99, this version reads 1"),
        ("no temperature", "not a whole LensNet"),
        ("another temperature", "do not belong together"),
    ],
)
def test_damage_is_told(tmp_path: Path, what: str, said: str) -> None:
    save(small(), tmp_path)
    damage(tmp_path, what)
    with pytest.raises(ConfigError, match=said):
        load(tmp_path)


def test_weights_and_card_of_two_nets(tmp_path: Path) -> None:
    save(small(0), tmp_path / "a")
    save(small(1), tmp_path / "b")
    shutil.copy(tmp_path / "a" / NAME, tmp_path / "b")
    with pytest.raises(ConfigError, match="do not belong together"):
        load(tmp_path / "b")


def test_the_shipped_one_is_small_and_says_what_it_is() -> None:
    net = load()
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 10e6 and net.vectors.shape[1] <= 128
    assert {"recipe", "data", "licence", "trial", "language"} <= set(net.card)
    assert "Princeton" in net.card["data"]["wordnet"], "the notice that WordNet's licence asks for"


@pytest.mark.parametrize(
    ("asked", "said", "unrelated"),
    [("shoes", "boots", "river"), ("teeth", "molars", "parliament"), ("fish", "herring", "treaty")],
)
def test_the_shipped_one_knows_english(asked: str, said: str, unrelated: str) -> None:
    net = load()
    (of,) = net.probabilities([net.rows[asked]], np.arange(len(net.words)))
    assert of[net.rows[said]] > 5 * of[net.rows[unrelated]]
