"""Captions: what is visible in frames as plain English sentences, and such sentences read back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from longtake.world.story import CHARACTERS, KIND_WEIGHTS, PLACES, THINGS, Event, EventKind, Story
from longtake.world.truth import Moment

ON = ("beach", "street")
"""Places that one is on."""


@dataclass(frozen=True)
class CaptionLine:
    """A clip and what was said of it."""

    start_s: float
    stop_s: float
    text: str


@dataclass(frozen=True)
class Sight:
    """A place and what happens there, None for nothing: one sentence of a caption."""

    place: str
    event: Event | None


def caption_of(sights: Sequence[Sight]) -> str:
    """A sentence for each.

    >>> caption_of([Sight("cave", Event("takes", "red square", thing="key")), Sight("hall", None)])
    'In the cave the red square takes the key. The hall is empty.'
    """
    return " ".join(sentence(sight) for sight in sights)


def sentence(sight: Sight) -> str:
    """One."""
    if sight.event is None:
        return f"The {sight.place} is empty."
    return f"{preposition(sight.place).capitalize()} the {sight.place} {told(sight.event)}."


def preposition(place: str) -> str:
    """`in` or `on`"""
    return "on" if place in ON else "in"


def told(event: Event) -> str:
    """`the red square gives the key to the blue circle`"""
    thing = f" the {event.thing}" if event.thing else ""
    other = {"gives": f" to the {event.other}", "meets": f" the {event.other}"}.get(event.kind, "")
    return f"the {event.actor} {event.kind}{thing}{other}"


def sights_of(moments: Iterable[Moment]) -> list[Sight]:
    """What a viewer says was there: a place once for each stay, with what happened, quiet parts of it left out."""
    sights: list[Sight] = []
    for moment in moments:
        new = Sight(moment.place, moment.event)
        if not sights or sights[-1].place != new.place or None not in (sights[-1].event, new.event):
            if not sights or sights[-1] != new:
                sights.append(new)
        elif new.event is not None:
            sights[-1] = new
    return sights


_NAMES = {"place": PLACES, "actor": CHARACTERS, "thing": THINGS, "other": CHARACTERS}
_PLACE, _ACTOR, _THING, _OTHER = (rf"(?P<{name}>{'|'.join(names)})" for name, names in _NAMES.items())
_SENTENCES = re.compile(
    rf"the (?P<empty>{'|'.join(PLACES)}) is empty\."
    rf"|(?:in|on) the {_PLACE} the {_ACTOR} (?P<kind>{'|'.join(KIND_WEIGHTS)})(?: the {_THING})?(?:(?: to)? the {_OTHER})?\.",
    re.IGNORECASE,
)
_LINE = re.compile(r"^\[(\d+(?:\.\d+)?) s - (\d+(?:\.\d+)?) s\] (.*)$", re.MULTILINE)


def read_lines(text: str) -> list[CaptionLine]:
    """`[12.0 s - 22.0 s] text`, a clip each, in order of time."""
    lines = [CaptionLine(float(start), float(stop), said) for start, stop, said in _LINE.findall(text)]
    return sorted(lines, key=lambda line: (line.start_s, line.stop_s))


@lru_cache(maxsize=1 << 14)
def read_caption(text: str) -> tuple[Sight, ...]:
    """The sentences of a caption that are ours; others say nothing that could be asked for. Kept: one is read for each of many votes."""
    found = (match.groupdict() for match in _SENTENCES.finditer(text.lower()))
    return tuple(Sight(parts["empty"], None) if parts["empty"] else Sight(parts["place"], _event(parts)) for parts in found)


def _event(parts: dict[str, str]) -> Event:
    kinds: dict[str, EventKind] = {kind: kind for kind in KIND_WEIGHTS}
    return Event(kinds[parts["kind"]], parts["actor"], other=parts["other"], thing=parts["thing"])


def moments_of(lines: Iterable[CaptionLine]) -> list[Moment]:
    """What captions say, clip after clip; stretches of one clip share its times."""
    return [Moment(line.start_s, line.stop_s, sight.place, sight.event) for line in lines for sight in read_caption(line.text)]


def lie(sights: Sequence[Sight], story: Story, rng: np.random.Generator) -> list[Sight]:
    """The same with one thing wrong: a place, a figure, a thing or an action. `sights` is not empty."""
    index = int(rng.integers(len(sights)))
    lied = list(sights)
    lied[index] = _other_sight(sights[index], story, rng)
    return lied


def _other_sight(sight: Sight, story: Story, rng: np.random.Generator) -> Sight:
    event = sight.event
    aspects = ["place"] if event is None else ["place", "actor", "action"] + (["thing"] if event.thing else [])
    aspect = str(rng.choice(aspects))
    if aspect == "place" or event is None:
        return replace(sight, place=_another(PLACES, rng, sight.place))
    if aspect == "actor":
        return replace(sight, event=replace(event, actor=_another(story.cast, rng, event.actor, event.other)))
    if aspect == "thing":
        return replace(sight, event=replace(event, thing=_another(THINGS, rng, event.thing)))
    return replace(sight, event=_other_action(event, story, rng))


def _other_action(event: Event, story: Story, rng: np.random.Generator) -> Event:
    """Somebody else may be needed for it, or a thing."""
    kinds: list[EventKind] = [kind for kind in KIND_WEIGHTS if kind != event.kind]
    kind = kinds[int(rng.integers(len(kinds)))]
    other = event.other or _another(story.cast, rng, event.actor)
    thing = event.thing or _another(THINGS, rng)
    return Event(kind, event.actor, other=other if kind in ("gives", "meets") else None, thing=None if kind == "meets" else thing)


def _another(names: Sequence[str], rng: np.random.Generator, *taken: str | None) -> str:
    return str(rng.choice([name for name in names if name not in taken]))
