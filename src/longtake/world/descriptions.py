"""What the tiny base model is pre-trained on: the world's videos described, and its text read. No question is asked, no answer given.

Describing, whole and with a focus:

    Describe the video.                 the log of events
    Describe the video. after cave              the log, then the places walked in order to the cave, and the next one
    Describe the video. red square take key     the log, then this event and its place
    Describe the video. red square key          the log, then the taking of the key and what became of it
    Describe the video. end                     the log, then the last place (or `begin`, the first)

Reading, without a video:

    cave which red the hide             the same again
    LOG after cave                      what a description with this focus would say after the log
    LOG Describe the video. after cave  all that a description with this focus would say: the log once more, then that
    : cave: hall\\nK. hall\\nR. cave    for each name the list as far as the name: `: cave K hall no R cave yes R: hall K hall yes K`

Without reading, a model of this size does not find a word of the prompt again in what it has said: 430 steps of focused descriptions did
not teach it, and SFT stayed at chance. What is to be found in a list
is always given: no focus ever stands before a list.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longtake.world.questions import LETTERS, describe, happening, place_after, places_of, purposes, trace, walk, where
from longtake.world.story import CHARACTERS, PLACES, THINGS, Story

INSTRUCTION = "Describe the video."
LABELS = tuple(string.ascii_uppercase)
WHOLE_SHARE = 0.15
READING = ("copy", "focus", "walk")
FOCUS = ("after", "where", "ends", "trace")
FOCUS_SHARES = (0.3, 0.3, 0.1, 0.3)
"""In the order of FOCUS: the ends are the easiest."""


@dataclass(frozen=True)
class Mixture:
    """What is read."""

    shares: tuple[float, float, float]
    """In the order of READING."""
    lists: tuple[str, str, str, str]
    """Of each one equally often: `places`, `purposes` (which share words, so that they are the hardest to tell apart) or `phrases`."""
    recalled: float
    """Share of the texts with a focus in which the log is said once more first, so that what is found stands in one's own words."""


FIRST = Mixture((0.1, 0.45, 0.45), ("places", "purposes", "purposes", "phrases"), recalled=0.0)
"""To learn to read. Measured: a log said once more keeps the rest from being learned."""
LAST = Mixture((0.05, 0.45, 0.5), ("places", "purposes", "purposes", "phrases"), recalled=0.5)
"""Beside the last phase's descriptions."""
STRAY_WORDS = ("Which", "place", "came", "right", "the", "Why", "did", "want", "Where", "does", "story")
MAX_STRAY_WORDS = 4
WORDS = (
    *sorted({word for name in PLACES + THINGS + CHARACTERS for word in name.split()}),
    *(
        "takes",
        "gives",
        "hides",
        "uses",
        "meets",
        "keeps",
        "to",
        "take",
        "use",
        "hide",
        "give",
        "meet",
        "keep",
        "it",
        "after",
        "begin",
        "end",
    ),
    *STRAY_WORDS,
)
COPY_LENGTHS = (4, 13)
"""Words to repeat: at least 4, fewer than 13."""
LIST_LENGTHS = (2, 5)
MAX_NAMES = 2


def focused_description(story: Story, rng: np.random.Generator) -> tuple[str, str]:
    """(instruction, description) of one of the forms above, drawn at random."""
    if rng.random() < WHOLE_SHARE:
        return INSTRUCTION, describe(story)
    focus, said = focused(story, rng)
    return f"{INSTRUCTION} {with_stray_words(focus, rng)}", f"{describe(story)} {said}"


def reading(stories: Sequence[Story], rng: np.random.Generator, kind: str | None = None, mixture: Mixture = FIRST) -> tuple[str, str]:
    """(text, what is to be said of it), no video; of a random kind when none is given."""
    kind = kind or str(rng.choice(READING, p=mixture.shares))
    if kind == "copy":
        words = " ".join(str(word) for word in rng.choice(WORDS, int(rng.integers(*COPY_LENGTHS))))
        return words, words
    story = stories[int(rng.integers(len(stories)))]
    if kind == "walk":
        return walked(story, rng, mixture.lists)
    focus, said = focused(story, rng, None if kind == "focus" else kind)
    log, words = describe(story), with_stray_words(focus, rng)
    if kind == "focus" and rng.random() < mixture.recalled:
        return f"{log} {INSTRUCTION} {words}", f"{log} {said}"
    return f"{log} {words}", said


def focused(story: Story, rng: np.random.Generator, kind: str | None = None) -> tuple[str, str]:
    """(focus, what is said of it), of a random kind when none is given."""
    kind = kind or str(rng.choice(FOCUS, p=FOCUS_SHARES))
    places = places_of(story)
    if kind == "where":
        scene = story.scenes[int(rng.integers(len(places)))]
        return happening(scene.event), where(scene.event, scene.place)
    if kind == "after":
        index = int(rng.integers(len(places) - 1))
        return f"after {places[index]}", place_after(places, index)
    if kind == "ends":
        word, place = [("begin", places[0]), ("end", places[-1])][int(rng.integers(2))]
        return word, f"{word} {place}"
    takes = [index for index, event in enumerate(story.events) if event.kind == "takes"]
    take = takes[int(rng.integers(len(takes)))]
    return f"{story.events[take].actor} {story.events[take].thing}", trace(story, take)


def with_stray_words(focus: str, rng: np.random.Generator) -> str:
    """Half of the time as it is, else with up to MAX_STRAY_WORDS words anywhere in it."""
    words = focus.split()
    for _ in range(int(rng.integers(1, MAX_STRAY_WORDS + 1)) if rng.random() < 0.5 else 0):
        words.insert(int(rng.integers(len(words) + 1)), str(rng.choice(STRAY_WORDS)))
    return " ".join(words)


def walked(story: Story, rng: np.random.Generator, lists: Sequence[str]) -> tuple[str, str]:
    """Names and a labelled list that holds them, sometimes behind other text, which is copied first.

    For every name the list is walked as far as the name, whose label is said last. With several names in the text only the one just said
    tells where to stop.
    """
    options = list_of(story, int(rng.integers(*LIST_LENGTHS)), rng, lists)
    labels = list(LETTERS) if rng.random() < 0.25 else [str(label) for label in rng.permutation(LABELS)]
    options = options[: len(labels)]
    wanted = rng.permutation(len(options))[: int(rng.integers(1, MAX_NAMES + 1))]
    before = text_before(story, rng)
    names = "".join(f": {options[index]}" for index in wanted)
    lines = "".join(f"\n{label}. {option}" for label, option in zip(labels, options, strict=False))
    walks = "".join(f": {options[index]} {walk(labels, options, int(index))} {labels[index]}" for index in wanted)
    return f"{before}{names}{lines}", f"{before}{walks}"


def text_before(story: Story, rng: np.random.Generator) -> str:
    """Nothing, a few words, or a log and a few words."""
    kind = int(rng.integers(4))
    words = " ".join(str(word) for word in rng.choice(WORDS, int(rng.integers(1, 7))))
    return f"{describe(story)} {words}" if kind == 0 else words if kind == 1 else ""


def list_of(story: Story, count: int, rng: np.random.Generator, lists: Sequence[str]) -> list[str]:
    """Different places, purposes or random phrases."""
    kind = lists[int(rng.integers(len(lists)))]
    if kind == "places":
        return [str(place) for place in rng.permutation(PLACES)[:count]]
    if kind == "purposes":
        return [str(purpose) for purpose in rng.permutation(sorted(purposes(str(rng.choice(story.cast))).values()))[:count]]
    phrases = {" ".join(str(word) for word in rng.choice(WORDS, int(rng.integers(1, 4)))) for _ in range(2 * count)}
    return [str(phrase) for phrase in rng.permutation(sorted(phrases))[:count]]
