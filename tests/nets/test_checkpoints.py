"""Saved and loaded nets make the same gists; everything else is refused with a word on what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megacontext_vllm.errors import ConfigError
from megacontext_vllm.nets.card import Card
from megacontext_vllm.nets.checkpoints import NAME, load, save
from megacontext_vllm.nets.embedding_space import EmbeddingSpace
from megacontext_vllm.nets.gistnet import BLOCK, load_gist_net
from megacontext_vllm.nets.learned import LearnedGistNet, stored_tensors
from megacontext_vllm.nets.pooling import PoolingGistNet
from megacontext_vllm.nets.shipped import find_default, find_shipped, shown_by_default
from megacontext_vllm.nets.transformer import TransformerGistNet

DIM = 24
MODEL = bytes(range(16))
SPACE = EmbeddingSpace(torch.randn(DIM, generator=torch.Generator().manual_seed(0)), 3.2)
MAKERS: dict[str, Callable[[], LearnedGistNet]] = {
    "pooling": lambda: PoolingGistNet(DIM, heads=3, hidden=20, levels=3, scale=1.5, space=SPACE),
    "transformer": lambda: TransformerGistNet(DIM, 4, 2, 6, 40, layers=2, attention_bias=True, eps=1e-5, space=SPACE),
}


def make(kind: str = "pooling", seed: int = 0) -> LearnedGistNet:
    torch.manual_seed(seed)
    net = MAKERS[kind]()
    torch.nn.init.normal_(net.project.weight, std=0.1)
    return net


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(make(), tmp_path / "net", card())
    return tmp_path / "net"


def card() -> Card:
    return Card("?", {}, 0, "a model", MODEL.hex(), recipe={"lr": 0.1}, tokens_seen=5, metrics={"near": 0.3})


def edit(folder: Path, **changed: object) -> None:
    file = folder / "gistnet.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


@pytest.mark.parametrize("kind", MAKERS)
def test_what_was_saved_is_loaded_to_the_bit(kind: str, tmp_path: Path) -> None:
    net = make(kind)
    saved = save(net, tmp_path, card())
    assert {file.name for file in tmp_path.iterdir()} == {"gistnet.safetensors", "gistnet.json"}
    stored = load_file(tmp_path / NAME)
    assert {tensor.dtype for name, tensor in stored.items() if name not in ("mean", "norm")} == {torch.bfloat16}
    loaded = load(tmp_path, DIM, MODEL)
    for name, tensor in stored_tensors(loaded).items():
        assert torch.equal(tensor, stored[name]) and tensor.dtype == stored[name].dtype, name
    assert loaded.trained and not loaded.training and loaded.sizes == net.sizes
    assert loaded.fingerprint.hex() == saved.gist_fingerprint == net.fingerprint.hex()
    # Saved again it is the same file: nothing is lost on the way.
    save(loaded, tmp_path / "again", card())
    assert (tmp_path / "again" / NAME).read_bytes() == (tmp_path / NAME).read_bytes()
    net.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
    children = torch.randn(4, BLOCK, DIM)
    assert torch.equal(net.eval()(children, 2), loaded(children, 2))


def test_the_card_says_what_it_is(folder: Path) -> None:
    raw = json.loads((folder / "gistnet.json").read_text())
    sizes = {"dim": DIM, "heads": 3, "hidden": 20, "levels": 3, "scale": 1.5}
    assert raw["architecture"] == "pooling" and raw["sizes"] == sizes
    assert raw["model_fingerprint"] == MODEL.hex() and raw["dim"] == DIM and raw["positions"] == "compact"
    assert raw["recipe"] == {"lr": 0.1} and raw["tokens_seen"] == 5 and raw["licence"] == "Apache-2.0" and raw["date"]


def test_a_file_can_be_named_instead_of_its_folder(folder: Path) -> None:
    assert load(folder / NAME, DIM, MODEL).fingerprint == load(folder, DIM, None).fingerprint


def refused(folder: Path, *parts: str, dim: int = DIM, model: bytes = MODEL) -> None:
    with pytest.raises(ConfigError) as error:
        load(folder, dim, model)
    for part in parts:
        assert part in str(error.value), str(error.value)


def test_another_model_is_refused(folder: Path) -> None:
    refused(folder, "a model", MODEL.hex(), bytes(16).hex(), "megacontext train gistnet", model=bytes(16))


def test_another_width_is_refused(folder: Path) -> None:
    refused(folder, f"width {DIM}", "have 25", dim=25)


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    edit(folder, architecture="wavelet")
    refused(folder, "'wavelet'", "pooling, transformer")


@pytest.mark.parametrize("sizes", [{}, {"dim": DIM, "colour": 3}, {"dim": DIM, "heads": -1}, {"dim": "wide"}])
def test_impossible_sizes_are_refused(folder: Path, sizes: dict[str, object]) -> None:
    edit(folder, sizes=sizes)
    refused(folder, "gistnet.json")


@pytest.mark.parametrize("broken", ["", "[]", "{}", "null", '{"format": 1}', '{"format": 2}', "\x80"])
def test_a_broken_card_is_refused(folder: Path, broken: str) -> None:
    (folder / "gistnet.json").write_text(broken, encoding="latin-1")
    refused(folder, "gistnet.json")


def test_a_missing_card_is_refused(folder: Path) -> None:
    (folder / "gistnet.json").unlink()
    refused(folder, "gistnet.json is missing")


def test_missing_unknown_and_misshapen_tensors_are_refused(folder: Path) -> None:
    whole = load_file(folder / NAME)
    save_file({name: tensor for name, tensor in whole.items() if name != "queries"}, folder / NAME)
    refused(folder, "missing: queries")
    save_file(whole | {"extra": torch.zeros(1)}, folder / NAME)
    refused(folder, "unknown: extra")
    save_file(whole | {"queries": torch.zeros(1)}, folder / NAME)
    refused(folder, "of another shape: queries")


def test_other_weights_than_the_card_s_are_refused(folder: Path) -> None:
    whole = load_file(folder / NAME)
    save_file(whole | {"queries": whole["queries"] + 1}, folder / NAME)
    refused(folder, "do not belong together")
    save_file(whole | {"queries": whole["queries"] * float("nan")}, folder / NAME)
    refused(folder, "no numbers in queries")


@pytest.mark.parametrize("torn", [0, 4, 100, -1])
def test_a_torn_file_is_refused(folder: Path, torn: int) -> None:
    (folder / NAME).write_bytes((folder / NAME).read_bytes()[:torn])
    refused(folder, "not a whole safetensors file")


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"queries": Bomb()}, tmp_path / "bomb.pt")
    for name in ("gistnet.pt", "pytorch_model.bin"):
        place = tmp_path / name.partition(".")[0]
        place.mkdir()
        (place / name).write_bytes((tmp_path / "bomb.pt").read_bytes())
        refused(place, "pickle", name)
        refused(place / name, "not a .safetensors file")
    (folder / NAME).write_bytes((tmp_path / "bomb.pt").read_bytes())
    refused(folder, "not a whole safetensors file")
    assert not (tmp_path / "exploded").exists()


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, NAME, "does not exist")
    refused(tmp_path / "nowhere", "does not exist")


def test_the_engine_s_name_for_it_is_its_folder(folder: Path) -> None:
    net = load_gist_net(str(folder), DIM, MODEL)
    assert net.trained and net.fingerprint == load(folder, DIM).fingerprint
    with pytest.raises(ConfigError, match="gist_net") as error:
        load_gist_net(str(folder), DIM + 1, MODEL)
    assert repr(str(folder)) in str(error.value)


def test_shipped_weights_are_found_by_fingerprint(tmp_path: Path) -> None:
    for name, model in (("one", MODEL), ("two", bytes(16))):
        save(make(), tmp_path / name, Card("?", {}, 0, name, model.hex()))
        for file in (tmp_path / name).iterdir():
            file.rename(tmp_path / f"{name}{file.suffix}")
    found = find_shipped(bytes(16), tmp_path)
    assert found == tmp_path / "two.safetensors" and load(found, DIM, bytes(16)).trained
    assert find_shipped(b"x" * 16, tmp_path) is None


def test_shipped_weights_are_the_default_only_where_their_card_says_so(tmp_path: Path) -> None:
    for name, model, by_default in (("one", MODEL, False), ("two", bytes(16), True)):
        save(make(), tmp_path / name, Card("?", {}, 0, name, model.hex(), by_default=by_default))
    one, two = tmp_path / "one", tmp_path / "two"
    assert find_shipped(MODEL, one) == one / NAME and find_default(MODEL, one) is None
    assert find_default(bytes(16), two) == two / NAME and find_default(MODEL, two) is None
    asked = [shown_by_default(dim, folder) for folder in (one, two) for dim in (DIM, DIM + 1)]
    assert asked == [False, False, True, False]


def test_a_model_without_shipped_weights_says_so() -> None:
    with pytest.raises(ConfigError, match="no GistNet for this model") as error:
        load_gist_net("shipped", DIM, b"x" * 16)
    assert "train" in str(error.value) and (b"x" * 16).hex() in str(error.value)
