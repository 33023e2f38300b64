"""Nothing crosses a namespace, and the prefix cache never mistakes one history's gists for another's."""

from pathlib import Path

from engines import Engine, greedy
from reference import Reference

STEPS = 8
HEAD = 96


def namespaces(engine: Engine) -> set[Path]:
    return {tree.parent for tree in engine.trees()}


def test_equal_length_other_content(engine: Engine, reference: Reference, tokens: list[int]) -> None:
    """Same head, same tail, same length: the gists stand at the same positions and must not share cached blocks."""
    first = tokens[60_000:66_000]
    second = first[:HEAD] + tokens[70_000 : 70_000 + 6000 - 2 * HEAD] + first[-HEAD:]
    assert len(first) == len(second)
    engine.ask([first], greedy(STEPS))
    (output,) = engine.ask([second], greedy(STEPS))
    assert output.num_cached_tokens <= HEAD
    embeddings, ids = engine.shown(reference, second, output)
    assert list(output.outputs[0].token_ids) == reference.greedy(embeddings, ids, STEPS)


def test_cache_salts_share_neither_tree_nor_cache(
    engine: Engine, reference: Reference, tokens: list[int]
) -> None:
    history = tokens[80_000:86_000]
    before = namespaces(engine)
    salted = [{"prompt_token_ids": history, "cache_salt": salt} for salt in ("alice", "bob")]
    (plain,) = engine.ask([history], greedy(STEPS))
    (alice,) = engine.ask(salted[:1], greedy(STEPS))
    (bob,) = engine.ask(salted[1:], greedy(STEPS))
    assert [alice.num_cached_tokens, bob.num_cached_tokens] == [0, 0]
    assert len(namespaces(engine) - before) == 2
    assert engine.trace(alice, "alice")["tree"] != engine.trace(bob, "bob")["tree"]
    assert engine.trace(alice, "alice")["reused_tokens"] == engine.trace(bob, "bob")["reused_tokens"] == 0
    # The same history has the same answer, wherever it is kept.
    assert plain.outputs[0].token_ids == alice.outputs[0].token_ids == bob.outputs[0].token_ids
    (again,) = engine.ask(salted[:1], greedy(STEPS))
    assert again.num_cached_tokens >= 448
    assert engine.trace(again, "alice")["reused_tokens"] == len(history)


def test_a_second_turn_continues_the_tree(engine: Engine, tokens: list[int]) -> None:
    (first,) = engine.ask([tokens[90_000:96_000]], greedy(STEPS))
    (second,) = engine.ask([tokens[90_000:99_000]], greedy(STEPS))
    assert engine.trace(second)["tree"] == engine.trace(first)["tree"]
    assert engine.trace(second)["reused_tokens"] == 6000


def test_a_diverging_history_forks(engine: Engine, reference: Reference, tokens: list[int]) -> None:
    (first,) = engine.ask([tokens[100_000:106_000]], greedy(STEPS))
    other = tokens[100_000:104_000] + tokens[110_000:112_000]
    (second,) = engine.ask([other], greedy(STEPS))
    assert engine.trace(second)["tree"] != engine.trace(first)["tree"]
    assert engine.trace(second)["reused_tokens"] == 4000
    embeddings, ids = engine.shown(reference, other, second)
    assert list(second.outputs[0].token_ids) == reference.greedy(embeddings, ids, STEPS)
