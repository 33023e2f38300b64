"""What each message is to the question."""

from megacontext_vllm.focus.conversation import Conversation, Exchange
from megacontext_vllm.focus.messages import ASSISTANT, SYSTEM, TOOL, USER, Message


def talk(*roles: str) -> tuple[list[Message], Conversation]:
    """Messages of ten tokens each."""
    messages = [Message(role, 10 * i, 10 * i + 10) for i, role in enumerate(roles)]
    return messages, Conversation.of(messages, 10 * len(messages))


def test_a_chat() -> None:
    m, found = talk(SYSTEM, USER, ASSISTANT, USER, USER, ASSISTANT, USER, ASSISTANT, USER)
    assert found.question == m[8] and found.said == found.results == () and found.step is None
    assert found.before == (Exchange(m[6], m[7]), Exchange(m[4], m[5]), Exchange(m[3], None)), "three, the newest first"


def test_an_agent() -> None:
    m, found = talk(USER, ASSISTANT, TOOL, TOOL, ASSISTANT, TOOL)
    assert found.question == m[0] and found.said == (m[1], m[4])
    assert found.step == m[4] and found.results == (m[5],)
    m, found = talk(USER, ASSISTANT, TOOL, TOOL)
    assert found.step == m[1] and found.results == (m[2], m[3]), "calls side by side"
    m, found = talk(USER, TOOL)
    assert found.said == () and found.step is None and found.results == (m[1],)


def test_an_answer_that_has_begun_is_no_call() -> None:
    m, found = talk(USER, ASSISTANT, TOOL, ASSISTANT)
    assert found.said == (m[1], m[3]) and found.step == m[1] and found.results == (m[2], m[3])
    m, found = talk(USER, ASSISTANT)
    assert found.step is None and found.said == found.results == (m[1],)


def test_what_an_agent_did_for_an_earlier_question_is_history() -> None:
    m, found = talk(USER, ASSISTANT, TOOL, ASSISTANT, USER)
    assert found.question == m[4] and found.said == found.results == ()
    assert found.before == (Exchange(m[0], m[3]),)


def test_who_asks_where_no_user_does() -> None:
    assert talk("", "")[1].question.start == 10
    assert talk(SYSTEM, ASSISTANT, TOOL)[1].question.start == 20
    assert talk(SYSTEM, ASSISTANT)[1].question.start == 0
    for nobody in (talk(ASSISTANT)[1], talk()[1]):
        assert nobody.question.start == nobody.question.end
