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
from longtake.observe.digest import digest_of
from longtake.world.log import read_world
from longtake.world.oracle_captions import CaptionLine, Sight, caption_of, lie, moments_of, read_caption, read_lines, sentence, sights_of
from longtake.world.oracle_drafts import Notes, OracleDraft, conclusion, draft, merged, queries, retell
from longtake.world.oracle_faults import Around, given_away, other_answers, plant
from longtake.world.oracle_frames import FrameIndex, Sighting
from longtake.world.oracle_languages import understood
from longtake.world.oracle_ledger import Ledger, LedgerEntry
from longtake.world.oracle_request import CANNOT_TELL, OracleRequest, OracleRequestError, place_among
from longtake.world.questions import CATEGORIES, LETTERS, purposes
from longtake.world.render import objects_at, scene_at
from longtake.world.story import CHARACTERS, MIN_SCENES, PLACES, Story, make_story
from longtake.world.truth import Moment, Query, Seen, answer_from, is_true, same_meaning

MIN_GAP_S = 3.0
"""Frames that are no further apart than this, or than 1.5 times their usual distance, miss nothing."""
LONG_ANSWER_CHARS = 60
"""Such an answer is a paragraph: what stands before its first comma is the answer."""
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
        self.ledger = Ledger(ledger)
        self.frames = FrameIndex([read_world(folder) for folder in worlds])
        self.counts: Counter[str] = Counter()
        """Requests by purpose, lies as `lie/<purpose>`, planted faults as `fault/<name>`, and `frames/wrong_times`: images that are frames
        of other times than told."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """Nothing is written any more."""
        self.ledger.close()

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
        drafts: list[OracleDraft] = []
        for number, query in enumerate(self._in_order(queries(notes, category), request, kind == "open")[: request.count]):
            sound = draft(notes, query, kind == "open", request.chance(self.seed, f"draft {number}"))
            drafts.append(self._spoilt(request, notes, sound, drafts))
        if self.ledger.is_kept:
            self.ledger.write(self._entries(request, notes, drafts))
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
        question, options = request.block("question"), request.options
        chance = request.chance(self.seed, "blind")
        possible = options or _possible_answers(question)
        given = given_away(question, possible)
        guess = possible.index(given) if given is not None else int(chance.integers(len(possible)))
        return {"answer": LETTERS[guess] if options else possible[guess]}

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
        query = understood(request.block("question"))
        answer = None if query is None else answer_from(seen, query)
        if not request.options:
            return self._verdict(request, answer is not None and _says(request.block("answer"), answer))
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

    def _in_order(self, found: Sequence[Query], request: OracleRequest, is_open: bool) -> list[Query]:
        """At random, but open-ended questions from the other end, so that few are asked in both forms."""
        digest = digest_of(self.seed, request.block("captions"), request.purpose.partition("_")[2], request.seed)
        order = np.random.default_rng(int(digest[:16], 16)).permutation(len(found))
        return [found[int(index)] for index in (order[::-1] if is_open else order)]

    def _spoilt(self, request: OracleRequest, notes: Notes, one: OracleDraft, earlier: Sequence[OracleDraft]) -> OracleDraft:
        """With a planted fault, or another key, or as it is."""
        chance = request.chance(self.seed, f"fault {len(earlier)}")
        if chance.random() < self.rates.planted:
            spoilt = plant(one, _around(request, notes, earlier, chance))
            self._count(f"fault/{spoilt.fault}")
            return spoilt
        if chance.random() < self.rates.answers:
            self._count(f"lie/{request.purpose}")
            return with_other_key(one, chance)
        return one

    def _entries(self, request: OracleRequest, notes: Notes, drafts: Sequence[OracleDraft]) -> list[LedgerEntry]:
        """What the ledger keeps of the drafts."""
        video = self._fitting(notes)
        story = self.frames.videos[video].story
        category = request.purpose.partition("_")[2]
        return [
            LedgerEntry(
                request=request.digest,
                number=number,
                category=category,
                question=one.question,
                options=one.options,
                answer=one.answer,
                reasoning=one.reasoning,
                ranges=one.ranges,
                fault=one.fault,
                key_lied=one.key_lied,
                captions_lied=not all(agrees(line, story) for line in evidence_of(notes, one)),
                video=str(self.frames.videos[video].path),
                true=is_true(story, one.question, one.answer),
            )
            for number, one in enumerate(drafts)
        ]

    def _fitting(self, notes: Notes) -> int:
        """The video whose log the captions contradict least, of those of the right length."""
        likely = self.frames.likely(notes.seen.duration_s)
        fits = [sum(agrees(line, self.frames.videos[video].story) for line in notes.lines) for video in likely]
        return likely[fits.index(max(fits))]

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


def with_other_key(one: OracleDraft, rng: np.random.Generator) -> OracleDraft:
    """The same question with another key, and a reasoning that comes to it."""
    wrong = [text for text in one.options if text != one.answer] or other_answers(one)
    answer = str(rng.choice(wrong))
    letter = LETTERS[one.options.index(answer)] if one.options else ""
    reasoning = one.reasoning.replace(conclusion(one.query, one.answer), conclusion(one.query, answer))
    return replace(one, answer=answer, letter=letter, reasoning=reasoning, key_lied=True)


def agrees(line: CaptionLine, story: Story) -> bool:
    """Whether nothing in a caption contradicts the event log."""
    shown = [scene for scene in story.scenes if scene.start_s < line.stop_s and scene.stop_s > line.start_s]
    return all(
        any(scene.place == sight.place and sight.event in (None, scene.event) for scene in shown) for sight in read_caption(line.text)
    )


def evidence_of(notes: Notes, one: OracleDraft) -> list[CaptionLine]:
    """Captions of the cited ranges."""
    return [line for line in notes.lines if any(line.start_s < stop and line.stop_s > start for start, stop in one.ranges)]


def _around(request: OracleRequest, notes: Notes, earlier: Sequence[OracleDraft], rng: np.random.Generator) -> Around:
    """For a fault; the other video is one that nobody has filmed, of the same length."""
    duration_s = notes.seen.duration_s or (notes.lines[-1].stop_s if notes.lines else 60.0)
    other = make_story(int(rng.integers(1 << 40, 1 << 41)), seconds=(duration_s, duration_s), num_scenes=(MIN_SCENES, MIN_SCENES + 1))
    lines = [CaptionLine(scene.start_s, scene.stop_s, sentence(Sight(scene.place, scene.event))) for scene in other.scenes]
    longest = request.max_answer_chars
    category = request.purpose.partition("_")[2]
    return Around(notes, category, duration_s, tuple(earlier), Notes.read(lines, duration_s), longest, rng)


def _says(text: str, answer: str) -> bool:
    """Whether an open-ended answer is the answer, or begins with it and goes on at length."""
    first = text.partition(",")[0].removeprefix("The reason was ") if len(text) >= LONG_ANSWER_CHARS else text
    return same_meaning(first, answer)


def _possible_answers(question: str) -> list[str]:
    """To an open-ended question, for somebody who knows the world and has not seen the video."""
    query = understood(question)
    if query is None or query.kind != "why":
        return [place for place in PLACES if query is None or place != query.place]
    return list(dict.fromkeys(text for other in CHARACTERS for text in purposes(other).values()))


def _as_answer(one: OracleDraft) -> dict[str, Any]:
    """In the form of the schema."""
    choice = {"options": list(one.options), "answer": one.letter} if one.options else {"answer": one.answer}
    ranges = [{"start": start, "stop": stop} for start, stop in one.ranges]
    return {"question": one.question, **choice, "reasoning": one.reasoning, "ranges": ranges}
