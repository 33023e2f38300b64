"""What every method owes: the budget, the order, determinism; and that nobody but the oracle is told the evidence."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.context import Context, Gist, Raw
from megacontext_vllm.eval.methods import METHODS, make
from megacontext_vllm.eval.methods import packages as optional
from megacontext_vllm.eval.methods.base import Cheat, Method, Tools, View
from megacontext_vllm.eval.methods.dense import Dense
from megacontext_vllm.eval.prompt import ChatFormat, Prompt
from megacontext_vllm.eval.sample import History, Layout, Sample, Span
from megacontext_vllm.tree.nodes import BLOCK

SAID = {
    Layout.FOLLOW_UP: (("user", "Who was it?"), ("assistant", "It was Mira.")),
    Layout.TOOL_RESULT: (("assistant", "I will read the file."),),
}


class Hashed:
    """In place of the sentence encoder, which is too slow for properties: a vector per text, any vector."""

    def embed(self, texts: list[str]) -> np.ndarray:
        vectors = [np.random.default_rng(crc32(text.encode())).normal(size=4) for text in texts]
        return np.array(vectors, np.float32).reshape(-1, 4)


@pytest.fixture(scope="module")
def methods(tools: Tools) -> dict[str, Method]:
    found = dict(zip(METHODS, make(list(METHODS), tools), strict=True))
    dense = found["dense"]
    assert isinstance(dense, Dense)
    dense._encoder = Hashed()  # type: ignore[assignment]
    return found


def ask(method: Method, prompt: Prompt, budget: int, evidence: tuple[Span, ...]) -> Context:
    view = View(prompt, method.index(prompt.history))
    if isinstance(method, Cheat):
        return method.select_told(view, budget, evidence)
    return method.select(view, budget)


def same(a: Context, b: Context) -> bool:
    """Contexts compare by identity, since their vectors have no truth value."""
    if [type(piece) for piece in a.pieces] != [type(piece) for piece in b.pieces] or a.gap != b.gap:
        return False
    return all(
        (x.start, x.stop) == (y.start, y.stop) and (not isinstance(x, Gist) or np.array_equal(x.vector, y.vector))
        for x, y in zip(a.pieces, b.pieces, strict=True)
    )


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_method_keeps_the_budget(
    methods: dict[str, Method], ids: np.ndarray, prompt_of: Callable[..., Prompt], name: str, data: st.DataObject
) -> None:
    method = methods[name]
    length = data.draw(st.one_of(st.integers(0, 3000), st.integers(0, 90).map(lambda n: n * 32)))
    budget = data.draw(st.one_of(st.integers(192, 2000), st.sampled_from([256, 512, 1024])))
    start = data.draw(st.integers(0, 40_000))
    layout = data.draw(st.sampled_from(list(Layout)))
    history = ids[start : start + length]
    cuts = sorted(data.draw(st.sets(st.integers(0, length), max_size=8))) if length else []
    evidence = tuple(zip(cuts[::2], cuts[1::2], strict=False))
    assert method.fits(length, budget)
    prompt = prompt_of(history, layout)
    try:
        context = ask(method, prompt, budget, evidence)
    except EvaluationError as refused:
        # An eighth of the window is pinned at its end, in whole blocks; an earlier turn behind the history may be more.
        pinned = (budget + prompt.overhead) // 8 // BLOCK * BLOCK
        if not (method.shows_gists and pinned < len(prompt.suffix) and "larger budget" in str(refused)):
            raise
        return
    assert context.cost <= budget or not method.within_budget
    assert all(piece.stop <= length for piece in context.pieces)
    assert method.shows_gists or not any(isinstance(piece, Gist) for piece in context.pieces)
    if length <= budget:
        assert context.pieces == ((Raw(0, length),) if length else ())
    if name == "oracle" and evidence and sum(b - a + 8 for a, b in evidence) <= budget:
        assert context.recall(evidence) == 1
    assert same(context, ask(method, prompt_of(history, layout), budget, evidence))


@pytest.mark.parametrize("name", METHODS)
def test_a_longer_history(
    methods: dict[str, Method], ids: np.ndarray, prompt_of: Callable[..., Prompt], name: str
) -> None:
    method = methods[name]
    if name == "dense":
        pytest.skip("40,000 tokens of made-up vectors tell nothing more")
    assert method.fits(40_017, 512) == (name != "full")
    context = ask(method, prompt_of(ids[:40_017]), 512, ((20_000, 20_020), (30_000, 30_020)))
    assert context.cost <= 512 or not method.within_budget
    if not method.shows_gists:
        assert context.cost >= 512 - 32 - len(context.gap), "what is given is spent"


def test_tail_and_head_tail(methods: dict[str, Method], ids: np.ndarray, prompt_of: Callable[..., Prompt]) -> None:
    prompt = prompt_of(ids[:1000])
    tail = methods["tail"].select(View(prompt, None), 300)
    assert tail.raw == [(700, 1000)] and tail.cost == 300
    both = methods["head_tail"].select(View(prompt, None), 301)
    assert both.raw == [(0, 148), (851, 1000)] and both.cost == 301


def test_only_the_oracle_is_told() -> None:
    assert [kind.name for kind in METHODS.values() if issubclass(kind, Cheat)] == ["oracle"]
    assert {field.name for field in fields(View)} == {"prompt", "index"}
    assert {field.name for field in fields(Prompt)} == {"prefix", "history", "suffix", "question"}
    with pytest.raises(AssertionError, match="select_told"):
        METHODS["oracle"].select(METHODS["oracle"].__new__(METHODS["oracle"]), None, 512)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", [layout for layout in Layout if layout is not Layout.TEXT])
def test_a_prompt_does_not_know_the_answer(chat: ChatFormat, ids: np.ndarray, layout: Layout) -> None:
    """The same question with other evidence, another answer and other candidates: the same prompt."""
    history, said = History("h", ids[:500], layout), SAID.get(layout, ())
    one, two = (
        chat.prompt(Sample(name, "t", history, "What?", "It is", right, candidates, evidence, said=said))
        for name, right, candidates, evidence in (
            ("a", " x", (" x", " y", " z", " w"), ((3, 9),)),
            ("b", " k", (" k", " l", " m", " n"), ((40, 99),)),
        )
    )
    assert np.array_equal(one.tokens, two.tokens) and one.question == two.question
    assert one.overhead == two.overhead


def test_an_unknown_name(tools: Tools) -> None:
    with pytest.raises(EvaluationError, match="no method 'bm52'; there are: tail, .*bm25_32.*oracle"):
        make(["tail", "bm52"], tools)


def test_a_package_that_is_missing(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(optional.importlib, "import_module", missing)
    for name, package in (("bm25_32", "bm25s"), ("dense", "torch")):
        with pytest.raises(EvaluationError, match=rf"'{name}' needs the package {package}: pip install"):
            make([name], tools)


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind.shows_gists])
def test_gists_need_the_embedding(chat: ChatFormat, tmp_path: Path, name: str) -> None:
    with pytest.raises(EvaluationError, match=f"'{name}' shows gists"):
        make([name], Tools(chat, (1, 2), tmp_path))


def test_names_are_distinct_and_described() -> None:
    assert all(kind.name == name and kind.summary and len(kind.summary) < 80 for name, kind in METHODS.items())
    # A Context without gists can be written as text, which is all that a server takes.
    assert [name for name, kind in METHODS.items() if kind.shows_gists] == [
        "gists_only",
        "centred_mean_gists",
        "keyword_gists",
        "trained_gists",
    ]
    assert [name for name, kind in METHODS.items() if not kind.within_budget] == ["full", "served"]


def test_full_needs_a_known_limit(chat: ChatFormat, tmp_path: Path) -> None:
    (unknown,) = make(["full"], Tools(chat, (1, 2), tmp_path))
    assert unknown.fits(100, 100) and not unknown.fits(101, 100)
    (known,) = make(["full"], Tools(chat, (1, 2), tmp_path, longest=4096))
    assert known.fits(4096, 512) and not known.fits(4097, 512)
