"""Whether two questions about a video are one.

Two questions of many like words are not: `Where did the red square take the key?` and `... take the cup?`, `before` and `after`, `first`
and `second`, who gave and who got. They are one when their answers are the same and nothing that carries meaning is exchanged between them:
little words, forms of a word, spelling and the place of a clause may differ, and some words may be added (`similar` limits how many).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

from longtake.answers import same_text
from longtake.curation.plain import words_of
from longtake.curation.records import Draft

LITTLE = frozenset(
    """do does did is are was were be been being has have had will would can could what which in of at on the this that these those there
    it its and so then exactly actually eventually finally video film footage clip movie shown seen visible happen occur""".split()  # noqa: SIM905
)
"""Words that may come and go."""
SHARP = frozenset(
    """before after during while until first last second third fourth fifth next previous earlier later early beginning end start final
    not no never without only except most least more less fewer left right top bottom up down out under over above below behind front
    inside outside to from by he she they him her his their who whom whose where when why how many much long often
    both neither either all none any every another other same different""".split()  # noqa: SIM905
)
"""Words that make another question wherever one has them and the other has not."""
IRREGULAR = {
    **{"took": "take", "taken": "take", "gave": "give", "given": "give", "hid": "hide", "hidden": "hide", "met": "meet", "went": "go"},
    **{"gone": "go", "goes": "go", "came": "come", "saw": "see", "said": "say", "got": "get", "held": "hold", "kept": "keep", "ran": "run"},
    **{"began": "begin", "begun": "begin", "brought": "bring", "bought": "buy", "found": "find", "lost": "lose", "made": "make"},
    **{"told": "tell", "stood": "stand", "sat": "sit", "wore": "wear", "threw": "throw", "drove": "drive", "ate": "eat", "fell": "fall"},
    **{"flew": "fly", "broke": "break", "built": "build", "caught": "catch", "thought": "think", "won": "win", "sold": "sell"},
    **{"immediately": "right", "directly": "right", "location": "place", "occurs": "happen", "occurred": "happen", "happened": "happen"},
    **{"happens": "happen", "colour": "color", "grey": "gray", "film": "video", "centre": "center"},
}
ENDINGS = ("ing", "ed", "es", "s", "e")
SAME_SPELLING = 80.0
"""Two words that agree by so many percent of their letters are spellings of one."""
MAX_WORDS = 200


def same_question(one: Draft, other: Draft, similar: float) -> bool:
    """Whether the two ask the same and have the same answer."""
    return same_answer(one.answer, other.answer) and same_words(content(one.question), content(other.question), similar)


def same_answer(one: str, other: str) -> bool:
    """Whether the answers have the same words, little ones aside."""
    left, right = content(one), content(other)
    return same_text(one, other) or (left == right and bool(left))


def content(text: str) -> list[str]:
    """What carries the meaning of a text: its words in order, in a common form, without the little ones.

    >>> content("In which place did the red square take the key?"), content("Where does the red square take the key?")
    (['where', 'red', 'squar', 'tak', 'key'], ['where', 'red', 'squar', 'tak', 'key'])
    """
    words = _asked_place([IRREGULAR.get(word, word) for word in words_of(text)[:MAX_WORDS]])
    return [_stem(word) for index, word in enumerate(words) if word not in LITTLE and not _only_stresses(words, index)]


def same_words(left: Sequence[str], right: Sequence[str], similar: float) -> bool:
    """Whether two lists of words mean the same: equal, one clause moved, or so many words added that `similar` percent agree."""
    if sorted(left) == sorted(right):
        return is_turned(left, right)
    if fuzz.ratio(" ".join(left), " ".join(right)) < similar:
        return False
    steps = Levenshtein.opcodes(left, right)
    return all(
        _harmless(left[step.src_start : step.src_end], right[step.dest_start : step.dest_end]) for step in steps if step.tag != "equal"
    )


def is_turned(left: Sequence[str], right: Sequence[str]) -> bool:
    """Whether one is the other with its end put first: `after the cave, which place came` and `which place came after the cave`."""
    return len(left) == len(right) and any([*right[cut:], *right[:cut]] == list(left) for cut in range(max(1, len(right))))


def _harmless(gone: Sequence[str], come: Sequence[str]) -> bool:
    """Words that come or go are no sharp ones and no numbers; a word in another's place is a spelling of it."""
    if gone and come:
        return len(gone) == len(come) and all(map(_spells, gone, come))
    return not any(word in STEMMED_SHARP or _has_digit(word) for word in (*gone, *come))


def _spells(one: str, other: str) -> bool:
    if _has_digit(one) or _has_digit(other) or {one, other} & STEMMED_SHARP:
        return one == other
    return fuzz.ratio(one, other) >= SAME_SPELLING


def _has_digit(word: str) -> bool:
    return any(char.isdigit() for char in word)


def _asked_place(words: list[str]) -> list[str]:
    """`which place`, `what place` as `where`."""
    for index, pair in enumerate(pairwise(words)):
        if pair in (("which", "place"), ("what", "place")):
            return [*words[:index], "where", *words[index + 2 :]]
    return words


def _only_stresses(words: Sequence[str], index: int) -> bool:
    """`right after`, `just before`: as close as `after` and `before`, where the answers are the same."""
    return words[index] in ("right", "just", "straight", "soon", "shortly") and words[index + 1 : index + 2] in (["after"], ["before"])


def _stem(word: str) -> str:
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


STEMMED_SHARP = SHARP | {_stem(word) for word in SHARP}
