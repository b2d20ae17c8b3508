"""From a story's event log to rows: four categories, options from the same video, reasoning derived from the log.

The reasoning lists what happens, states the fact that decides, says the answer behind a colon, then walks the options to it:

    cave red square takes key cave. hall red square uses key hall. ... begin cave: cave A street no B cave yes

or, of a share of the rows, only from the fact on: people explain themselves at different lengths, and the brief ones must see the fact
at once.
Measured on the tiny model, binding an answer to its option LETTER is learned at once in that form and not at all without the walk.
A sentence of the log begins and ends with its place: what follows a word is easier to find again than what stands before it, so that
every fact can be copied from the log word by word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from longtake.types import Row
from longtake.world.story import Event, Purpose, Story

LETTERS = "ABCD"
CATEGORIES = ("temporal", "goal", "plot", "spatial")


@dataclass(frozen=True)
class Question:
    """A question with its true answer, three wrong ones from the same video, and the fact that decides."""

    category: str
    text: str
    answer: str
    distractors: tuple[str, ...]
    fact: str


def describe_event(event: Event, place: str) -> str:
    """`cave red square gives key to blue circle cave.`: whatever is asked, some word has to be found again, and what FOLLOWS it copied."""
    return f"{place} {what_happens(event)} {place}."


def what_happens(event: Event) -> str:
    """`red square gives key to blue circle`"""
    thing = f" {event.thing}" if event.thing else ""
    other = {"gives": f" to {event.other}", "meets": f" {event.other}"}.get(event.kind, "")
    return f"{event.actor} {event.kind}{thing}{other}"


def describe(story: Story) -> str:
    """The whole video in order, one sentence per event: the text the base model is pre-trained on."""
    return " ".join(describe_event(scene.event, scene.place) for scene in story.scenes)


def make_rows(
    story: Story, *, first_id: int, video: str, subtitles: str | None, count: int, open_ended: float, brief: float = 0.0
) -> list[Row]:
    """`count` rows about one story, categories in turn; a share `open_ended` without options, a share `brief` with brief reasoning."""
    rng, lengths = np.random.default_rng([story.seed, 1]), np.random.default_rng([story.seed, 3])
    rows = []
    for offset in range(count):
        question = QUESTIONS[CATEGORIES[offset % len(CATEGORIES)]](story, rng)
        letter_index = int(rng.integers(len(LETTERS)))
        is_open = bool(rng.random() < open_ended)
        seen = "" if lengths.random() < brief else f"{describe(story)} "
        problem, reasoning, answer = lay_out_row(seen, question, letter_index, is_open, rng)
        rows.append(
            Row(
                problem_id=first_id + offset,
                problem=problem,
                data_type="video",
                problem_type=question.category,
                reasoning=reasoning,
                videos=(video,),
                answer=f"<answer>{answer}</answer>",
                subtitles=subtitles,
                duration_s=story.duration_s,
            )
        )
    return rows


def lay_out_row(seen: str, question: Question, letter_index: int, is_open: bool, rng: np.random.Generator) -> tuple[str, str, str]:
    """(problem, reasoning, answer) with the right option at `letter_index`; `seen` begins the reasoning."""
    if is_open:
        return question.text, f"{seen}{question.fact}: {question.answer}", question.answer
    options = [str(option) for option in rng.permutation(question.distractors)]
    options.insert(letter_index, question.answer)
    inline = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
    walked = walk(LETTERS, options, letter_index)
    return question.text + inline, f"{seen}{question.fact}: {question.answer} {walked}", LETTERS[letter_index]


def walk(labels: Sequence[str], options: Sequence[str], wanted: int) -> str:
    """`A street no B hall yes`: the list as far as the wanted option."""
    steps = [f"{label} {option} no" for label, option in zip(labels[:wanted], options[:wanted], strict=True)]
    return " ".join([*steps, f"{labels[wanted]} {options[wanted]} yes"])


def others(pool: tuple[str, ...], answer: str, rng: np.random.Generator, excluded: str | None = None) -> tuple[str, ...]:
    """Three members of `pool` besides the answer."""
    left = [item for item in pool if item not in (answer, excluded)]
    return tuple(str(item) for item in rng.choice(left, len(LETTERS) - 1, replace=False))


def places_of(story: Story) -> tuple[str, ...]:
    return tuple(scene.place for scene in story.scenes)


def ask_temporal(story: Story, rng: np.random.Generator) -> Question:
    """Which place came right after another; the named place is never among the options."""
    index = int(rng.integers(len(story.scenes) - 1))
    places = places_of(story)
    before, answer = places[index : index + 2]
    wrong = others(places, answer, rng, excluded=before)
    return Question("temporal", after_text(before), answer, wrong, place_after(places, index))


def ask_goal(story: Story, rng: np.random.Generator) -> Question:
    """Why a thing was taken: to be used, hidden, given away or kept; each is the truth in a quarter of the stories."""
    taken = story.events[story.asked_take]
    after = next_event(story, story.asked_take)
    anybody = [name for name in story.cast if name != taken.actor]
    receiver = after.other if after is not None and after.kind == "gives" else str(rng.choice(anybody))
    texts = purposes(receiver)
    answer = texts[story.purpose]
    wrong = tuple(text for text in texts.values() if text != answer)
    return Question("goal", why_text(taken), answer, wrong, trace(story, story.asked_take))


def purposes(receiver: str | None) -> dict[Purpose, str]:
    """The options of a goal question."""
    return {"use": "to use it", "hide": "to hide it", "give": f"to give it to {receiver}", "keep": "to keep it"}


def next_event(story: Story, take: int) -> Event | None:
    """What happens next to the thing taken in events[take]; None: it is kept."""
    return next((event for event in story.events[take + 1 :] if event.thing == story.events[take].thing), None)


def trace(story: Story, take: int) -> str:
    """`red square takes key gives key to blue circle`: a taking, and what becomes of the thing."""
    after = next_event(story, take)
    became = f"keeps {story.events[take].thing}" if after is None else what_happens(after).removeprefix(f"{after.actor} ")
    return f"{what_happens(story.events[take])} {became}"


def place_after(places: Sequence[str], index: int) -> str:
    """`after: cave snow no cave yes hall`: the places walked in order to places[index], then the next one.

    Measured: a plain list that has to end one place behind the one asked for ends anywhere (22 % right); with `no` and `yes` it is a walk.
    """
    passed = [f"{place} no" for place in places[:index]]
    return " ".join([f"after: {places[index]}", *passed, f"{places[index]} yes {places[index + 1]}"])


def ask_plot(story: Story, rng: np.random.Generator) -> Question:
    """Where the story begins or ends. (WHAT happens then would give itself away: nothing is handed over before it was taken.)"""
    index, word = [(0, "begin"), (len(story.scenes) - 1, "end")][int(rng.integers(2))]
    scene = story.scenes[index]
    wrong = others(places_of(story), scene.place, rng)
    return Question("plot", ends_text(word), scene.place, wrong, f"{word} {scene.place}")


def ask_spatial(story: Story, rng: np.random.Generator) -> Question:
    """Where something happened."""
    index = int(rng.integers(len(story.scenes)))
    scene = story.scenes[index]
    wrong = others(places_of(story), scene.place, rng)
    return Question("spatial", where_text(scene.event), scene.place, wrong, where(scene.event, scene.place))


def after_text(place: str) -> str:
    """How a temporal question is put; `world.truth` reads these four back."""
    return f"Which place came right after the {place}?"


def why_text(taken: Event) -> str:
    """How a goal question is put."""
    return f"Why did the {taken.actor} want the {taken.thing}?"


def ends_text(word: str) -> str:
    """How a plot question is put; `word`: begin or end."""
    return f"Where does the story {word}?"


def where_text(event: Event) -> str:
    """How a spatial question is put."""
    return f"Where did the {happening(event, article='the ')}?"


def happening(event: Event, *, article: str = "") -> str:
    """`red square give key to blue circle`, as a question names it; `article` stands before things and others."""
    verb = event.kind.removesuffix("s")
    thing = f" {article}{event.thing}" if event.thing else ""
    other = {"gives": f" to {article}{event.other}", "meets": f" {article}{event.other}"}.get(event.kind, "")
    return f"{event.actor} {verb}{thing}{other}"


def where(event: Event, place: str) -> str:
    """`red square takes key cave`: what happened, and its place."""
    return f"{what_happens(event)} {place}"


QUESTIONS: dict[str, Callable[[Story, np.random.Generator], Question]] = {
    "temporal": ask_temporal,
    "goal": ask_goal,
    "plot": ask_plot,
    "spatial": ask_spatial,
}
