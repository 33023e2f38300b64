"""Real text with a fact that is told four times, the whole way from the question to what is shown."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.working_context import Kind

PLACES = ("granite bridge", "copper pavilion", "walnut library", "marble fountain")
AT = (9_000, 31_000, 52_000, 70_000)
LENGTH, WINDOW = 80_000, 1_024


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture(scope="module")
def focus(tokenizer: PreTrainedTokenizerBase) -> Focus:
    return Focus.of(tokenizer, MegaContextConfig())


@pytest.fixture(scope="module")
def told(tokenizer: PreTrainedTokenizerBase, text: str) -> list[list[int]]:
    """Pieces of the text, a statement after each but the last."""
    tokens = tokenizer(text[: LENGTH * 6], add_special_tokens=False, verbose=False)["input_ids"][:LENGTH]
    pieces = np.split(np.array(tokens), AT)
    says = [f" The meeting point of the rowing club moved to the {place}." for place in PLACES]
    ids = [tokenizer(said, add_special_tokens=False)["input_ids"] for said in says]
    return [[*piece.tolist(), *said] for piece, said in zip(pieces, [*ids, []], strict=True)]


def shown(focus: Focus, tokenizer: PreTrainedTokenizerBase, told: list[list[int]], asked: str) -> str:
    """The text that is raw before the question."""
    history = [token for piece in told for token in piece]
    # Tokens of a chat, as the template would make them of so long a text.
    head, tail = tokenizer("<|im_start|>user\n")["input_ids"], tokenizer(f"\n\n{asked}<|im_end|>\n")["input_ids"]
    tokens = np.array([*head, *history, *tail], dtype=np.uint32)
    entries = focus.allocate(focus.score(tokens), WINDOW, gists=False).entries
    raw = [token for e in entries if e.kind is Kind.RAW for token in tokens[e.start : e.end].tolist()]
    return str(tokenizer.decode(raw[: -len(tail)]))


def test_the_last_statement_and_its_surroundings(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, told: list[list[int]]
) -> None:
    now = shown(focus, tokenizer, told, "Where is the meeting point of the rowing club now?")
    assert [place in now for place in PLACES] == [False, False, False, True]


@pytest.mark.parametrize(
    "asked",
    ["Where was the meeting point of the rowing club?", "Where was the meeting point of the rowing club until now?"],
)
def test_all_of_them_where_the_question_is_not_of_now(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, told: list[list[int]], asked: str
) -> None:
    ever = shown(focus, tokenizer, told, asked)
    assert all(place in ever for place in PLACES)


def test_a_subject_is_no_fact_that_changed(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, told: list[list[int]]
) -> None:
    """What is spoken of all over a history is not hidden but for its last mention."""
    said = tokenizer(" The rowing club met at the meeting point.", add_special_tokens=False)["input_ids"]
    piece = told[0][:5_000]
    often = [token for start in range(0, 5_000, 200) for token in [*piece[start : start + 200], *said]]
    now = shown(focus, tokenizer, [often, *told[1:2]], "Where is the meeting point of the rowing club now?")
    assert now.count("rowing club") > 10
