"""The story behind a video: characters move between places, take, hand over, hide and use things, and meet.

A story is a list of scenes, one place each. In every scene one thing happens, for a part of its time; the rest is a stretch
in which nothing matters (an empty place, a bird). Everything is drawn from one seeded generator: same seed, same story.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from longtake.errors import ConfigError

CHARACTERS = ("red square", "green triangle", "blue circle", "yellow triangle", "purple square", "white circle")
"""Colour and shape. Six of them, always the same: with free pairs the tiny model spends most of its training on telling shapes apart."""
PLACES = ("beach", "cave", "forest", "garden", "hall", "kitchen", "snow", "street")
THINGS = ("ball", "book", "cup", "key", "lamp")
CHATTER = ("What a day.", "Is anybody here?", "I heard a bird.", "It is late.", "I was here before.", "So quiet today.")

NUM_CHARACTERS = 4
NUM_THINGS = 3
MIN_SCENES = 5
"""A question about the next place needs four places besides the one it names."""
MAX_TRIES = 10_000

EventKind = Literal["takes", "gives", "hides", "uses", "meets"]
Purpose = Literal["use", "hide", "give", "keep"]
PURPOSES: tuple[Purpose, ...] = ("use", "hide", "give", "keep")
KIND_WEIGHTS: dict[EventKind, float] = {"takes": 0.38, "gives": 0.22, "hides": 0.12, "uses": 0.12, "meets": 0.16}


@dataclass(frozen=True)
class Event:
    """One thing that happens: `actor kind thing [to other]`, or `actor meets other`."""

    kind: EventKind
    actor: str
    other: str | None = None
    thing: str | None = None


@dataclass(frozen=True)
class Scene:
    """One place between two cuts; the event fills event_start_s..event_stop_s, the rest is quiet."""

    start_s: float
    stop_s: float
    event_start_s: float
    event_stop_s: float
    place: str
    event: Event
    has_bird: bool
    said: str | None


@dataclass(frozen=True)
class Story:
    """Ground truth of one video."""

    seed: int
    duration_s: float
    cast: tuple[str, ...]
    scenes: tuple[Scene, ...]
    asked_take: int
    """Index of the scene whose `takes` the goal question asks about."""
    purpose: Purpose
    """Why that thing was taken: drawn uniformly, so that no answer is likelier than another."""

    @property
    def events(self) -> tuple[Event, ...]:
        return tuple(scene.event for scene in self.scenes)


def make_story(seed: int, *, seconds: tuple[float, float], num_scenes: tuple[int, int], event_share: float = 0.6) -> Story:
    """Draw a story of `seconds` (shortest, longest) with `num_scenes` (fewest, most) scenes.

    `event_share` is the mean share of a scene in which its event is seen; the rest is quiet.
    """
    fewest, most = num_scenes
    if not MIN_SCENES <= fewest <= most <= len(PLACES):
        raise ConfigError(
            f"num_scenes is {num_scenes}",
            rule=f"{MIN_SCENES} <= fewest <= most <= {len(PLACES)} (every scene has a place of its own)",
            remedy="choose a range inside it",
        )
    rng = np.random.default_rng([seed, 0])
    duration_s = float(np.round(rng.uniform(*seconds), 1))
    count = int(rng.integers(fewest, most + 1))
    purpose = PURPOSES[int(rng.integers(len(PURPOSES)))]
    for _ in range(MAX_TRIES):
        cast = draw_cast(rng)
        things = tuple(str(thing) for thing in rng.choice(THINGS, NUM_THINGS, replace=False))
        events = draw_events(rng, cast, things, count)
        takes = [index for index, event in enumerate(events) if event.kind == "takes" and purpose_of(events, index) == purpose]
        if takes and set(cast) == appearing(events) and holders_at_end(events) and is_unambiguous(events):
            asked = takes[int(rng.integers(len(takes)))]
            scenes = lay_out(rng, events, duration_s, event_share)
            return Story(seed, duration_s, cast, scenes, asked, purpose)
    raise RuntimeError(f"no story found for seed {seed} in {MAX_TRIES} tries")


def draw_cast(rng: np.random.Generator) -> tuple[str, ...]:
    """Four different characters."""
    return tuple(str(name) for name in rng.choice(CHARACTERS, NUM_CHARACTERS, replace=False))


def draw_events(rng: np.random.Generator, cast: tuple[str, ...], things: tuple[str, ...], count: int) -> tuple[Event, ...]:
    """Simulate `count` events that respect who holds what."""
    holder: dict[str, str | None] = dict.fromkeys(things)
    events: list[Event] = []
    for _ in range(count):
        events.append(draw_event(rng, cast, holder))
        apply_event(holder, events[-1])
    return tuple(events)


def draw_event(rng: np.random.Generator, cast: tuple[str, ...], holder: dict[str, str | None]) -> Event:
    free = [thing for thing, who in holder.items() if who is None]
    held = [(thing, who) for thing, who in holder.items() if who in cast]
    kinds = [kind for kind in KIND_WEIGHTS if (kind == "meets") or (free if kind == "takes" else held)]
    weights = np.array([KIND_WEIGHTS[kind] for kind in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    first, second = (str(name) for name in rng.choice(cast, 2, replace=False))
    if kind == "meets":
        return Event("meets", first, other=second)
    if kind == "takes":
        return Event("takes", first, thing=free[int(rng.integers(len(free)))])
    thing, who = held[int(rng.integers(len(held)))]
    assert who is not None
    receiver = second if first == who else first
    return Event(kind, who, other=receiver if kind == "gives" else None, thing=thing)


def apply_event(holder: dict[str, str | None], event: Event) -> None:
    """Update who holds what; a hidden or used thing leaves the game."""
    if event.thing is None:
        return
    after = {"takes": event.actor, "gives": event.other, "hides": "hidden", "uses": "used"}
    holder[event.thing] = after[event.kind]


def purpose_of(events: tuple[Event, ...], index: int) -> Purpose:
    """What the taker of events[index] does with the thing next; nothing means that he keeps it."""
    taken = events[index]
    names: dict[str, Purpose] = {"gives": "give", "hides": "hide", "uses": "use"}
    for event in events[index + 1 :]:
        if event.thing == taken.thing:
            return names[event.kind]
    return "keep"


def is_unambiguous(events: tuple[Event, ...]) -> bool:
    """True when "where did A take / give / meet X?" has one answer for every event; meeting is mutual."""
    named = [
        ("meets", *sorted((event.actor, str(event.other)))) if event.kind == "meets" else (event.kind, event.actor, str(event.thing))
        for event in events
    ]
    return len(set(named)) == len(named)


def appearing(events: tuple[Event, ...]) -> set[str]:
    return {name for event in events for name in (event.actor, event.other) if name is not None}


def holders_at_end(events: tuple[Event, ...]) -> dict[str, str]:
    """Thing -> character, for the things that somebody has when the video ends."""
    holder: dict[str, str | None] = {}
    for event in events:
        apply_event(holder, event)
    return {thing: who for thing, who in holder.items() if who is not None and who not in ("hidden", "used")}


def lay_out(rng: np.random.Generator, events: tuple[Event, ...], duration_s: float, event_share: float) -> tuple[Scene, ...]:
    """Give every event a place of its own, a stretch of time, and quiet time around it."""
    places = rng.choice(PLACES, len(events), replace=False)
    lengths = rng.uniform(0.75, 1.25, len(events))
    cuts = np.concatenate([[0.0], np.cumsum(lengths) / lengths.sum()]) * duration_s
    scenes = []
    for index, event in enumerate(events):
        start, stop = float(cuts[index]), float(cuts[index + 1])
        busy = (stop - start) * float(np.clip(rng.normal(event_share, 0.08), 0.02, 1.0))
        begin = start + float(rng.uniform(0.0, 1.0)) * (stop - start - busy)
        said = CHATTER[int(rng.integers(len(CHATTER)))] if rng.random() < 0.5 else None
        scenes.append(Scene(start, stop, begin, begin + busy, str(places[index]), event, bool(rng.random() < 0.4), said))
    return tuple(scenes)
