"""Which questions lean on the one before them, and which only look like it."""

import pytest
from listed import each

from megacontext_vllm.focus.follow_up import leans_on_before, names

LEANING = """
    When did he die? | Which number did he keep in his ledger? | Why? | Tell me more. | And Perrin Vale?
    Who signed it? | What about the second one? | How much did it cost? | Who was his wife?
    Where were they taken after that?
    Who else lived there? | What happened then? | Is that the same? | What did she tell Lincoln? | Why did they leave?
    How much did that cost? | Did that work? | What does this mean? | Is that true? | What happened next? | Explain.
    How many of those were sold? | Which year did this happen? | What did the latter do? | Can you elaborate?
    Where exactly? | In which year? | How come? | Give me the exact quote. | Who approved this decision? | Yes, please.
    In which year was it sold? | How old was she in that year? | But who paid for it? | What did the king say to him?
    Can you look it up for me? | Is that claim supported by the document? | b) | 2 | the third | Option 2, please.
"""
ALONE = """
    What is the secret code of Alder Ashby? | What did Lincoln say in his speech? | What does it say about the treaty?
    Where is it stated that the treaty ended? | Is it true that the mill burned? | Is there a mill?
    What does the text say about the law that was passed? | Summarize this document. | Who signed the treaty of Ghent?
    What fee does the bank charge a customer who closes his account? | Is it legal to fish in the harbour?
    How long does the interpreter take for her breaks? | So what is the password of the router of the mill?
    Who taught the prince to fence when he was a boy? | List all the ships and their captains.
    What is the capital of the country that borders it to the north? | Where does it say that prices rose?
    What did Mary Todd think of her husband? | List all that the committee decided. | What time is the meeting?
    Old mills, canals or new towns: which of these does the text speak about? | How many mills are there in the town?
    Is this text about mills? | Who kept mill 2?
"""

@pytest.mark.parametrize("question", each(LEANING))
def test_leaning(question: str) -> None:
    assert leans_on_before(question)


@pytest.mark.parametrize("question", each(ALONE))
def test_alone(question: str) -> None:
    assert not leans_on_before(question)


def test_names() -> None:
    def found(text: str) -> set[str]:
        return {text[start:stop] for start, stop in names(text)}

    both = found("The harbour master of Elm Quay was Amos Reed.")
    assert both == {"Elm", "Quay", "Amos", "Reed", "Elm Quay", "Amos Reed"}
    assert found("Amos Reed kept it.") >= {"Amos Reed"}, "where the sentence begins, too"
    assert found("It was the mill. Nobody knows why.") == set()
    assert found("") == set()
