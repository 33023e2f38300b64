"""The splits: by the document's id alone, and no passage is in two of them."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacontext_vllm.corpus.document import Document
from megacontext_vllm.corpus.overlap import PASSAGE, Words, count_shared, keep_apart, passages, without_duplicates
from megacontext_vllm.corpus.splitting import split_of

# Few words, so that passages are shared by chance too, also where cutting brings two ends together.
TEXTS = st.lists(st.text("ab", min_size=1, max_size=1), max_size=120).map(
    lambda words: "\n".join(" ".join(words[at : at + 9]) for at in range(0, len(words), 9))
)


def document(name: str, text: str, split: Any = "train", kind: Any = "reference") -> Document:
    return Document(f"s/{name}", "s", kind, "MIT", split, text)


def sentence(seed: int, words: int = 50) -> str:
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(10**6)}" for _ in range(words))


def test_a_split_depends_on_the_id_and_the_shares_alone() -> None:
    ids = [f"source/{number}" for number in range(4000)]
    splits = [split_of(id, 0.2, 0.05) for id in ids]
    assert splits == [split_of(id, 0.2, 0.05) for id in ids]
    assert splits[:3] == ["train", "validation", "train"]  # for ever: nets were trained by it
    assert splits.count("test") == pytest.approx(800, abs=80)
    assert splits.count("validation") == pytest.approx(200, abs=45)
    # A larger share of one takes no document from it.
    assert all(split_of(id, 0.3, 0.05) == "test" for id, split in zip(ids, splits) if split == "test")


@given(st.lists(st.sampled_from("abc"), max_size=100))
def test_equal_passages_have_equal_hashes(words: list[str]) -> None:
    hashes = passages(Words().numbers(" ".join(words)))
    assert hashes.dtype == np.uint64 and len(hashes) == max(len(words) - PASSAGE + 1, 0)
    whole = [tuple(words[at : at + PASSAGE]) for at in range(len(hashes))]
    assert len(set(whole)) == len(set(hashes.tolist())) == len(set(zip(whole, hashes.tolist())))


def test_of_equal_documents_the_one_in_test_stays() -> None:
    text = sentence(1)
    same = [document("a", text), document("b", text.upper() + "\n"), document("c", text, "test")]
    for order in ([*same, document("d", "else")], [document("d", "else"), *same[::-1]]):
        assert [kept.id for kept in without_duplicates(order, Words())] == ["s/c", "s/d"]


def test_what_is_shared_is_cut_where_it_matters_less() -> None:
    shared, own = sentence(1), [sentence(seed) for seed in range(2, 6)]
    test = document("a", f"{own[0]}\n\n{shared}", "test")
    validation = document("b", f"{own[1]}\n\n{shared}\n\n{own[3]}", "validation")
    train = document("c", f"{own[2]}\nmore\n{shared.capitalize()}")
    assert count_shared([test, validation, train]) > 0
    apart = keep_apart([train, test, validation], Words())
    assert [kept.text for kept in apart] == [f"{own[2]}\nmore", test.text, f"{own[1]}\n\n{own[3]}"]


def test_from_code_whole_paragraphs_are_cut() -> None:
    shared = sentence(1).replace(" ", "\n")
    code = document("b", f"x = 1\n\n\ndef f():\n{shared}\n    return 2\n\n\ny = 3", kind="code")
    apart = keep_apart([document("a", shared, "test", "code"), code], Words())
    assert apart[1].text == "x = 1\n\ny = 3"


def test_short_phrases_may_be_shared() -> None:
    phrase = sentence(1, PASSAGE - 1)
    both = [document("a", f"{phrase} one", "test"), document("b", f"{phrase} two")]
    assert keep_apart(both, Words()) == both and count_shared(both) == 0


@given(st.lists(st.tuples(TEXTS, st.sampled_from(["test", "validation", "train"])), min_size=2, max_size=5))
def test_nothing_is_shared_afterwards(texts: list[tuple[str, str]]) -> None:
    documents = [document(str(number), text, split) for number, (text, split) in enumerate(texts)]
    apart = keep_apart(documents, Words())
    assert count_shared(apart) == 0
    assert [kept.text for kept in apart if kept.split == "test"] == [d.text for d in documents if d.split == "test"]
    assert keep_apart(documents[::-1], Words()) == apart[::-1]
