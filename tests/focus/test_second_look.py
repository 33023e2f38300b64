"""Facts that are reached over other facts, on synthetic text; tests/eval has it on real text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from looked import looked

from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.second_look import look_again, look_ahead

WORDS = [f" word{i}" for i in range(400)]
NAMES = [f" Name{i}" for i in range(40)]
VOCABULARY = [*WORDS, *NAMES, " gave", " parcel", " went", " to", " is", " in", " mill", ".", "?", "\n", " Where"]
VOCABULARY += [" carter", " Or", "in", "an", " word", " Zelda", "Z", "elda", "Qu", "ill", " Q", "uill", "Q"]
VOCABULARY += [*"0123456789"]
ID = {text: i for i, text in enumerate(VOCABULARY)}
LENS = LexicalLens(VOCABULARY)
LENGTH = 32 * 200


def plant(facts: dict[int, str], question: str = " Where is parcel Name0?", seed: int = 0) -> tuple[np.ndarray, Query]:
    """Common words, those of the facts but for the names among them, a full stop every 16; at the end the question."""
    tokens = np.random.default_rng(seed).integers(0, len(WORDS), LENGTH).astype(np.uint32)
    tokens[::16] = ID["."]
    for at, word in enumerate((" gave", " went", " mill")):
        tokens[5 + 16 * at :: 64] = ID[word]
    for at, fact in facts.items():
        ids = words(f".{fact}.")
        tokens[at : at + len(ids)] = ids
    asked = words(question)
    whole = np.concatenate([tokens, asked])
    query = Query(asked.astype(np.int64), np.ones(len(asked), dtype=np.float32), LENGTH, len(whole))
    return whole, query


def words(text: str) -> np.ndarray:
    """Tokens of words with a space before them, where there are such; "_" stands between the tokens of one word."""
    found = []
    for word in text.replace(".", " . ").replace("?", " ? ").split():
        first, *rest = word.split("_")
        found += [ID.get(f" {first}", ID.get(first, -1)), *(ID[part] for part in rest)]
    return np.array(found).astype(np.uint32)


def look(facts: dict[int, str], **given: object) -> tuple[np.ndarray, np.ndarray]:
    """Utility at the first look, and after looking again."""
    tokens, query = plant(facts, **given)  # type: ignore[arg-type]
    first = LENS.score(History(tokens, LENS.spelling), query)
    before = first.copy()
    again = looked(lambda history: look_again(history, query, first, LENS), tokens, LENS)
    assert np.array_equal(first, before), "the first look's utilities are not written to"
    assert again.dtype == np.float32 and again.shape == first.shape
    return first, again


CHAIN = {640: " Name0 gave parcel to Name1", 3200: " Name1 gave to Name2", 5120: " Name2 is in mill"}


def test_a_chain_of_three_facts_is_followed() -> None:
    first, again = look(CHAIN)
    assert first[20] == 1 and first[100] < 0.5 and first[160] < 0.5
    assert again[100] >= 0.75 and again[160] >= 0.75
    # Neighbours too, since sentences straddle; and what is named by nothing stays as it was.
    assert again[99] >= 0.7 and again[101] >= 0.7
    changed = np.flatnonzero(again > first)
    assert set(changed.tolist()) <= {99, 100, 101, 159, 160, 161}


def test_what_a_word_shared_by_chance_leads_to_is_worth_less_than_what_a_name_does() -> None:
    """Both sentences of a parcel speak of a carter, and each parcel goes on."""
    facts = {
        640: " Name0 gave parcel to Name1 carter",
        3200: " Name1 is in mill",
        1920: " Name8 carter Name9",
        4480: " Name9 is in mill",
    }
    first, again = look(facts)
    assert again[100] >= 0.75
    assert first[60] < again[60] < 0.65, "beside a name, a word is less sure"
    assert first[140] < again[140] <= again[60], "nor is where it leads in turn"


@pytest.mark.parametrize(("places", "least"), [(0, 0.79), (1, 0.59), (30, 0.74)])
def test_a_name_that_leads_everywhere_takes_little_from_a_word(places: int, least: float) -> None:
    """Most sentences name somebody or some place by the way."""
    often = {32 * (40 + 4 * i) + 3: " word3 Name5" for i in range(places)}
    _, again = look({640: " Name0 gave parcel to carter Name5", 6000: " carter is in mill"} | often)
    assert least <= again[6000 // 32] < least + 0.1


def test_a_name_is_one_wherever_it_stands() -> None:
    """A better place has it at the start of a sentence, where any word is written so."""
    places = {32 * (80 + 5 * i) + 3: " word1 Name1 in mill" for i in range(6)}
    facts = {640: " Name0 gave parcel to Name2 carter", 1280: "Name1 went Name2", 1920: " carter word2 Name1"}
    _, again = look(facts | places)
    assert all(again[at // 32] >= 0.2 for at in places)


def test_a_number_leads_to_no_other_number() -> None:
    """A text without numbers but for those that are asked for."""
    facts = {640: " Name0 parcel is 5_8_7_0_4 carter", 3200: " Name1 is 4_5_8_7_1", 5120: " carter is in mill"}
    first, again = look(facts)
    assert again[100] == first[100]
    assert again[160] >= 0.75, "words behind it do"


def test_the_fourth_fact_of_a_chain_is_out_of_reach() -> None:
    further = {5120: " Name2 gave to Name3", 6000: " Name3 is in mill"}
    first, again = look(CHAIN | further)
    assert again[160] >= 0.75 and again[6000 // 32] == first[6000 // 32]


def test_several_places_that_answer_equally_well_are_enough() -> None:
    first, again = look(CHAIN | {1920: " Name0 gave parcel to Name5", 4480: " Name5 is in mill"})
    assert np.array_equal(again, first)


@pytest.mark.parametrize(
    ("to", "places", "leads"),
    [("Name1", 10, True), ("Name1", 32, True), ("Name1", 33, False), ("carter", 4, True), ("carter", 5, False)],
)
def test_what_is_named_often_leads_nowhere_and_a_name_a_little(to: str, places: int, leads: bool) -> None:
    often = {32 * (40 + 4 * i) + 3: f" {to} is in mill" for i in range(places)}
    first, again = look({640: f" Name0 gave parcel to {to}"} | often)
    raised = [again[at // 32] for at in often]
    if leads:
        assert np.allclose(raised, 0.8 / np.sqrt(places)), "the more places, the less each"
    else:
        assert np.array_equal(again, first)


def test_any_word_is_written_like_a_name_where_a_sentence_begins() -> None:
    often = {32 * (40 + 4 * i) + 3: " is Name1 in mill" for i in range(10)}
    first, again = look({640: " Name1 gave parcel to Name0"} | often)
    assert np.array_equal(again, first)


def test_only_the_sentence_that_answers_is_read() -> None:
    first, again = look({640: " Name0 gave parcel", 656: " Name7 went", 4480: " Name7 is in mill"})
    assert again[140] == first[140]


def test_nothing_found_nothing_changed() -> None:
    first, again = look({}, question=" Where?")
    assert not first.any() and not again.any()
    none = np.zeros(0, dtype=np.uint32)
    query = Query(none.astype(np.int64), np.zeros(0, dtype=np.float32), 0, 0)
    assert look_again(History(none, LENS.spelling), query, np.zeros(0, dtype=np.float32), LENS).shape == (0,)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(0, LENGTH - 20), st.sampled_from(list(CHAIN.values())), max_size=8),
    st.integers(0, 1000),
)
def test_utilities_only_grow_and_stay_in_bounds(facts: dict[int, str], seed: int) -> None:
    first, again = look(facts, seed=seed)
    assert (again >= first).all() and (again <= 1).all()


@pytest.mark.parametrize("other", ["Or_an", "word_an"])
@pytest.mark.parametrize("name", ["Or_in", "word_in"])
@pytest.mark.parametrize("asked", ["Name0", "Or_an"])
def test_names_with_a_stop_word_in_them_lead_on(asked: str, name: str, other: str) -> None:
    facts = {640: f" {asked} gave parcel to {name}", 3200: f" {name} gave to Name2", 5120: " Name2 is in mill"}
    others = dict.fromkeys(range(800, 2000, 64), " word gave to")  # what the name's first token is by itself
    if asked != other:
        others[4000] = f" {other} went"
    first, again = look(facts | others, question=f" Where is parcel {asked}?")
    assert first[20] == 1 and first[100] < 0.5
    assert again[100] >= 0.75 and again[160] >= 0.75
    assert (again[25:63] < 0.5).all() and again[4000 // 32] < 0.5, "that is somebody else"


@pytest.mark.parametrize(("within", "begins"), [("Zelda", "Z_elda"), ("Q_uill", "Qu_ill")])
def test_a_name_leads_to_where_it_begins_a_sentence(within: str, begins: str) -> None:
    """There it has no space before it, and is other tokens."""
    facts = {
        640: f" Name0 gave parcel to {within}",
        3200: f"{begins} is in mill",
        4800: "Z is in mill",
        4000: "Q word7",
    }
    first, again = look(facts)
    assert first[100] < 0.5 and again[100] >= 0.75
    assert again[150] < 0.5 and again[125] < 0.5, "that is only how the name begins"


def ahead(answer: str, facts: dict[int, str], question: str = " Where is parcel Name0?") -> np.ndarray:
    """Where an answer leads that follows the prompt and has said ``answer`` so far; facts stand in blocks 20 apart."""
    tokens, query = plant(facts, question)
    said = words(answer)
    everything = np.concatenate([tokens, said])
    asked, about = query.answered(everything, len(said))
    assert np.array_equal(asked.terms, query.terms) and about.terms.tolist() == said.tolist()[-64:]
    return looked(lambda history: look_ahead(history, asked.terms, about, LENS), everything, LENS)


def test_an_answer_leads_to_what_it_names_and_one_fact_further() -> None:
    led = ahead(" parcel went to Name1.", CHAIN)
    assert led[100] == led[20] > 0.8, "Name1 is also where the answer has it from"
    assert led[160] >= 0.4, "Name2, whom the next fact names"
    assert led[99] > 0.5 and led[101] > 0.5, "sentences straddle"
    assert set(np.flatnonzero(led > 0.3).tolist()) <= {19, 20, 21, 99, 100, 101, 159, 160, 161}
    assert not ahead(" parcel is in mill.", CHAIN).any(), "nothing new is named"
    assert not ahead(".", CHAIN).any()


def test_what_is_said_last_leads_most() -> None:
    facts = {640: " Name1 is in mill", 3200: " Name2 is in mill"}
    filler = " gave parcel to" * 15
    led = ahead(f" Name1{filler} Name2.", facts)
    assert led[100] > led[20] > 0.5
    turned = ahead(f" Name2{filler} Name1.", facts)
    assert turned[20] > turned[100] > 0.5
    assert not ahead(f" Name1{filler}{filler} gave.", facts)[20], "too long ago"


@given(st.lists(st.integers(0, len(VOCABULARY) + 3), max_size=70), st.integers(1, 40))
@settings(max_examples=60)
def test_any_answer_has_bounded_utilities(prompt: list[int], answer: int) -> None:
    tokens = np.array([*prompt, *range(answer)], dtype=np.uint32) % (len(VOCABULARY) + 2)
    query = Query(np.array([0, 3], dtype=np.int64), np.ones(2, dtype=np.float32), 0, len(prompt) // 2)
    asked, said = query.answered(tokens, answer)
    led = looked(lambda history: look_ahead(history, asked.terms, said, LENS), tokens, LENS)
    assert led.dtype == np.float32 and led.shape == (len(tokens) // 32,)
    assert ((led >= 0) & (led <= 0.85)).all()
