"""Which questions ask for all of a text, or for one of its ends, and what is shown for them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from listed import each

from megacontext_vllm.focus.overview import asks_for_ends, asks_for_overview, raise_ends, spread_out

ALL_OF_IT = """
    Summarize this document. | What is this text about? | What are the main points? | Give an overview of the speeches.
    Please give a short summary. | TL;DR please | What happens in the story? | Summarise the above in three sentences.
    Write a brief summary of the conversation so far. | What topics does the document cover? | Can you summarize it?
    Provide a concise summary of the report for the board. | Summarize the text in 100 words. | Describe the document.
    What are the key takeaways? | Suggest a title for this article. | What does this file contain?
"""
A_PART = """
    Who is the author of this text? | What does the text say about sports? | Summarize the report's section on taxes.
    What is the treaty about? | Summarize what happened to Amos Reed. | Tell me about the mill.
    What does the document say about the mill? | What is the main point of the second amendment? | Who signed it?
    Summarize the speech on slavery. | List all the presidents. | What happened in 1911? | What happened at the mill?
    Summarize the data retention clause. | Summarize the log rotation policy. | Summarize the report by Amos Reed.
    Summarize the paper mill's history. | Summarize the context manager protocol. | How do I create a topic?
    Summarize the discussion between Amos Reed and Jonas Carver. | Who signed the summary of the meeting at Elm Quay?
    Which page has the outline of the data model? | What is a topic? | How do I list topics? | What is an abstract?
    What is the main file? | What are the key files? | What happened to the paper? | What did the note say?
    What is the subject of the second letter? | What are the key points of the treaty with France?
    Why? | What happened then? | Tell me more about it. | What about her? | What is the title of the report?
"""
ENDS = [
    ("How does the text begin?", (True, False)),
    ("Who is the author of this text?", (True, False)),
    ("What does the first sentence say?", (True, False)),
    ("When did the meeting start?", (True, False)),
    ("How does the story end?", (False, True)),
    ("What does the last paragraph say?", (False, True)),
    ("Compare the first chapter and the last chapter.", (True, True)),
    ("When did the war start?", (False, False)),
    ("Who was the last president?", (False, False)),
    ("Where does the road end?", (False, False)),
]


@pytest.mark.parametrize("question", each(ALL_OF_IT))
def test_all_of_it(question: str) -> None:
    assert asks_for_overview(question)


@pytest.mark.parametrize("question", each(A_PART))
def test_a_part_of_it(question: str) -> None:
    assert not asks_for_overview(question)


@pytest.mark.parametrize(("question", "ends"), ENDS)
def test_its_ends(question: str, ends: tuple[bool, bool]) -> None:
    assert asks_for_ends(question) == ends


@given(st.integers(0, 3000), st.integers(0, 300), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_whatever_the_budget_what_is_shown_is_spread_out(length: int, before: int, behind: int, seed: int) -> None:
    begins = np.random.default_rng(seed).random(before + length + behind) < 0.2
    utility = spread_out(len(begins), (before, before + length), begins)
    inside = utility[before : before + length]
    assert utility.shape == begins.shape and utility.dtype == np.float32
    assert utility.min(initial=0) >= 0 and utility.max(initial=0) <= 1
    assert not utility[:before].any() and not utility[before + length :].any()
    if length < 2:
        assert not utility.any()
        return
    assert inside[-1] == 1, "the end"
    for pieces in (4, 16, 64):
        if length >= 32 * pieces:
            shown = np.sort(np.argsort(-inside, kind="stable")[: 2 * (pieces + 1)])
            gaps = np.diff(shown, prepend=0, append=length)
            assert gaps.max() <= 2 * length / pieces, "no stretch twice as long as its share has nothing"


def test_pieces_begin_where_paragraphs_do() -> None:
    begins = np.zeros(1000, dtype=np.bool_)
    begins[3::7] = True
    utility = spread_out(1000, (0, 1000), begins)
    best = np.argsort(-utility, kind="stable")[:20]
    assert sum(bool(begins[block]) for block in best.tolist()) >= 9, "of each pair the first, but for the end"
    without = spread_out(1000, (0, 1000), np.zeros(1000, dtype=np.bool_))
    assert np.flatnonzero(without == 1).tolist() == [0, 1, 998, 999]


def test_ends_are_raised_and_nothing_else() -> None:
    utility = np.zeros(100, dtype=np.float32)
    utility[50] = 2
    first = raise_ends(utility, (10, 90), first=True, last=False)
    assert np.flatnonzero(first).tolist() == [*range(10, 18), 50]
    assert first[10] == 1.5 and (np.diff(first[10:18]) < 0).all()
    last = raise_ends(utility, (10, 90), first=False, last=True)
    assert np.flatnonzero(last).tolist() == [50, *range(82, 90)] and last[89] == 1.5
    assert utility.sum() == 2, "a new array"
    short = raise_ends(np.zeros(4, dtype=np.float32), (1, 3), first=True, last=True)
    assert short[0] == short[3] == 0 and (short[1:3] == 0.75).all()
    assert not raise_ends(np.zeros(4, dtype=np.float32), (2, 2), first=True, last=True).any()
