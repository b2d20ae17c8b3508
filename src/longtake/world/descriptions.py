"""What the tiny base model is pre-trained on: the world's videos described, and its text read. No question is asked, no answer given.

Describing, whole and with a focus:

    Describe the video.                 the log of events
    Describe the video. cave            the log, then again what happened in the cave
    Describe the video. after cave      the log, then the cave and the place after it

Reading, without a video:

    cave cup red square key             the same again
    LOG cave                            the log's sentence about the cave
    LOG after cave                      the cave and the place after it
    cave\\nK. hall\\nR. cave            the name, then the list as far as the name: `cave K hall no R cave yes`

Without reading, a model of this size does not find a word of the prompt again in what it has said: 430 steps of focused descriptions did
not teach it, and SFT stayed at chance. The labels of lists are never the letters of options.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longtake.world.questions import LETTERS, describe, describe_event, places_of
from longtake.world.story import CHARACTERS, PLACES, THINGS, Story

INSTRUCTION = "Describe the video."
LABELS = tuple(letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in LETTERS)
WHOLE_SHARE = 0.4
READING = ("copy", "focus", "walk")
READING_SHARES = (0.25, 0.5, 0.25)
NAMES = PLACES + THINGS + CHARACTERS
COPY_LENGTHS = (4, 13)
"""Names to repeat: at least 4, fewer than 13."""


def focused_description(story: Story, rng: np.random.Generator) -> tuple[str, str]:
    """(instruction, description) of one of the forms above, drawn at random."""
    if rng.random() < WHOLE_SHARE:
        return INSTRUCTION, describe(story)
    focus, said = focused(story, rng)
    return f"{INSTRUCTION}{focus}", f"{describe(story)} {said}"


def reading(stories: Sequence[Story], rng: np.random.Generator) -> tuple[str, str]:
    """(text, what is to be said of it), no video."""
    kind = str(rng.choice(READING, p=READING_SHARES))
    if kind == "copy":
        names = " ".join(str(name) for name in rng.choice(NAMES, int(rng.integers(*COPY_LENGTHS))))
        return names, names
    story = stories[int(rng.integers(len(stories)))]
    if kind == "walk":
        return walked(story, rng)
    focus, said = focused(story, rng)
    return describe(story) + focus, said


def focused(story: Story, rng: np.random.Generator) -> tuple[str, str]:
    """A place of the video and its event, or a place and the one after it."""
    if rng.random() < 0.5:
        scene = story.scenes[int(rng.integers(len(story.scenes)))]
        return f" {scene.place}", describe_event(scene.event, scene.place)
    index = int(rng.integers(len(story.scenes) - 1))
    before, after = places_of(story)[index : index + 2]
    return f" after {before}", f"{before} {after}"


def walked(story: Story, rng: np.random.Generator) -> tuple[str, str]:
    """A name and a labelled list that holds it; the list is walked as far as the name."""
    names = [str(name) for name in rng.permutation(places_of(story))[: len(LETTERS)]]
    labels = [str(label) for label in rng.permutation(LABELS)[: len(names)]]
    wanted = int(rng.integers(len(names)))
    steps = [f"{labels[index]} {names[index]} {'yes' if index == wanted else 'no'}" for index in range(wanted + 1)]
    lines = "".join(f"\n{label}. {name}" for label, name in zip(labels, names, strict=True))
    return names[wanted] + lines, f"{names[wanted]} {' '.join(steps)}"
