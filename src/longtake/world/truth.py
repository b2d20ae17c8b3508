"""What is true of a video: questions in the forms of `world.questions` are read, and answered from what was seen.

The same functions answer from a whole story and from a part of it, such as the captions of two clips or eight frames: what is not
seen there cannot be told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from longtake.answers.texts import normalise
from longtake.world.questions import purposes
from longtake.world.story import CHARACTERS, PLACES, THINGS, Event, EventKind, Purpose, Story

QueryKind = Literal["after", "why", "begin", "end", "where"]
EDGE_S = 1.0
"""A part of a video that begins or ends this close to the video's begin or end is its first or last one."""


@dataclass(frozen=True)
class Query:
    """What a question asks for."""

    kind: QueryKind
    place: str | None = None
    """after: the place before the one asked for."""
    event: Event | None = None
    """where: what happened; why: the taking."""


@dataclass(frozen=True)
class Moment:
    """A stretch of a video at one place; in a frame start and stop are equal."""

    start_s: float
    stop_s: float
    place: str
    event: Event | None
    """None: nothing happens."""


@dataclass(frozen=True)
class Seen:
    """What is known of a video: moments in their order in time."""

    moments: tuple[Moment, ...]
    gap_s: float = EDGE_S
    """Between moments that are no further apart nothing was missed."""
    edge_s: float = EDGE_S
    """A moment this close to the begin or the end of the video is its first or last one."""
    duration_s: float | None = None
    """Of the video; None: not known, and the last moment is taken for its end."""

    def follows(self, index: int) -> bool:
        """Whether moments[index + 1] comes right after moments[index]."""
        return self.moments[index + 1].start_s - self.moments[index].stop_s <= self.gap_s

    @property
    def has_begin(self) -> bool:
        return bool(self.moments) and self.moments[0].start_s <= self.edge_s

    @property
    def has_end(self) -> bool:
        return bool(self.moments) and (self.duration_s is None or self.moments[-1].stop_s >= self.duration_s - self.edge_s)


def true_answer(story: Story, question_text: str) -> str | None:
    """The answer by the event log; None when what is asked for never happened, or the question is of no known form."""
    query = parse_question(question_text)
    return None if query is None else answer_from(seen_of(story), query)


def is_true(story: Story, question_text: str, answer_text: str) -> bool:
    """Whether the text of an answer (not its letter) is true of the story."""
    answer = true_answer(story, question_text)
    return answer is not None and same_meaning(answer, answer_text)


def seen_of(story: Story) -> Seen:
    """Everything."""
    moments = tuple(Moment(scene.start_s, scene.stop_s, scene.place, scene.event) for scene in story.scenes)
    return Seen(moments, duration_s=story.duration_s)


def answer_from(seen: Seen, query: Query) -> str | None:
    """The answer as far as what was seen tells it; None: it does not."""
    return _ANSWERS[query.kind](seen, query)


def _after(seen: Seen, query: Query) -> str | None:
    moments = seen.moments
    ends = [index for index in range(len(moments) - 1) if moments[index].place == query.place != moments[index + 1].place]
    return _only({moments[index + 1].place for index in ends if seen.follows(index)})


def _begin(seen: Seen, query: Query) -> str | None:
    return seen.moments[0].place if seen.has_begin else None


def _end(seen: Seen, query: Query) -> str | None:
    return seen.moments[-1].place if seen.has_end else None


def _where(seen: Seen, query: Query) -> str | None:
    assert query.event is not None
    return _only({moment.place for moment in seen.moments if moment.event is not None and same_event(moment.event, query.event)})


def _why(seen: Seen, query: Query) -> str | None:
    """By what becomes of the thing; that it is kept can be told only by who misses nothing from the taking to the end."""
    assert query.event is not None
    moments = seen.moments
    take = next((index for index, moment in enumerate(moments) if moment.event == query.event), None)
    if take is None:
        return None
    for moment in moments[take + 1 :]:
        if moment.event is not None and moment.event.thing == query.event.thing and moment.event != query.event:
            return purposes(moment.event.other)[_PURPOSES[moment.event.kind]] if moment.event.kind in _PURPOSES else None
    whole = seen.has_end and all(seen.follows(index) for index in range(take, len(moments) - 1))
    return purposes(None)["keep"] if whole else None


_PURPOSES: dict[EventKind, Purpose] = {"gives": "give", "hides": "hide", "uses": "use"}
_ANSWERS: dict[QueryKind, Callable[[Seen, Query], str | None]] = {
    "after": _after,
    "why": _why,
    "begin": _begin,
    "end": _end,
    "where": _where,
}


def _only(found: set[str]) -> str | None:
    return next(iter(found)) if len(found) == 1 else None


def same_event(left: Event, right: Event) -> bool:
    """Meeting is mutual. A question about a giving names the receiver, or (`other` None) does not."""
    if left.kind != right.kind or left.thing != right.thing:
        return False
    if left.kind == "meets":
        return {left.actor, left.other} == {right.actor, right.other}
    return left.actor == right.actor and (left.other == right.other or None in (left.other, right.other))


def _any(names: Iterable[str]) -> str:
    return f"({'|'.join(names)})"


VERBS: dict[str, EventKind] = {"take": "takes", "give": "gives", "hide": "hides", "use": "uses", "meet": "meets"}
_ASKED_PLACE = r"(?:where|(?:in|at) which place)(?: then| exactly)?"
_FORM_OF: dict[QueryKind, str] = {
    "after": rf"\b(?:which|what) place(?: then| exactly)? (?:came|comes) (?:right|directly|immediately) after the {_any(PLACES)}",
    "why": rf"\bwhy(?: then| exactly)? did the {_any(CHARACTERS)} want the {_any(THINGS)}",
    "begin": rf"\b{_ASKED_PLACE} does the story begin",
    "end": rf"\b{_ASKED_PLACE} does the story end",
    "where": rf"\b{_ASKED_PLACE} did the {_any(CHARACTERS)} {_any(VERBS)}(?: the {_any(THINGS)})?(?:(?: to)? the {_any(CHARACTERS)})?",
}
_FORMS = {kind: re.compile(form + r"\s*\?\s*$", re.IGNORECASE) for kind, form in _FORM_OF.items()}
"""As `world.questions` puts them, and in slightly other words."""


def parse_question(text: str) -> Query | None:
    """What the last sentence of a text asks for; None: it is of no known form."""
    flat = " ".join(text.split())
    for kind, form in _FORMS.items():
        if found := form.search(flat):
            return _query(kind, [group and group.lower() for group in found.groups()])
    return None


def _query(kind: QueryKind, names: Sequence[str | None]) -> Query:
    if kind == "after":
        return Query(kind, place=names[0])
    if kind == "why":
        return Query(kind, event=Event("takes", str(names[0]), thing=names[1]))
    if kind == "where":
        return Query(kind, event=Event(VERBS[str(names[1])], str(names[0]), other=names[3], thing=names[2]))
    return Query(kind)


def same_meaning(left: str, right: str) -> bool:
    """Whether two answers say the same: see `meaning`."""
    return bool(meaning(left)) and meaning(left) == meaning(right)


def meaning(text: str) -> str:
    """An answer without what does not matter: case, articles, punctuation, a preposition before a place, and the ways to name a purpose.

    >>> meaning("In order to use it."), meaning("it is used"), meaning("In the cave")
    ('to use it', 'to use it', 'cave')
    """
    plain = normalise(text)
    for form, whole in _SYNONYMS:
        if found := form.fullmatch(plain):
            return found.expand(whole)
    return plain


_WANT = r"(?:(?:because )?(?:he|she|it|they) (?:wanted|wants) |in order |so as )?"
_GOT = r"(?:so that )?it (?:is|was|gets|got) "
_SYNONYMS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(form), whole)
    for form, whole in (
        (rf"(?:in|on|at|inside|into|to) {_any(PLACES)}", r"\1"),
        (rf"{_WANT}(?:to )?(use|hide|keep) (?:it|{'|'.join(THINGS)})", r"to \1 it"),
        (rf"{_WANT}(?:to )?give (?:it|{'|'.join(THINGS)}) to {_any(CHARACTERS)}", r"to give it to \1"),
        (rf"{_GOT}used", "to use it"),
        (rf"{_GOT}hidden", "to hide it"),
        (rf"{_GOT}kept", "to keep it"),
        (rf"{_GOT}given to {_any(CHARACTERS)}", r"to give it to \1"),
    )
)
