from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from megacontext_vllm.nets.model_fingerprint import SAMPLED, embedding_digest, model_fingerprint, sampled_ids


class Tokenizer:
    def __init__(self, vocabulary: dict[str, int]) -> None:
        self.vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def test_samples_reach_from_the_first_token_to_the_last() -> None:
    ids = sampled_ids(49152)
    assert len(ids) == SAMPLED and ids[0] == 0 and ids[-1] == 49151 and (ids.diff() > 0).all()


def test_the_serving_type_does_not_matter_but_the_values_do() -> None:
    # Wide rows of small values: some are below what float16 holds exactly.
    rows = (torch.randn(SAMPLED, 2048, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    assert embedding_digest(rows) == embedding_digest(rows.float()) == embedding_digest(rows.double())
    assert not torch.equal(rows.half().bfloat16(), rows) and embedding_digest(rows) == embedding_digest(rows.half())
    assert embedding_digest(rows) != embedding_digest(rows * 1.5)


def test_tokenizer_and_embedding_count_and_order_does_not() -> None:
    plain = model_fingerprint(Tokenizer({"a": 0, "b": 1}), bytes(16))
    assert plain == model_fingerprint(Tokenizer({"b": 1, "a": 0}), bytes(16)) and len(plain) == 16
    others = {
        model_fingerprint(Tokenizer({"a": 1, "b": 0}), bytes(16)),
        model_fingerprint(Tokenizer({"a": 0, "b": 1}), bytes(15) + b"x"),
        plain,
    }
    assert len(others) == 3


def test_of_the_default_model_it_stays_what_stored_trees_have(model_dir: Path) -> None:
    """Trees are found by it: a change loses all of them."""
    tokenizer = AutoTokenizer.from_pretrained(str(model_dir))
    table = load_file(model_dir / "model.safetensors")["model.embed_tokens.weight"]
    digest = embedding_digest(table[sampled_ids(len(table))])
    assert model_fingerprint(tokenizer, digest).hex() == "0d08d2e35a71b993c41b58a667f94700"
