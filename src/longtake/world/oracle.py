"""Captioner, grounder, reasoner, voter and judge in one, who know a world's event log and lie at known rates. No network here.

Who sees images knows the truth about them by the log; who reads captions believes them. Equal requests get equal answers, lies
included; the `seed` of a request makes it another one.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from longtake.config.world_serve import LieRates
from longtake.world.log import read_world
from longtake.world.oracle_captions import caption_of, lie, moments_of, read_lines, sights_of
from longtake.world.oracle_drafts import Notes, OracleDraft, conclusion, draft, merged, queries, retell
from longtake.world.oracle_frames import FrameIndex, Sighting
from longtake.world.oracle_request import CANNOT_TELL, OracleRequest, OracleRequestError, place_among
from longtake.world.questions import CATEGORIES, LETTERS, purposes
from longtake.world.render import objects_at, scene_at
from longtake.world.story import CHARACTERS, PLACES, Story
from longtake.world.truth import Moment, Seen, answer_from, parse_question, same_meaning

MIN_GAP_S = 3.0
"""Frames that are no further apart than this, or than 1.5 times their usual distance, miss nothing."""
PURPOSES = (
    *("caption", "ground", "rewrite", "support", "watch", "blind", "judge"),
    *(f"{kind}_{category}" for kind in ("question", "open") for category in CATEGORIES),
)


class Oracle:
    """Answers requests about the videos of `worlds`. May be asked by several threads."""

    def __init__(self, worlds: Sequence[Path], rates: LieRates | None = None, seed: int = 0, ledger: Path | None = None) -> None:
        """`ledger`: JSON lines, appended. Decodes every video once.

        Raises ConfigError for a folder that is no world, VideoError for a damaged video.
        """
        self.rates, self.seed = rates or LieRates(), seed
        self.frames = FrameIndex([read_world(folder) for folder in worlds])
        self.counts: Counter[str] = Counter()
        """Requests by purpose, lies as `lie/<purpose>`, and `frames/wrong_times` for images that were shown at other times than told."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """Nothing is written any more."""

    def answer(self, request: OracleRequest) -> Any:
        """The value that the request's schema describes. Raises OracleRequestError for a request it cannot understand."""
        kind = request.purpose.partition("_")[0]
        if request.purpose not in PURPOSES:
            raise OracleRequestError(
                f"purpose {request.purpose!r}",
                rule=f"response_format.json_schema.name is one of {', '.join(PURPOSES)}",
                remedy="ask for an answer in a JSON schema of that name",
            )
        self._count(request.purpose)
        return self._ways[kind](self, request)

    def caption(self, request: OracleRequest) -> dict[str, Any]:
        story, moments = self._watched(request)
        sights = sights_of(moments)
        if self._lies(request, self.rates.captions):
            sights = lie(sights, story, request.chance(self.seed, "caption"))
        return {"caption": caption_of(sights)}

    def ground(self, request: OracleRequest) -> dict[str, Any]:
        sighting = self._found(request)
        story = self.frames.videos[sighting.video].story
        told = request.times_s if len(request.times_s) == len(request.images) else sighting.times_s
        frames = [
            {"time": at, "objects": [{"label": name, "box": list(box)} for name, box in self._boxes(sighting.video, story, time_s)]}
            for at, time_s in zip(told, sighting.times_s, strict=True)
        ]
        return {"frames": frames}

    def question(self, request: OracleRequest) -> dict[str, Any]:
        """Drafts; fewer than wanted when the captions do not carry more."""
        kind, _, category = request.purpose.partition("_")
        notes = Notes.read(read_lines(request.block("captions")), request.duration_s)
        chance = request.chance(self.seed, "order")
        found = queries(notes, category)
        chosen = [found[int(index)] for index in chance.permutation(len(found))[: request.count]]
        drafts = [draft(notes, query, kind == "open", request.chance(self.seed, f"draft {n}")) for n, query in enumerate(chosen)]
        drafts = [self._lied(request, notes, one, number) for number, one in enumerate(drafts)]
        return {"questions": [_as_answer(one) for one in drafts]}

    def rewrite(self, request: OracleRequest) -> dict[str, Any]:
        return {"reasoning": retell(request.block("reasoning"))}

    def support(self, request: OracleRequest) -> dict[str, Any]:
        lines = read_lines(request.block("captions"))
        return self._vote(request, Seen(tuple(merged(moments_of(lines))), duration_s=request.duration_s))

    def watch(self, request: OracleRequest) -> dict[str, Any]:
        if not request.images:  # nothing was shown
            return self._vote(request, Seen(()))
        sighting = self._found(request)
        moments = merged(self._moments(sighting.video, sighting.times_s))
        gap_s = max(MIN_GAP_S, 1.5 * float(np.median(np.diff(sighting.times_s)))) if len(sighting.times_s) > 1 else MIN_GAP_S
        return self._vote(request, Seen(tuple(moments), gap_s, gap_s, self.frames.videos[sighting.video].duration_s))

    def blind(self, request: OracleRequest) -> dict[str, Any]:
        """A guess, except where the question says the answer."""
        given = told_by_question(request.block("question"), request.options)
        chance = request.chance(self.seed, "blind")
        if request.options:
            guess = int(chance.integers(len(request.options)))
            index = place_among(request.options, given)
            return {"answer": LETTERS[guess if index is None else self._maybe_other(request, index, len(request.options))]}
        query = parse_question(request.block("question"))
        guesses = purposes(str(chance.choice(CHARACTERS))).values() if query is not None and query.kind == "why" else PLACES
        return {"answer": given if given is not None else str(chance.choice(list(guesses)))}

    def judge(self, request: OracleRequest) -> dict[str, Any]:
        return self._verdict(request, same_meaning(request.block("reference"), request.block("response")))

    _ways: ClassVar[dict[str, Callable[[Oracle, OracleRequest], dict[str, Any]]]] = {
        "caption": caption,
        "ground": ground,
        "question": question,
        "open": question,
        "rewrite": rewrite,
        "support": support,
        "watch": watch,
        "blind": blind,
        "judge": judge,
    }

    def _vote(self, request: OracleRequest, seen: Seen) -> dict[str, Any]:
        """What was seen decides; a voter who lies names another option, or the other verdict."""
        query = parse_question(request.block("question"))
        answer = None if query is None else answer_from(seen, query)
        if not request.options:
            return self._verdict(request, answer is not None and same_meaning(answer, request.block("answer")))
        index = place_among(request.options, answer)
        if index is None and not self._lies(request, self.rates.answers):
            return {"answer": CANNOT_TELL}
        others = len(request.options)
        if index is None:
            return {"answer": LETTERS[int(request.chance(self.seed, "vote").integers(others))]}
        return {"answer": LETTERS[self._maybe_other(request, index, others)]}

    def _verdict(self, request: OracleRequest, verdict: bool) -> dict[str, Any]:
        return {"verdict": "yes" if verdict != self._lies(request, self.rates.answers) else "no"}

    def _maybe_other(self, request: OracleRequest, index: int, count: int) -> int:
        """`index`, or at the rate of lies another one below `count`."""
        if count < 2 or not self._lies(request, self.rates.answers):
            return index
        return (index + int(request.chance(self.seed, "vote").integers(1, count))) % count

    def _lied(self, request: OracleRequest, notes: Notes, one: OracleDraft, number: int) -> OracleDraft:
        """At the rate of lies the same question with another key, and a reasoning that comes to it."""
        chance = request.chance(self.seed, f"key {number}")
        if chance.random() >= self.rates.answers:
            return one
        self._count(f"lie/{request.purpose}")
        wrong = [text for text in one.options if text != one.answer] or _other_answers(one)
        answer = str(chance.choice(wrong))
        letter = LETTERS[one.options.index(answer)] if one.options else ""
        reasoning = one.reasoning.replace(conclusion(one.query, one.answer), conclusion(one.query, answer))
        return replace(one, answer=answer, letter=letter, reasoning=reasoning, key_lied=True)

    def _lies(self, request: OracleRequest, rate: float) -> bool:
        lied = bool(request.chance(self.seed, "lie").random() < rate)
        if lied:
            self._count(f"lie/{request.purpose}")
        return lied

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def _found(self, request: OracleRequest) -> Sighting:
        """Raises OracleRequestError for a request without images."""
        if not request.images:
            given = f"a request for {request.purpose} without images"
            raise OracleRequestError(given, rule="it is about what they show", remedy="send some")
        sighting = self.frames.find(request.images, request.times_s, request.duration_s)
        if request.times_s and not sighting.by_time:
            self._count("frames/wrong_times")
        return sighting

    def _watched(self, request: OracleRequest) -> tuple[Story, list[Moment]]:
        sighting = self._found(request)
        return self.frames.videos[sighting.video].story, self._moments(sighting.video, sighting.times_s)

    def _moments(self, video: int, times_s: Sequence[float]) -> list[Moment]:
        """What is visible at these times."""
        moments = []
        for time_s in times_s:
            scene = scene_at(self.frames.videos[video].story, time_s)
            is_on = scene.event_start_s <= time_s < scene.event_stop_s
            moments.append(Moment(time_s, time_s, scene.place, scene.event if is_on else None))
        return moments

    def _boxes(self, video: int, story: Story, time_s: float) -> list[tuple[str, tuple[int, int, int, int]]]:
        height, width = self.frames.videos[video].size
        return objects_at(story, time_s, height, width)


def told_by_question(question: str, options: Sequence[str]) -> str | None:
    """The answer of a question that gives itself away: what stands before it names one option alone, or tells what is asked for."""
    before = question[: question.rstrip().rfind(". ") + 1] if ". " in question else ""
    if not before:
        return None
    named = [option for option in options if option and option.lower() in before.lower()]
    return named[0] if len(named) == 1 else None


def _other_answers(one: OracleDraft) -> list[str]:
    """For an open-ended question: what could be said instead."""
    pool: Sequence[str] = tuple(purposes(CHARACTERS[0]).values()) if one.query.kind == "why" else PLACES
    return [text for text in pool if text not in (one.answer, one.query.place)]


def _as_answer(one: OracleDraft) -> dict[str, Any]:
    """In the form of the schema."""
    choice = {"options": list(one.options), "answer": one.letter} if one.options else {"answer": one.answer}
    ranges = [{"start": start, "stop": stop} for start, stop in one.ranges]
    return {"question": one.question, **choice, "reasoning": one.reasoning, "ranges": ranges}
