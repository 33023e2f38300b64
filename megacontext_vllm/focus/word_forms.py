"""Other forms of a word: "wrote" and "writes" of "write", "men" of "man". English.

A question puts a verb as "Which number did he write?", and the text as "He wrote the number". Without stems of its own
for every word of a history, which would have to be made for each, the few words of a question are put into all their
forms, and those are looked for.
"""

import re
from collections.abc import Iterator

from megacontext_vllm.focus.stop_words import STOP_WORDS
from megacontext_vllm.nets.lensnet import regular_forms

_SHORTEST = 3  # letters of a word that has other forms by rule
_ENDINGS = (("ies", "y"), ("ied", "y"), ("es", ""), ("s", ""), ("ed", ""), ("ed", "e"), ("ing", ""), ("ing", "e"))
_DOUBLES = re.compile(r"[^aeiou]+[aeiou][^aeiouwxy]")
_VOWELS = frozenset("aeiouy")
_ALONE = "evening evenings news lens series species means during united being nothing something anything everything"
_THE = re.compile(r"\b(?:the|an?|this|that|my|your|his|her|its|our|their)\s*$", re.IGNORECASE)
_WHOLE = frozenset(_ALONE.split())
"""They end like a form of another word, and are none."""
_IRREGULAR = """
    arise arose arisen, awake awoke awoken, bear bore borne born, beat beaten, become became, begin began begun, bend
    bent, bind bound, bite bit bitten, bleed bled, blow blew blown, break broke broken, breed bred, bring brought,
    build built, burn burned burnt, buy bought, catch caught, choose chose chosen, cling clung, come came, creep
    crept, deal dealt, dig dug, draw drew drawn, dream dreamed dreamt, drink drank drunk, drive drove driven, dwell
    dwelled dwelt, eat ate eaten, fall fell fallen, feed fed, feel felt, fight fought, find found, flee fled, fling
    flung, fly flew flown, forbid forbade forbidden, foresee foresaw foreseen, forsake forsook forsaken, forget forgot
    forgotten, forgive forgave forgiven, freeze froze frozen, get got gotten, give gave given, go went gone, grind
    ground, grow grew grown, hang hanged hung, hear heard, hide hid hidden, hold held, keep kept, kneel kneeled knelt,
    know knew known, lay laid, lead led, lean leaned leant, leap leaped leapt, learn learned learnt, leave left, lend
    lent, lie lay lain lying, light lighted lit, lose lost, make made, mean meant, meet met, mistake mistook mistaken,
    overcome overcame, pay paid, plead pleaded pled, prove proved proven, ride rode ridden, ring rang rung, rise rose
    risen, run ran, say said, see saw seen, seek sought, sell sold, send sent, sew sewed sewn, shake shook shaken,
    shine shone, shoot shot, show showed shown, shrink shrank shrunk, sing sang sung, sink sank sunk, sit sat, sleep
    slept, slide slid, smell smelled smelt, sow sowed sown, speak spoke spoken, spend spent, spill spilled spilt, spin
    spun, spring sprang sprung, stand stood, steal stole stolen, stick stuck, sting stung, strike struck stricken,
    strive strove striven, swear swore sworn, sweep swept, swell swelled swollen, swim swam swum, swing swung, take
    took taken, teach taught, tear tore torn, tell told, think thought, throw threw thrown, tread trod trodden,
    undergo underwent undergone, understand understood, undertake undertook undertaken, wake woke woken, wear wore
    worn, weave weaved wove woven, weep wept, win won, wind wound, withdraw withdrew withdrawn, write wrote written,
    die died dying dead death deaths, tie tied tying, bury buried burial, marry married marriage, born birth, man men,
    woman women, child children, foot feet, tooth teeth, goose geese, mouse mice, person people, wife wives, life
    lives, live lives lived living, knife knives, leaf leaves, thief thieves, wolf wolves, half halves, shelf shelves,
    loaf loaves, calf calves, self selves, scarf scarves, wharf wharves, ox oxen, index indices, matrix matrices,
    vertex vertices, crisis crises, analysis analyses, thesis theses, criterion criteria, phenomenon phenomena
"""
_FAMILIES: dict[str, set[str]] = {}
for _listed in map(str.split, _IRREGULAR.split(",")):
    # Where one has a past by rule, too, it is listed: "seed" is no form of "see".
    _family = {*_listed, *(form for form in regular_forms(_listed[0]) if not form.endswith("ed"))}
    for _member in _family:
        _FAMILIES.setdefault(_member, set()).update(_family)


def other_forms(word: str, before: str = "") -> set[str]:
    """What ``word``, in lower case, may be in a text besides; no stop word, and not itself.

    before  the text in front of it: "the finding" is a thing, and no form of "found".

    No claim that each exists: "informations" costs nothing.
    """
    if word.endswith("ing") and _THE.search(before):
        return {word + "s"}
    forms = set(_FAMILIES.get(word, ()))
    if not forms and len(word) >= _SHORTEST:
        for base in (word, *_bases(word)):
            forms.update((base, *regular_forms(base)))
    return forms - {word} - STOP_WORDS


def _bases(word: str) -> Iterator[str]:
    """Words of which ``word`` is a form, as all their forms are made by rule."""
    if word in _WHOLE:
        return
    for ending, instead in _ENDINGS:
        if word.endswith(ending):
            stem = word.removesuffix(ending)
            single = stem[:-1] if stem[-1:] == stem[-2:-1] else stem
            for base in sorted({stem + instead, single + instead}):
                known = base not in _FAMILIES and len(base) >= _SHORTEST and not _VOWELS.isdisjoint(base)
                # "hoping" is no form of "hop", which doubles its end.
                doubles = ending in ("ed", "ing") and base == stem and _DOUBLES.fullmatch(base)
                if known and not doubles and word in regular_forms(base):
                    yield base
