"""What focus reads of a tokenizer, of the kinds there are."""

import shutil
from pathlib import Path

import mistral_common
import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.plain_text import CUT
from megacontext_vllm.focus.vocabulary import spelled_out

DATA = Path(mistral_common.__file__).parent / "data"
FILES = {"mistral_instruct_tokenizer_240323.model.v3": "tokenizer.model.v3", "tekken_240911.json": "tekken.json"}


@pytest.mark.parametrize(
    ("decoded", "text"),
    [
        ("\u2581mill", " mill"),
        ("mill\u2581by<0x0A>\u2581it", "mill by\n it"),
        ("<0xE5>", CUT),
        ("<0xE5><0x8C><0x99>室", "匙室"),
        ("<0x>", "<0x>"),
        ("", ""),
    ],
)
def test_sentencepieces_spelling(decoded: str, text: str) -> None:
    assert spelled_out(decoded) == text


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("text", "asked", "how"),
    [
        ("The mill stood by the river. ", "Who kept the mill?", "Answer in one sentence."),
        ("寒山天文台建于1874年。\n", "档案室的钥匙放在哪里？", ""),
    ],
)
def test_vllms_own_tokenizers_of_mistral(tmp_path: Path, file: str, text: str, asked: str, how: str) -> None:
    """Alone, their tokens are decoded to SentencePiece's spelling, in which no line ever ends."""
    from vllm.tokenizers.mistral import MistralTokenizer

    shutil.copy(DATA / file, tmp_path / FILES[file])
    tokenizer = MistralTokenizer.from_pretrained(tmp_path)
    message = f"{text * 300}\n\n{asked}\n\n{how}".rstrip()
    tokens = np.array(tokenizer.apply_chat_template([{"role": "user", "content": message}], tokenize=True), np.uint32)
    focus = Focus.of(tokenizer, MegaContextConfig())
    query = focus.score(tokens).query
    the, mill = (focus.lens.terms(np.array(tokenizer.encode(word)[-1:], np.uint32))[0] for word in ("by the", "a mill"))
    assert the == -1 and mill >= 0, "stop words are known"
    assert focus.decode(query.terms[query.weights == 1].tolist()).strip() == asked
    assert focus.decode(tokens[query.start :].tolist()).lstrip().startswith(asked)


def test_what_looks_like_it_is_left_alone(focus: Focus, tokenizer: PreTrainedTokenizerBase) -> None:
    text = "a chart \u2581\u2582\u2583 and a byte <0x0A>"
    assert focus.decode(tokenizer.encode(text)) == text
