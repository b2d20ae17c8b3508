"""Faults to plant into questions: what reasoning models do when nobody checks them.

Each is a function of a sound draft and its surroundings that returns the spoilt one, or None where it cannot be done. Faults of a
reasoning are in words that the oracle's retelling leaves alone, so that they survive it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from longtake.world.oracle_captions import preposition
from longtake.world.oracle_drafts import Notes, OracleDraft, Range, conclusion, draft, evidence, queries
from longtake.world.oracle_languages import LANGUAGES, foreign_question, foreign_reasoning
from longtake.world.questions import LETTERS, purposes
from longtake.world.story import PLACES
from longtake.world.truth import answer_from, same_meaning

AWAY_S = 20.0
"""How far behind the end of a video ranges are put."""
COMBINING = ("All of the above", "None of the above", "Both of the first two", "All of these places")
THOUGHTS = (
    "Wait, let me think again. At first I took it for {wrong}. Hmm, no, that is not right.",
    "Okay, so I need to find out what is asked for here. Let me go through it once more.",
    "Hmm, could it be {wrong}? Actually, no, let me check that again.",
    "But wait, the user asks for something else. Let me reconsider.",
)
OF_CAPTIONS = (
    "Caption {number} says so in these words.",
    "According to the captions this is so, and caption {number} confirms it.",
    "The descriptions of the clips mention nothing else.",
    "This is stated in the caption of clip {number}.",
)
OF_LETTERS = (
    "So option {letter} is right.",
    "The correct answer is ({letter}).",
    "That rules out option {other}, and {letter} is correct.",
    "Option {other} does not fit, so it must be option {letter}.",
)
PLACE_HINTS = {
    "beach": "There were sand and waves all around.",
    "cave": "It was dark there between the rocks.",
    "forest": "There was nothing but trees there.",
    "garden": "Flower beds and a lawn were seen there.",
    "hall": "It was a large room in a house, with nothing in it.",
    "kitchen": "It smelled of soup there.",
    "snow": "It was cold there, and all was white.",
    "street": "Cars and houses stood on both sides.",
}
PURPOSE_HINTS = {
    "to use it": "A door could not be opened without it.",
    "to hide it": "Nobody was to find it ever again.",
    "to keep it": "It was never let go of from then on.",
}
PRESENT = "It was meant as a present for the {other}."
ODD_PURPOSES = ("to throw it away", "to sell it", "to break it")
OTHER_WORDS = (
    ("Which place came", "Which place then came"),
    ("right after", "directly after"),
    ("Where ", "In which place "),
    ("Where ", "Where exactly "),
    ("Why ", "Why exactly "),
    ("", "In the video, "),
)


@dataclass(frozen=True, eq=False)
class Around:
    """What a fault may use besides the draft."""

    notes: Notes
    category: str
    duration_s: float
    """Of the video; the end of the last caption where it is not told."""
    earlier: tuple[OracleDraft, ...]
    """Drafts of the same call."""
    elsewhere: Notes
    """Another video."""
    max_answer_chars: int
    rng: np.random.Generator


Fault = Callable[[OracleDraft, Around], OracleDraft | None]


def plant(one: OracleDraft, around: Around) -> OracleDraft:
    """With one fault of a random kind among those that can be planted into it."""
    names = [name for name, (_, kinds) in FAULTS.items() if ("choice" if one.options else "open") in kinds]
    for index in around.rng.permutation(len(names)):
        spoilt = FAULTS[names[index]][0](one, around)
        if spoilt is not None:
            return replace(spoilt, fault=names[index])
    return one


def _with_option(one: OracleDraft, around: Around, text: str) -> OracleDraft:
    """A wrong option is replaced."""
    wrong = [index for index, option in enumerate(one.options) if option != one.answer]
    index = int(around.rng.choice(wrong))
    return replace(one, options=(*one.options[:index], text, *one.options[index + 1 :]))


def equal_options(one: OracleDraft, around: Around) -> OracleDraft:
    """The right option twice, perhaps in other letters."""
    forms = (one.answer, one.answer.capitalize(), f"{one.answer}.", f"The {one.answer}" if one.query.kind != "why" else one.answer.upper())
    return _with_option(one, around, _one_of(forms, around))


def empty_option(one: OracleDraft, around: Around) -> OracleDraft:
    return _with_option(one, around, _one_of(("", " ", "-"), around))


def combining_option(one: OracleDraft, around: Around) -> OracleDraft:
    """An option about the other ones."""
    return _with_option(one, around, _one_of(COMBINING[: 3 if one.query.kind == "why" else 4], around))


def no_right_option(one: OracleDraft, around: Around) -> OracleDraft | None:
    """Instead of the truth a fourth wrong option is the key."""
    pool = ODD_PURPOSES if one.query.kind == "why" else [place for place in PLACES if place not in (*one.options, one.query.place)]
    if not pool:
        return None
    text = _one_of(pool, around)
    options = tuple(text if option == one.answer else option for option in one.options)
    return replace(one, options=options, answer=text, reasoning=_concluding(one, text))


def other_conclusion(one: OracleDraft, around: Around) -> OracleDraft:
    """The reasoning comes to another option than the key."""
    return replace(one, reasoning=_concluding(one, _wrong(one, around)))


def ranges_outside(one: OracleDraft, around: Around) -> OracleDraft:
    ranges = tuple((start + around.duration_s + AWAY_S, stop + around.duration_s + AWAY_S) for start, stop in one.ranges)
    return replace(one, ranges=ranges)


def ranges_reversed(one: OracleDraft, around: Around) -> OracleDraft:
    return replace(one, ranges=tuple((stop, start) for start, stop in one.ranges))


def unsupported(one: OracleDraft, around: Around) -> OracleDraft | None:
    """The ranges are those of a part of the video that does not tell the answer."""
    cited = set(evidence(around.notes, one.query))
    lines = around.notes.lines
    silent: list[Range] = []
    for line in lines:
        alone = Notes.read([line], around.duration_s)
        if line not in cited and not same_meaning(answer_from(alone.seen, one.query) or "", one.answer):
            silent.append((line.start_s, line.stop_s))
    return replace(one, ranges=(silent[int(around.rng.integers(len(silent)))],)) if silent else None


def gives_itself_away(one: OracleDraft, around: Around) -> OracleDraft:
    """A sentence before the question tells its answer, in its own words or in others."""
    if around.rng.random() < 0.5:
        return replace(one, question=f"{hint_of(one.answer)} {one.question}")
    told = conclusion(one.query, one.answer)
    if one.query.kind == "after":
        told = f"the {one.answer} came right after the {one.query.place}"
    return replace(one, question=f"{told[0].upper()}{told[1:]}. {one.question}")


def deliberation(one: OracleDraft, around: Around) -> OracleDraft:
    """Thinking is left in the reasoning."""
    return _said_before_the_end(one, _one_of(THOUGHTS, around).format(wrong=_wrong(one, around)))


def speaks_of_captions(one: OracleDraft, around: Around) -> OracleDraft:
    number = 1 + int(around.rng.integers(len(around.notes.lines)))
    return _said_before_the_end(one, _one_of(OF_CAPTIONS, around).format(number=number))


def names_letters(one: OracleDraft, around: Around) -> OracleDraft:
    """Options are called by their letters, which will change."""
    other = _one_of([letter for letter in LETTERS if letter != one.letter], around)
    return replace(one, reasoning=f"{one.reasoning} {_one_of(OF_LETTERS, around).format(letter=one.letter, other=other)}")


def near_duplicate(one: OracleDraft, around: Around) -> OracleDraft | None:
    """Another question of the same call once more, in slightly other words."""
    sound = [other for other in around.earlier if other.fault is None and not other.key_lied]
    if not sound:
        return None
    twin = sound[int(around.rng.integers(len(sound)))]
    forms = [(old, new) for old, new in OTHER_WORDS if twin.question.startswith(old) or (old and f" {old}" in twin.question)]
    old, new = forms[int(around.rng.integers(len(forms)))]
    question = twin.question.replace(old, new, 1) if old else f"{new}{twin.question[0].lower()}{twin.question[1:]}"
    options = tuple(str(option) for option in around.rng.permutation(twin.options))
    letter = LETTERS[options.index(twin.answer)] if options else ""
    return replace(twin, question=question, options=options, letter=letter)


def other_language(one: OracleDraft, around: Around) -> OracleDraft:
    """Question and reasoning are not in the language asked for."""
    language = LANGUAGES[int(around.rng.integers(len(LANGUAGES)))]
    reasoning = foreign_reasoning(one.ranges[0][0], one.ranges[-1][1], one.answer, language)
    return replace(one, question=foreign_question(one.query, language), reasoning=reasoning)


def other_video(one: OracleDraft, around: Around) -> OracleDraft | None:
    """A question about another video, whose answer is not that of this one."""
    found = queries(around.elsewhere, around.category)
    wrong = [query for query in found if answer_from(around.notes.seen, query) != answer_from(around.elsewhere.seen, query)]
    if not wrong:
        return None
    return draft(around.elsewhere, wrong[int(around.rng.integers(len(wrong)))], not one.options, around.rng)


def paragraph(one: OracleDraft, around: Around) -> OracleDraft | None:
    """The open-ended answer says much more than was asked."""
    where = f"{preposition(one.answer).capitalize()} the {one.answer}" if one.query.kind != "why" else f"The reason was {one.answer}"
    text = f"{where}, as can be seen for quite a while. There is not much else to see at that time. After that the story goes on."
    return replace(one, answer=text) if len(text) <= around.max_answer_chars else None


BOTH, CHOICE, OPEN = ("choice", "open"), ("choice",), ("open",)
FAULTS: dict[str, tuple[Fault, Sequence[str]]] = {
    "equal_options": (equal_options, CHOICE),
    "empty_option": (empty_option, CHOICE),
    "combining_option": (combining_option, CHOICE),
    "no_right_option": (no_right_option, CHOICE),
    "names_letters": (names_letters, CHOICE),
    "other_conclusion": (other_conclusion, BOTH),
    "ranges_outside": (ranges_outside, BOTH),
    "ranges_reversed": (ranges_reversed, BOTH),
    "unsupported": (unsupported, BOTH),
    "gives_itself_away": (gives_itself_away, BOTH),
    "deliberation": (deliberation, BOTH),
    "speaks_of_captions": (speaks_of_captions, BOTH),
    "near_duplicate": (near_duplicate, BOTH),
    "other_language": (other_language, BOTH),
    "other_video": (other_video, BOTH),
    "paragraph": (paragraph, OPEN),
}
"""Name -> how it is planted, and into what."""


def hint_of(answer: str) -> str:
    """A sentence that gives an answer away without its words."""
    return PLACE_HINTS.get(answer) or PURPOSE_HINTS.get(answer) or PRESENT.format(other=answer.removeprefix("to give it to "))


def given_away(question: str, answers: Sequence[str]) -> str | None:
    """The one of `answers` that a question tells in the sentences before it, where it tells exactly one."""
    cut = question.rstrip().rfind(". ") + 1
    before = question[:cut].lower()
    told = [answer for answer in answers if answer and (answer.lower() in before or hint_of(answer).lower() in before)]
    return told[0] if len(told) == 1 else None


def _wrong(one: OracleDraft, around: Around) -> str:
    """An answer that is not the key."""
    pool = [text for text in one.options if text != one.answer] or other_answers(one)
    return _one_of(pool, around)


def other_answers(one: OracleDraft) -> list[str]:
    """What could be said instead of the answer to an open-ended question."""
    texts = [text for text in purposes(None).values() if not text.startswith("to give")] if one.query.kind == "why" else PLACES
    return [text for text in texts if text not in (one.answer, one.query.place)]


def _concluding(one: OracleDraft, answer: str) -> str:
    """The reasoning with another end."""
    return one.reasoning.replace(conclusion(one.query, one.answer), conclusion(one.query, answer))


def _said_before_the_end(one: OracleDraft, words: str) -> OracleDraft:
    body, so, end = one.reasoning.rpartition(" So ")
    return replace(one, reasoning=f"{body} {words}{so}{end}" if so else f"{one.reasoning} {words}")


def _one_of(items: Sequence[str], around: Around) -> str:
    return items[int(around.rng.integers(len(items)))]
