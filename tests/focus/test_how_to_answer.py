"""What says how to answer, and what asks."""

import pytest
from listed import each

from megacontext_vllm.focus.how_to_answer import introduces, requests, says_how

HOW = """
    Answer in one sentence. | Answer: | Think step by step and answer with the name only. | Helpful Answer: | Thanks!
    Please answer briefly. | Give your answer as JSON with the keys "answer" and "confidence". | - Quote the sentence.
    If you don't know the answer, say "I don't know". Do not make anything up. | - Do not use markdown. | Be concise.
    Reason: <reason> | Respond in the following format: | Best regards, Mary | Can you keep it short? | Keep it short.
    Let's think step by step. | Your answer must be a single number. | In your answer, cite the page. | Name: [name]
"""
WHAT = """
    Who was the harbour master of Elm Quay? | I'd like to know who the harbour master of Elm Quay was. | Why?
    Summarize the chapter on the mill. | What is the secret code? | Find the number in the ledger. | When did he die?
    Tell me about Amos Reed. | How many mills are there? | List the presidents. | Which document mentions the treaty?
    Name the three rules. | List the error letters. | Can values be empty? | Does the letter mention a language?
    Give the full sentence that names the harbour master of Elm Quay. | Explain the output of berth_for_draught.
    Is the source code included? | Find the word that the answer turns on in the reply of the guild to the master.
    What is the source? | Question: who kept the mill
"""
TEXT = """
    Return the kernel k(X, Y). | Note that the matrix is symmetric. | Use the command line tool to import a key pair.
    In one sentence, name the harbour master. | Your task is to output the harbour master's name.
    Write one sentence about Amos Reed. | The harbour master's response to the guild | Give the French title.
    Quote the sentence on mooring fees. | Thank you, God bless you, and God bless America. | values = []
    The output for the get-shipping-label command looks like the following: | if not result:
    return middleware.process_response(request, response) | } else {
    If the mill burned, nobody told us. | A set is a subset of V [1]. | Keep the <div> element. | name: the {id} of it
"""


@pytest.mark.parametrize("paragraph", each(HOW))
def test_how(paragraph: str) -> None:
    assert says_how(paragraph)


@pytest.mark.parametrize("paragraph", each(WHAT))
def test_what(paragraph: str) -> None:
    assert not says_how(paragraph) and requests(paragraph)


@pytest.mark.parametrize("paragraph", each(TEXT))
def test_neither(paragraph: str) -> None:
    assert not says_how(paragraph)


def test_first_lines() -> None:
    meant = each(
        """Answer from this text alone: | Who kept the mill? | You are a careful reader. | Here is a report.
        Read the text and answer. | Please answer in French. | Summarize what follows. | Below are minutes."""
    )
    assert [line for line in meant if not introduces(line)] == []
    titles = each("=== President George Washington === | Chapter 1 | THE TRAGEDY OF HAMLET | Report 2019 | # Canals")
    assert [line for line in titles if introduces(line)] == []
