"""Checks with a model: how many votes are asked for, what they are shown, and what becomes of a row."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from longtake.config.curate import CHECKS, CheckConfig, CurateConfig
from longtake.config.load import load_config
from longtake.curation.check import ask_checks, finish, lay_out, quotas, structure, wording
from longtake.curation.prompts import Prompts
from longtake.curation.records import Caption, CheckedRow, Draft, Drop, Finding, Outcome, SourceVideo, TimeRange, named
from longtake.curation.votes import Vote, blind, cited, majority, same_answer, shuffled, supported, take_votes, watched
from longtake.errors import BudgetError, ConfigError
from longtake.llm.calls import Answer, Ask, CallFailure, ChatCall
from longtake.observe.keyed_lines import KeyedLines
from longtake.video.encode import VideoWriter

FAILURE = CallFailure("http_500", "no", tries=7)
VIDEO = SourceVideo("secret_name.mp4", "d" * 64, 61.3, 112, 112, 122, (), "CC0", "me")
DRAFT = named(
    Draft(
        video=VIDEO.video,
        digest=VIDEO.digest,
        category="spatial",
        question="Where did the red square take the key?",
        options=("cave", "street", "hall", "beach"),
        answer="cave",
        reasoning="I see the red square take the key in the cave (12.0 s - 22.0 s).",
        ranges=(TimeRange(12.0, 22.0), TimeRange(40.0, 41.0)),
    )
)
OPEN = named(replace(DRAFT, options=(), answer="in the cave"))


def caption(start_s: float, stop_s: float, text: str) -> Caption:
    return Caption(VIDEO.video, VIDEO.digest, start_s, stop_s, ((start_s + stop_s) / 2,), text)


CAPTIONS = (
    caption(50.0, 61.3, "The end."),
    caption(0.0, 12.0, "The hall is empty."),
    caption(12.0, 22.0, "In the cave the red square takes the key."),
    caption(22.0, 40.02, "The beach is empty."),
    caption(40.02, 50.0, "The snow is empty."),
)

Says = Callable[[ChatCall], Any]


@dataclass(eq=False)
class Room:
    """What votes are taken with: two models that say what a function tells them to, with calls counted."""

    config: CurateConfig
    says: Says
    made: KeyedLines
    prompts: Prompts = field(default_factory=Prompts)
    captioner: str = "eyes"
    calls: list[ChatCall] = field(default_factory=list)
    decode: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    most_at_once: int = 0
    at_once: int = 0
    delays: random.Random | None = None

    async def _ask(self, call: ChatCall) -> Answer | CallFailure:
        self.calls.append(call)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.delays.random() * 0.003 if self.delays else 0)
        self.at_once -= 1
        said = self.says(call)
        if isinstance(said, CallFailure):
            return said
        jsonschema.validate(said, dict(call.schema))
        return Answer(said, 1, 1, cached=False)

    @property
    def vlm(self) -> Ask:
        return self._ask

    reasoner = vlm

    @property
    def purposes(self) -> Counter[str]:
        return Counter(call.purpose for call in self.calls)


@pytest.fixture
def room(tmp_path: Path):
    rooms: list[Room] = []

    def make(says: Says, **fields: Any) -> Room:
        config = CurateConfig(videos=tmp_path, out=tmp_path / "out", check=CheckConfig(**fields))
        rooms.append(Room(config, says, KeyedLines(tmp_path / "made", f"w{len(rooms)}")))
        return rooms[-1]

    yield make
    for one in rooms:
        one.made.close()


def options_of(call: ChatCall) -> dict[str, str]:
    """Letter by text of what a call offers."""
    return {text: letter for letter, text in re.findall(r"^([A-H])\. (.*)$", call.text, re.MULTILINE)}


def choosing(text: str) -> Says:
    return lambda call: {"answer": options_of(call)[text]}


def by_sample(*answers: Any) -> Says:
    """The answer to sample 0, 1, ...: text of an option, a verdict, or a failure."""

    def say(call: ChatCall) -> Any:
        answer = answers[call.sample]
        if isinstance(answer, CallFailure):
            return answer
        if "verdict" in call.schema["properties"]:
            return {"verdict": answer}
        return {"answer": options_of(call).get(answer, answer)}

    return say


# How many votes


def taken(votes: str, right_needed: int, wrong_needed: int) -> str:
    """The votes that were asked for, of what 0, 1, ... would answer: `+` right, `-` wrong, `x` failed."""
    starts: list[int] = []

    async def ask_one(index: int) -> Vote | CallFailure:
        starts.append(index)
        await asyncio.sleep(0.001 * (len(votes) - index))  # the last one answers first
        return FAILURE if votes[index] == "x" else Vote(votes[index] == "+", votes[index])

    result = asyncio.run(take_votes(ask_one, right_needed, wrong_needed))
    assert starts == list(range(len(result.cast)))
    return "".join("x" if isinstance(vote, CallFailure) else vote.said for vote in result.cast)


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ("+++++", "+++"),  # settled by the first three of five
        ("-----", "---"),
        ("++---", "++---"),
        ("+-+-+", "+-+-+"),
        ("+-++-", "+-++"),
        ("--++-", "--++-"),
        ("x++++", "x+++"),
        ("xx+++", "xx+++"),
        ("xxx++", "xxx++"),  # asked to the end, and open
    ],
)
def test_no_more_votes_than_it_takes(answers: str, asked: str):
    assert taken(answers, 3, 3) == asked


def test_first_half_of_the_votes_at_once():
    """(n + 1) // 2 of an odd number are needed either way, so these are asked together."""
    for num in (1, 3, 5, 7):
        starts: list[list[int]] = []

        async def ask_one(index: int, starts: list[list[int]] = starts) -> Vote:
            starts.append([index])
            await asyncio.sleep(0)
            starts[-1].append(-1)
            return Vote(True, "yes")

        votes = asyncio.run(majority(ask_one, num))
        assert len(votes.cast) == (num + 1) // 2 == votes.num_right
        assert [one[0] for one in starts] == list(range((num + 1) // 2))


def test_an_even_number_needs_more_than_half():
    async def ask_one(index: int) -> Vote:
        return Vote(index < 2, "")

    votes = asyncio.run(majority(ask_one, 4))
    assert (votes.num_right, votes.num_wrong) == (2, 2)  # two of four are not most


def test_an_error_waits_for_the_answers_under_way():
    done: list[int] = []

    async def ask_one(index: int) -> Vote:
        if index == 0:
            raise BudgetError("spent", rule="no more", remedy="raise it")
        await asyncio.sleep(0.002)
        done.append(index)
        return Vote(True, "")

    with pytest.raises(BudgetError):
        asyncio.run(majority(ask_one, 5))
    assert done == [1, 2]


# Supported


def test_only_captions_of_the_cited_ranges_are_shown(room):
    assert [one.start_s for one in cited(CAPTIONS, DRAFT.ranges)] == [12.0, 40.02]  # 0.02 s of the beach are no overlap
    voters = room(choosing("cave"))
    finding = asyncio.run(supported(DRAFT, CAPTIONS, voters))
    assert finding == Finding("supported", True, "3 of 3 answers are the key", ("cave",) * 3)
    assert len(voters.calls) == voters.most_at_once == 3
    for call in voters.calls:
        assert "[12.0 s - 22.0 s] In the cave the red square takes the key." in call.text and "The snow is empty." in call.text
        assert "The hall is empty." not in call.text and "The end." not in call.text and "The beach" not in call.text
        assert call.purpose == "support" and call.temperature == 0.7 and "secret_name" not in call.text and "$" not in call.text
        assert call.schema["properties"]["answer"]["enum"] == ["A", "B", "C", "D", "cannot tell"]
        assert call.num_images == 0 and DRAFT.reasoning not in call.text
    assert [call.sample for call in voters.calls] == [0, 1, 2]


def test_options_are_shuffled_for_every_vote_and_mapped_back(room):
    """A model that always says B names each option as often as another."""
    voters = room(lambda call: {"answer": "B"}, support_votes=1)
    drafts = [named(replace(DRAFT, reasoning=str(number))) for number in range(400)]
    findings = [asyncio.run(supported(draft, CAPTIONS, voters)) for draft in drafts]
    said = Counter(finding.votes[0] for finding in findings)
    assert set(said) == set(DRAFT.options) and min(said.values()) > 70  # 100 expected, s = 8.7
    assert sum(finding.passed for finding in findings) == said["cave"]
    orders = {tuple(options_of(call)) for call in voters.calls}
    assert len(orders) == 24


def test_one_order_for_each_vote_whatever_the_order_of_the_draft(room):
    first, second = room(choosing("cave")), room(choosing("cave"))
    asyncio.run(supported(DRAFT, CAPTIONS, first))
    asyncio.run(supported(replace(DRAFT, options=tuple(reversed(DRAFT.options))), CAPTIONS[::-1], second))
    assert [call.text for call in first.calls] == [call.text for call in second.calls]
    assert shuffled(DRAFT.options, "k", 0) == shuffled(DRAFT.options[::-1], "k", 0)


@pytest.mark.parametrize(
    ("answers", "passed", "votes"),
    [
        (["hall", "hall", "hall"], False, ("hall", "hall", "hall")),
        (["cannot tell", "cave", "cannot tell", "cannot tell"], False, ("cannot tell", "cave", "cannot tell", "cannot tell")),
        (["cave", "hall", "cave", "beach", "cave"], True, ("cave", "hall", "cave", "beach", "cave")),
        (["cave", FAILURE, "cave", "cave"], True, ("cave", "failed: http_500", "cave", "cave")),
    ],
)
def test_support_by_majority(room, answers: list[Any], passed: bool, votes: tuple[str, ...]):
    finding = asyncio.run(supported(DRAFT, CAPTIONS, room(by_sample(*answers))))
    assert (finding.passed, finding.votes) == (passed, votes)


def test_too_few_votes_are_told_apart_from_a_lost_vote(room):
    voters = room(by_sample("cave", FAILURE, "cave", FAILURE, FAILURE))
    finding = asyncio.run(supported(DRAFT, CAPTIONS, voters))
    assert not finding.passed and finding.detail == "votes failed: 2 of 2 answers are the key, 3 calls failed (http_500)"
    voters = room(by_sample("cave", FAILURE, "cave", FAILURE, FAILURE), off=("blind",))
    drop = asyncio.run(ask_checks(DRAFT, CAPTIONS, voters))
    assert isinstance(drop, Drop) and drop.reason == "votes_failed"


def test_ranges_without_captions(room):
    voters = room(choosing("cave"))
    finding = asyncio.run(supported(DRAFT, CAPTIONS[:1], voters))
    assert finding == Finding("supported", False, "no caption overlaps the cited ranges") and voters.calls == []


def test_support_of_an_open_ended_answer(room):
    voters = room(by_sample("yes", "no", "yes", "yes"))
    finding = asyncio.run(supported(OPEN, CAPTIONS, voters))
    assert finding.passed and finding.votes == ("yes", "no", "yes", "yes")
    lines = voters.calls[0].text.splitlines()
    assert lines[lines.index("<answer>") + 1] == "in the cave" and "<options>" not in lines
    assert voters.calls[0].schema["properties"] == {"verdict": {"type": "string", "enum": ["yes", "no"]}}


# Watched


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """60 s, one frame a second, brighter from frame to frame."""
    path = tmp_path / VIDEO.video
    with VideoWriter(path, 64, 64, gop=10, fps=1.0, crf=18) as writer:
        for second in range(60):
            writer.write(np.full((64, 64, 3), 4 * second, dtype=np.uint8), float(second))
    return path


def test_watching_shows_frames_of_the_cited_ranges(room, film: Path):
    voters = room(choosing("cave"))
    finding = asyncio.run(watched(DRAFT, voters))
    assert finding == Finding("watched", True, "3 of 3 answers are the key", ("cave",) * 3)
    call = voters.calls[0]
    lines = call.text.splitlines()
    times = [float(part.removesuffix(" s")) for part in lines[lines.index("<times>") + 1].split(", ")]
    assert call.purpose == "watch" and call.num_images == len(times) == 8
    assert times == sorted(times) and all(11 <= time_s <= 22 or 39 <= time_s <= 41 for time_s in times)
    assert all(isinstance(part, str) for part in call.parts[:1]) and all(part[:2] == b"\xff\xd8" for part in call.parts[1:])
    assert "[12.0 s" not in call.text and "takes the key." not in call.text  # no caption


def test_votes_from_frames_are_kept(room, film: Path):
    first = asyncio.run(watched(DRAFT, room(by_sample("cave", "hall", "cave", "cave"))))
    film.unlink()  # nothing is decoded again
    voters = room(choosing("hall"))
    assert asyncio.run(watched(DRAFT, voters)) == first and voters.calls == []
    assert first.votes == ("cave", "hall", "cave", "cave")
    other = named(replace(DRAFT, ranges=(TimeRange(1.0, 2.0),), reasoning="other"))
    assert asyncio.run(watched(other, voters)).detail.startswith("frames failed")


def test_votes_with_failed_calls_are_asked_again(room, film: Path):
    failed = asyncio.run(watched(DRAFT, room(by_sample(*[FAILURE] * 5))))
    assert failed.detail.startswith("votes failed: 0 of 0") and failed.votes == ("failed: http_500",) * 5
    assert asyncio.run(watched(DRAFT, room(choosing("cave")))).passed


def test_a_video_that_is_gone_costs_the_row_and_is_told_apart(room):
    voters = room(choosing("cave"), off=("blind", "supported"))
    drop = asyncio.run(ask_checks(DRAFT, CAPTIONS, voters))
    assert isinstance(drop, Drop) and drop.reason == "frames_failed" and "secret_name.mp4" in drop.message and voters.calls == []


def test_watching_an_open_ended_answer(room, film: Path):
    voters = room(by_sample("no", "no", "no"))
    assert not asyncio.run(watched(OPEN, voters)).passed
    assert "in the cave" in voters.calls[0].text and voters.calls[0].num_images == 8


# Blind


@pytest.mark.parametrize(
    ("answers", "passed", "asked"),
    [
        ("cave cave cave cave cave cave", False, 5),  # 5 of 6 are 80 %: enough
        ("hall cave cave cave cave cave", False, 6),
        ("hall hall cave cave cave cave", True, 2),  # cannot come to 5 any more
        ("cave hall hall cave cave cave", True, 3),
        ("cave cave cave cave hall hall", True, 6),
    ],
)
def test_blind_asks_until_it_is_settled(room, answers: str, passed: bool, asked: int):
    voters = room(by_sample(*answers.split()))
    finding = asyncio.run(blind(DRAFT, voters))
    assert finding.passed is passed and len(finding.votes) == asked == len(voters.calls)
    call = voters.calls[0]
    assert call.purpose == "blind" and call.num_images == 0 and "[12.0 s" not in call.text and "secret" not in call.text
    assert call.schema["properties"]["answer"]["enum"] == ["A", "B", "C", "D"]


@pytest.mark.parametrize(("share", "num", "needed"), [(0.8, 5, 4), (0.7, 10, 7), (1.0, 3, 3), (0.01, 4, 1), (0.5, 4, 2)])
def test_share_of_right_answers(room, share: float, num: int, needed: int):
    enough = room(by_sample(*["cave"] * needed, *["hall"] * (num - needed)), blind_votes=num, blind_right=share)
    assert not asyncio.run(blind(DRAFT, enough)).passed
    fewer = room(by_sample(*["cave"] * (needed - 1), *["hall"] * (num - needed + 1)), blind_votes=num, blind_right=share)
    assert asyncio.run(blind(DRAFT, fewer)).passed


def test_blind_with_failed_calls(room):
    finding = asyncio.run(blind(DRAFT, room(by_sample("cave", "hall", FAILURE, "cave", "cave", "cave"))))
    assert not finding.passed and finding.detail == "votes failed: 4 of 5 answers without the video are the key, 1 calls failed (http_500)"


def test_blind_guesses_of_open_ended_answers_are_compared_as_texts(room):
    voters = room(by_sample("The cave!", "In the Cave.", "in  the cave", "it was in the cave", "a cave"))
    finding = asyncio.run(blind(OPEN, voters))
    assert not finding.passed and len(finding.votes) == 5 and finding.votes[0] == "The cave!"
    assert voters.calls[0].schema["properties"]["answer"] == {"type": "string", "maxLength": 200}
    assert "<answer>" not in voters.calls[0].text


@pytest.mark.parametrize(
    ("said", "key", "same"),
    [
        ("In the cave.", "in the cave", True),
        ("he hid it in the cave", "in the cave", True),
        ("cave", "in the cave", True),
        ("In the dark", "in the cave", False),
        ("it", "it", True),
        ("three", "3", True),
        ("3.0", "3", True),
        ("30", "3", False),
        ("It could be in the cave, in the hall, on the beach or in the snow, who knows", "in the cave", False),
        ("", "in the cave", False),
    ],
)
def test_free_answers(said: str, key: str, same: bool):
    assert same_answer(said, key) is same


# All together


def test_cheap_checks_first_and_none_after_a_failed_one(room, film: Path):
    voters = room(choosing("cave"))
    drop = asyncio.run(ask_checks(DRAFT, CAPTIONS, voters))
    assert isinstance(drop, Drop) and drop.reason == "blind" and voters.purposes == {"blind": 5}
    assert drop.draft == DRAFT and drop.key == DRAFT.key and drop.category == "spatial" and drop.stage == "check"
    assert drop.findings[-1].votes == ("cave",) * 5

    def good(call: ChatCall) -> Any:
        return choosing("hall" if call.purpose in ("blind", "support") else "cave")(call)

    voters = room(good)
    drop = asyncio.run(ask_checks(DRAFT, CAPTIONS, voters))
    assert isinstance(drop, Drop) and drop.reason == "supported" and voters.purposes == {"blind": 2, "support": 3}


def honest(call: ChatCall) -> Any:
    return choosing("hall" if call.purpose == "blind" else "cave")(call)


def test_a_row_that_passes_everything_says_so(room, film: Path):
    voters = room(honest)
    row = asyncio.run(ask_checks(DRAFT, CAPTIONS, voters))
    assert isinstance(row, CheckedRow) and row.passed and row.draft == DRAFT
    assert [finding.check for finding in row.findings] == [name for name in CHECKS if name not in ("duplicate", "quota")]
    assert voters.purposes == {"blind": 2, "support": 3, "watch": 3}


def test_switched_off_checks_are_not_made(room):
    voters = room(honest, off=("blind", "watched"))
    row = asyncio.run(ask_checks(DRAFT, CAPTIONS, voters))
    assert isinstance(row, CheckedRow) and voters.purposes == {"support": 3}
    assert [finding.check for finding in row.findings if finding.votes] == ["supported"]
    voters = room(honest, blind_votes=0, watch_votes=0)
    assert asyncio.run(ask_checks(DRAFT, CAPTIONS, voters)).draft == DRAFT and voters.purposes == {"support": 3}


def test_the_same_findings_whatever_answers_first(room, film: Path):
    def say(call: ChatCall) -> Any:
        return {"answer": "ABCD"[(call.sample + len(call.purpose)) % 4]}

    results = []
    for seed in (None, 1, 2, 3):
        voters = room(say)
        voters.delays = None if seed is None else random.Random(seed)
        drafts = [named(replace(DRAFT, reasoning=str(number))) for number in range(12)]

        async def all_of_them(drafts: list[Draft] = drafts, voters: Room = voters) -> list[CheckedRow | Drop]:
            return await asyncio.gather(*(ask_checks(draft, CAPTIONS, voters) for draft in drafts))

        results.append(asyncio.run(all_of_them()))
    assert results[1:] == results[:1] * 3
    assert len({one.findings for one in results[0]}) > 6  # the rows differ in what was found out


def test_unknown_names_of_checks_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"watchd.*the checks are options, answer"):
        load_config(CurateConfig, None, [("videos", str(tmp_path)), ("out", str(tmp_path)), ("check.off", '["watchd"]')])


# Structure and wording


def made(**fields: Any) -> Draft:
    return named(replace(DRAFT, **fields))


def test_structure_says_why_rows_go(tmp_path: Path):
    config = CurateConfig(videos=tmp_path, out=tmp_path)
    two_alike = made(options=("cave", "Cave", "hall", "beach"))
    german = made(question="Wo hat das rote Quadrat den Schl\u00fcssel genommen?")
    late = made(question="Who took the lamp?", ranges=(TimeRange(50.0, 70.0),))
    noted = made(question="What does clip 3 show?")
    drafts = [two_alike, DRAFT, german, late, noted]
    outcome = structure(drafts, VIDEO, config)
    assert outcome.kept == (DRAFT,)
    assert [drop.reason for drop in outcome.dropped] == ["options", "language", "ranges", "captions"]
    assert all(drop.stage == "check" and drop.draft is not None and drop.key == drop.draft.key for drop in outcome.dropped)
    assert [one.check for one in outcome.dropped[0].findings if not one.passed] == ["options"]
    off = CurateConfig(videos=tmp_path, out=tmp_path, check=CheckConfig(off=("options", "language", "ranges", "captions")))
    assert len(structure(drafts, VIDEO, off).kept) == 5


def test_wording_reads_the_reasoning(tmp_path: Path):
    config = CurateConfig(videos=tmp_path, out=tmp_path)
    texts = {
        "": DRAFT.reasoning,
        "deliberation": "Wait, I see the red square take the key in the cave.",
        "captions": "The captions say that the red square takes the key in the cave.",
        "letters": "I see the red square take the key in the cave, so B.",
        "times": "I see the red square take the key in the cave (90.0 s - 95.0 s).",
        "conclusion": "I see the red square take the key, and this is the hall.",
        "language": "Das rote Quadrat nimmt den Schl\u00fcssel in der H\u00f6hle, also cave.",
        "reasoning": "In the cave.",
    }
    drafts = [replace(DRAFT, reasoning=text) for text in texts.values()]
    outcome = wording(drafts, VIDEO, config)
    assert outcome.kept == (DRAFT,) and [drop.reason for drop in outcome.dropped] == list(texts)[1:]
    off = CurateConfig(videos=tmp_path, out=tmp_path, check=CheckConfig(off=tuple(name for name in texts if name)))
    assert len(wording(drafts, VIDEO, off).kept) == len(texts)


# Quotas and the order of options


def rows(*categories: str) -> list[CheckedRow]:
    return [CheckedRow(made(category=category, question=f"Who takes {number} keys?"), ()) for number, category in enumerate(categories)]


def test_of_two_that_ask_the_same_the_first_stays(tmp_path: Path):
    again = made(question="Where does the red square take the key?", category="plot")
    config = CurateConfig(videos=tmp_path, out=tmp_path)
    outcome = finish(Outcome((CheckedRow(DRAFT, ()), CheckedRow(again, ()), *rows("goal"))), config)
    assert [row.draft.key for row in outcome.kept] == [DRAFT.key, rows("goal")[0].draft.key]
    (drop,) = outcome.dropped
    assert drop.reason == "duplicate" and drop.key == again.key and DRAFT.key in drop.message
    assert outcome.kept[0].findings == (Finding("duplicate", True),)
    off = CurateConfig(videos=tmp_path, out=tmp_path, check=CheckConfig(off=("duplicate",)))
    assert len(finish(Outcome((CheckedRow(DRAFT, ()), CheckedRow(again, ()))), off).kept) == 2


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"per_video": 4}, [0, 1, 3, 5]),  # one of each category in turn, then the next of the first
        ({"per_video": 3}, [0, 3, 5]),
        ({"per_video_and_category": 2}, [0, 1, 3, 4, 5]),
        ({"per_video": 4, "per_video_and_category": 1}, [0, 3, 5]),
        ({"per_video": 1, "off": ("quota",)}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_quotas(limits: dict[str, Any], kept: list[int]):
    given = rows("temporal", "temporal", "temporal", "goal", "goal", "spatial")
    result = quotas(given, CheckConfig(**limits))
    assert [index for index, row in enumerate(result) if row.passed] == kept
    assert [row.draft for row in result] == [row.draft for row in given]


def test_finish_tells_what_the_quota_cost(tmp_path: Path):
    config = CurateConfig(videos=tmp_path, out=tmp_path, check=CheckConfig(per_video=1))
    before = Drop("check", "blind", "guessed")
    outcome = finish(Outcome(tuple(rows("goal", "plot")), (before,)), config)
    assert [row.draft.category for row in outcome.kept] == ["goal"]
    assert [(drop.reason, drop.message) for drop in outcome.dropped] == [("blind", "guessed"), ("quota", "the video has its 1 rows")]
    assert outcome.kept[0].findings[-1] == Finding("quota", True)


def test_letters_are_dealt_evenly_inside_a_video_and_over_many():
    everywhere: Counter[str | None] = Counter()
    first_wrong: Counter[str] = Counter()
    for video in range(400):
        drafts = [named(replace(DRAFT, digest=str(video), reasoning=str(number))) for number in range(6)]
        letters = [draft.letter for draft in lay_out(drafts, seed=0)]
        inside = Counter(letters)
        assert sorted(inside.values()) == [1, 1, 2, 2]
        everywhere += inside
        first_wrong += Counter(next(option for option in draft.options if option != "cave") for draft in lay_out(drafts, seed=0))
    assert all(540 < everywhere[letter] < 660 for letter in "ABCD")  # 600 expected; 400 fixed, 200 drawn with s = 10
    assert set(first_wrong) == {"street", "hall", "beach"} and min(first_wrong.values()) > 700  # 800 expected, s = 23


def test_the_order_of_options_depends_on_nothing_but_seed_video_and_key():
    drafts = [named(replace(DRAFT, reasoning=str(number))) for number in range(9)]
    turned = [replace(draft, options=tuple(reversed(draft.options))) for draft in reversed(drafts)]
    laid = lay_out(drafts, seed=3)
    assert lay_out(turned, seed=3) == laid[::-1] and lay_out(laid, seed=3) == laid
    assert lay_out(drafts, seed=4) != laid
    assert [(one.key, one.answer, sorted(one.options)) for one in laid] == [(one.key, one.answer, sorted(one.options)) for one in drafts]


def test_open_ended_rows_stay_as_they_are_and_take_no_letter():
    mixed = [OPEN, DRAFT, named(replace(OPEN, reasoning="2")), named(replace(DRAFT, reasoning="3"))]
    laid = lay_out(mixed, seed=0)
    assert laid[0] == OPEN and laid[2] == mixed[2]
    assert len({laid[1].letter, laid[3].letter}) == 2
