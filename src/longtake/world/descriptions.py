"""What the tiny base model is pre-trained on: the world's videos described, and its text read. No question is asked, no answer given.

Describing, whole and with a focus:

    Describe the video.                 the log of events
    Describe the video. cave            the log, then again what happened in the cave
    Describe the video. red square      the log, then again everything that the red square did (a thing: everything that was done with it)
    Describe the video.\\nK. cave\\nR. cup   the log, then which of these were there: `K cave yes R cup no`

Reading, without a video:

    cave cup red square key             the same again
    LOG cave                            what the log says of the cave; a list of names likewise

Without reading, a model of this size does not find a word of the prompt again in what it has said: 430 steps of focused descriptions did
not teach it, and SFT stayed at chance. Repeating random names teaches it to copy in a few hundred steps. The labels of lists are never the
letters of options.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longtake.world.questions import LETTERS, describe, describe_event
from longtake.world.story import CHARACTERS, PLACES, THINGS, Story

INSTRUCTION = "Describe the video."
LABELS = tuple(letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in LETTERS)
LIST_LENGTH = 4
WHOLE_SHARE, LIST_SHARE = 0.2, 0.35
READING, READING_SHARES = ("copy", "repeat", "list"), (0.4, 0.4, 0.2)
NAMES = PLACES + THINGS + CHARACTERS
COPY_LENGTHS = (4, 13)
"""Names to repeat: at least 4, fewer than 13."""


def focused_description(story: Story, rng: np.random.Generator) -> tuple[str, str]:
    """(instruction, description) of one of the forms above, drawn at random."""
    draw = rng.random()
    if draw < WHOLE_SHARE:
        return INSTRUCTION, describe(story)
    instruction, focus = listed(story, rng) if draw < WHOLE_SHARE + LIST_SHARE else repeated(story, rng)
    return f"{INSTRUCTION}{instruction}", f"{describe(story)} {focus}"


def reading(stories: Sequence[Story], rng: np.random.Generator) -> tuple[str, str]:
    """(text, what is to be said of it), no video: names to repeat, or a log and a focus."""
    kind = str(rng.choice(READING, p=READING_SHARES))
    if kind == "copy":
        names = " ".join(str(name) for name in rng.choice(NAMES, int(rng.integers(*COPY_LENGTHS))))
        return names, names
    story = stories[int(rng.integers(len(stories)))]
    focus, said = listed(story, rng) if kind == "list" else repeated(story, rng)
    return describe(story) + focus, said


def repeated(story: Story, rng: np.random.Generator) -> tuple[str, str]:
    """The events of one place, character or thing of the video."""
    seen = seen_in(story)
    names = [*(scene.place for scene in story.scenes), *sorted(seen & set(CHARACTERS)), *sorted(seen & set(THINGS))]
    name = names[int(rng.integers(len(names)))]
    hits = [scene for scene in story.scenes if name in (scene.place, scene.event.actor, scene.event.other, scene.event.thing)]
    return f" {name}", " ".join(describe_event(scene.event, scene.place) for scene in hits)


def listed(story: Story, rng: np.random.Generator) -> tuple[str, str]:
    """Which of four names of one kind were there, under labels drawn at random."""
    kind = (PLACES, CHARACTERS, THINGS)[int(rng.integers(3))]
    names = rng.permutation(kind)[:LIST_LENGTH]
    labels = rng.permutation(LABELS)[:LIST_LENGTH]
    seen = seen_in(story)
    lines = "".join(f"\n{label}. {name}" for label, name in zip(labels, names, strict=True))
    verdicts = " ".join(f"{label} {name} {'yes' if name in seen else 'no'}" for label, name in zip(labels, names, strict=True))
    return lines, verdicts


def seen_in(story: Story) -> set[str]:
    """Places, characters and things of the video."""
    names = {name for event in story.events for name in (event.actor, event.other, event.thing) if name is not None}
    return names | {scene.place for scene in story.scenes}
