"""Questions about a video of which only the captions are known: what an honest reasoner drafts, and how it retells its reasoning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from longtake.world.oracle_captions import CaptionLine, Sight, moments_of, preposition, read_caption, sentence, told
from longtake.world.questions import LETTERS, after_text, ends_text, purposes, where_text, why_text
from longtake.world.story import CHARACTERS, PLACES, Event
from longtake.world.truth import Moment, Query, Seen, answer_from, same_event

Range = tuple[float, float]


@dataclass(frozen=True)
class OracleDraft:
    """A question as the reasoner gives it out."""

    query: Query
    question: str
    answer: str
    """Text of the right option, or the open-ended answer."""
    options: tuple[str, ...]
    """() for an open-ended one."""
    letter: str
    """Of the key; empty for an open-ended one."""
    reasoning: str
    ranges: tuple[Range, ...]
    fault: str | None = None
    """What was planted."""
    key_lied: bool = False
    """Whether the key is another option than the one the reasoner holds for right."""


@dataclass(frozen=True, eq=False)
class Notes:
    """The captions of a video, read."""

    lines: tuple[CaptionLine, ...]
    seen: Seen

    @classmethod
    def read(cls, lines: Sequence[CaptionLine], duration_s: float | None) -> Notes:
        return cls(tuple(lines), Seen(tuple(merged(moments_of(lines))), duration_s=duration_s))

    @property
    def places(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(moment.place for moment in self.seen.moments))


def merged(moments: Sequence[Moment]) -> list[Moment]:
    """Neighbours at one place are one stay where at most one of them has an event, or both have the same."""
    stays: list[Moment] = []
    for moment in moments:
        last = stays[-1] if stays else None
        if last is None or last.place != moment.place or (None not in (last.event, moment.event) and last.event != moment.event):
            stays.append(moment)
        else:
            stays[-1] = replace(last, stop_s=max(last.stop_s, moment.stop_s), event=last.event or moment.event)
    return stays


def queries(notes: Notes, category: str) -> list[Query]:
    """What can be asked for in this category, each with one answer."""
    moments = notes.seen.moments
    events = list(dict.fromkeys(moment.event for moment in moments if moment.event is not None))
    asked = {
        "temporal": [Query("after", place=place) for place in notes.places],
        "goal": [Query("why", event=event) for event in events if event.kind == "takes"],
        "plot": [Query("begin"), Query("end")],
        "spatial": [Query("where", event=event) for event in events],
    }[category]
    return [query for query in asked if answer_from(notes.seen, query) is not None]


def draft(notes: Notes, query: Query, is_open: bool, rng: np.random.Generator) -> OracleDraft:
    """An honest one."""
    answer = answer_from(notes.seen, query)
    assert answer is not None
    lines = evidence(notes, query)
    reasoning = reason(lines, query, answer)
    ranges = ranges_of(lines)
    if is_open:
        return OracleDraft(query, question_text(query), answer, (), "", reasoning, ranges)
    options = [str(option) for option in rng.permutation(wrong_answers(notes, query, answer, rng))]
    index = int(rng.integers(len(LETTERS)))
    options.insert(index, answer)
    return OracleDraft(query, question_text(query), answer, tuple(options), LETTERS[index], reasoning, ranges)


def question_text(query: Query) -> str:
    """In the form of `world.questions`."""
    if query.kind == "after":
        return after_text(str(query.place))
    if query.kind in ("begin", "end"):
        return ends_text(query.kind)
    assert query.event is not None
    return why_text(query.event) if query.kind == "why" else where_text(query.event)


def wrong_answers(notes: Notes, query: Query, answer: str, rng: np.random.Generator) -> list[str]:
    """Three: other purposes, or other places, of the same video as far as it has them."""
    if query.kind == "why":
        names = {name for moment in notes.seen.moments if moment.event for name in (moment.event.actor, moment.event.other) if name}
        receivers = sorted(names - {query.event.actor if query.event else ""}) or list(CHARACTERS)
        texts = purposes(str(rng.choice(receivers))).values()
        is_given = answer.startswith("to give")
        return [text for text in texts if text != answer and not (is_given and text.startswith("to give"))]
    taken = (answer, query.place)
    own = [str(place) for place in rng.permutation([place for place in notes.places if place not in taken] or [""]) if place]
    other = [str(place) for place in rng.permutation([place for place in PLACES if place not in (*taken, *own)])]
    return [*own, *other][: len(LETTERS) - 1]


def evidence(notes: Notes, query: Query) -> list[CaptionLine]:
    """The captions that the answer rests on."""
    moments = notes.seen.moments
    if query.kind == "begin":
        return list(notes.lines[:1])
    if query.kind == "end":
        return list(notes.lines[-1:])
    if query.kind == "after":
        index = next(i for i, moment in enumerate(moments[:-1]) if moment.place == query.place != moments[i + 1].place)
        return lines_of(notes, moments[index]) + lines_of(notes, moments[index + 1])
    if query.kind == "where":
        return _lines_of_event(notes, query.event)
    return _lines_of_purpose(notes, query)


def _lines_of_purpose(notes: Notes, query: Query) -> list[CaptionLine]:
    """The taking and what became of the thing; for one that was kept, everything from the taking on."""
    assert query.event is not None
    taking = _lines_of_event(notes, query.event)
    moments = notes.seen.moments
    take = next(index for index, moment in enumerate(moments) if moment.event == query.event)
    later = [moment.event for moment in moments[take + 1 :] if moment.event and moment.event.thing == query.event.thing]
    became = next((event for event in later if event != query.event), None)
    if became is not None:
        return sorted({*taking, *_lines_of_event(notes, became)}, key=lambda line: line.start_s)
    return [line for line in notes.lines if line.start_s >= taking[0].start_s]


def _lines_of_event(notes: Notes, event: Event | None) -> list[CaptionLine]:
    assert event is not None
    return [line for line in notes.lines if any(sight.event and same_event(sight.event, event) for sight in read_caption(line.text))]


def lines_of(notes: Notes, moment: Moment) -> list[CaptionLine]:
    """The captions in which a stay is seen."""
    inside = [line for line in notes.lines if line.start_s >= moment.start_s and line.stop_s <= moment.stop_s]
    return [line for line in inside if any(sight.place == moment.place for sight in read_caption(line.text))]


def ranges_of(lines: Sequence[CaptionLine]) -> tuple[Range, ...]:
    """Of captions in order of time; neighbours are one."""
    ranges: list[Range] = []
    for start, stop in dict.fromkeys((line.start_s, line.stop_s) for line in lines):
        if ranges and start - ranges[-1][1] < 0.05:
            ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]))
        else:
            ranges.append((start, stop))
    return tuple(ranges)


def reason(lines: Sequence[CaptionLine], query: Query, answer: str) -> str:
    """As somebody writes it who reads captions: `retell` makes a viewer's words of it. A sentence for each stay at a place."""
    stays = [stay for stay in merged(moments_of(lines)) if _matters(stay, query, answer)]
    said = " ".join(
        f"The captions at {stay.start_s:.1f} s - {stay.stop_s:.1f} s say: {sentence(Sight(stay.place, stay.event))}" for stay in stays
    )
    kept = f" No later caption speaks of the {query.event.thing}." if query.event and answer == purposes(None)["keep"] else ""
    return f"{said}{kept} So {conclusion(query, answer)}."


def _matters(stay: Moment, query: Query, answer: str) -> bool:
    """Whether a stay belongs into the reasoning. That nothing happens to a thing is told by all of them."""
    if query.kind == "where":
        return stay.event is not None and query.event is not None and same_event(stay.event, query.event)
    if query.kind == "why" and answer != purposes(None)["keep"]:
        return stay.event is not None and query.event is not None and stay.event.thing == query.event.thing
    return query.kind == "why" or stay.place in (query.place, answer)


def conclusion(query: Query, answer: str) -> str:
    """`the place right after the cave is the hall`"""
    if query.kind == "after":
        return f"the place right after the {query.place} is the {answer}"
    if query.kind in ("begin", "end"):
        return f"the story {query.kind}s {preposition(answer)} the {answer}"
    assert query.event is not None
    if query.kind == "why":
        return f"the {query.event.actor} wanted the {query.event.thing} {answer}"
    return f"{told(query.event)} {preposition(answer)} the {answer}"


_AT = r"(\d+\.\d) s - (\d+\.\d) s"
_RETOLD = (
    (re.compile(rf"The captions at {_AT} say: "), r"What I see from \1 s to \2 s: "),
    (re.compile(r"No later caption speaks of the (\w+)\."), r"From then on I do not see anybody do anything with the \1."),
)


def retell(reasoning: str) -> str:
    """As somebody tells who has watched the video. What is not in the words of `reason` stays as it is, a planted fault above all."""
    for form, words in _RETOLD:
        reasoning = form.sub(words, reasoning)
    return reasoning
