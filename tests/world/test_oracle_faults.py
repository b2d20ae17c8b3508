"""Every planted fault is the fault it is called, survives the retelling, and stands in the ledger."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from longtake.answers import same_text
from longtake.config.world_serve import LieRates
from longtake.curation.language import foreign
from longtake.errors import CurationError
from longtake.testing.oracle_calls import captions_of, question_request, support_request, text_of
from longtake.world.oracle import Oracle
from longtake.world.oracle_captions import read_lines
from longtake.world.oracle_drafts import Notes, OracleDraft, draft, queries, retell
from longtake.world.oracle_faults import FAULTS, Around, given_away, hint_of, plant
from longtake.world.oracle_languages import LANGUAGES, _all_queries, foreign_question, understood
from longtake.world.oracle_ledger import LedgerEntry, read_ledger
from longtake.world.oracle_request import OracleRequest
from longtake.world.questions import CATEGORIES, LETTERS
from longtake.world.story import PLACES
from longtake.world.truth import answer_from, is_true, parse_question, same_meaning


@pytest.fixture(scope="module")
def lines(honest: Oracle) -> list[list[str]]:
    return [captions_of(honest, video) for video in range(4)]


@pytest.fixture(scope="module")
def drafts(honest: Oracle, lines: list[list[str]]) -> list[tuple[OracleDraft, Around]]:
    """Sound ones with their surroundings: three of every call before it."""
    made = []
    for video in range(4):
        duration_s = honest.frames.videos[video].duration_s
        notes, other = (Notes.read(read_lines("\n".join(lines[which])), duration_s) for which in (video, (video + 1) % 4))
        for category in CATEGORIES:
            for is_open in (False, True):
                rng = np.random.default_rng(len(made))
                earlier: list[OracleDraft] = []
                for query in queries(notes, category)[:3]:
                    made.append((draft(notes, query, is_open, rng), Around(notes, category, duration_s, tuple(earlier), other, 200, rng)))
                    earlier.append(made[-1][0])
    return made


def spoilt(drafts: list[tuple[OracleDraft, Around]], name: str) -> list[tuple[OracleDraft, OracleDraft, Around]]:
    """(sound, spoilt, around) wherever that fault can be planted."""
    way, kinds = FAULTS[name]
    fitting = [(one, around) for one, around in drafts if ("choice" if one.options else "open") in kinds]
    found = [(one, way(one, around), around) for one, around in fitting]
    done = [(one, bad, around) for one, bad, around in found if bad is not None]
    assert len(done) >= 10, name
    return done


def test_the_kinds():
    assert len([name for name, (_, kinds) in FAULTS.items() if "choice" in kinds]) == 15
    assert len([name for name, (_, kinds) in FAULTS.items() if "open" in kinds]) == 11


def test_each_fault_changes_what_it_is_about_and_nothing_else(drafts):
    parts = {
        "equal_options": {"options"},
        "empty_option": {"options"},
        "combining_option": {"options"},
        "no_right_option": {"options", "answer", "reasoning"},
        "names_letters": {"reasoning"},
        "other_conclusion": {"reasoning"},
        "ranges_outside": {"ranges"},
        "ranges_reversed": {"ranges"},
        "unsupported": {"ranges"},
        "gives_itself_away": {"question"},
        "deliberation": {"reasoning"},
        "speaks_of_captions": {"reasoning"},
        "other_language": {"question", "reasoning"},
        "paragraph": {"answer"},
    }
    assert parts.keys() | {"near_duplicate", "other_video"} == FAULTS.keys()
    for name, changed in parts.items():
        for one, bad, _ in spoilt(drafts, name):
            names = ("question", "options", "answer", "reasoning", "ranges", "letter")
            assert {part for part in names if getattr(one, part) != getattr(bad, part)} == changed, name


def test_options(drafts):
    for one, bad, _ in spoilt(drafts, "equal_options"):
        twins = [option for option in bad.options if same_text(option, one.answer)]
        assert len(twins) == 2 and bad.options[LETTERS.index(bad.letter)] == one.answer
    for _, bad, _ in spoilt(drafts, "empty_option"):
        assert sum(not any(map(str.isalnum, option)) for option in bad.options) == 1
    for _, bad, _ in spoilt(drafts, "combining_option"):
        assert sum(" of " in option for option in bad.options) == 1
    for one, bad, around in spoilt(drafts, "no_right_option"):
        assert len(set(bad.options)) == 4 and not any(same_meaning(option, one.answer) for option in bad.options)
        assert bad.options[LETTERS.index(bad.letter)] == bad.answer != answer_from(around.notes.seen, one.query)


def test_ranges(drafts):
    for _, bad, around in spoilt(drafts, "ranges_outside"):
        assert all(around.duration_s + 15 < start < stop for start, stop in bad.ranges)
    for _, bad, _ in spoilt(drafts, "ranges_reversed"):
        assert all(start > stop for start, stop in bad.ranges)


def test_ranges_elsewhere_do_not_support_the_key(drafts, honest: Oracle, lines):
    for one, bad, around in spoilt(drafts, "unsupported"):
        told = [f"[{line.start_s:.1f} s - {line.stop_s:.1f} s] {line.text}" for line in around.notes.lines]
        question = {"question": bad.question, "options": list(bad.options), "answer": bad.answer}
        question = question if bad.options else {"question": bad.question, "answer": bad.answer}
        for draft_, wanted in ((one, True), (bad, False)):
            ranges = [{"start": start, "stop": stop} for start, stop in draft_.ranges]
            vote = honest.answer(support_request(told, {**question, "ranges": ranges}))
            assert ((vote.get("answer") or vote["verdict"]) == (one.letter or "yes")) == wanted


def test_a_question_that_gives_itself_away_is_answered_blind(drafts, honest: Oracle):
    in_other_words = 0
    for one, bad, _ in spoilt(drafts, "gives_itself_away"):
        assert parse_question(bad.question) == one.query
        in_other_words += one.answer not in bad.question
        for text, wanted in ((bad.question, 20), (one.question, None)):
            options = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, one.options, strict=False))
            asked = text_of(question=text, **({"options": options} if options else {}))
            said = [honest.answer(OracleRequest("blind", asked, seed=seed))["answer"] for seed in range(20)]
            right = sum(answer == (one.letter or one.answer) for answer in said)
            assert right == wanted or (wanted is None and right < 15)
    assert in_other_words >= 10


def test_hints_are_of_one_answer_alone():
    answers = [*PLACES, "to use it", "to hide it", "to keep it", "to give it to blue circle"]
    assert len({hint_of(answer) for answer in answers}) == len(answers)
    for answer in answers:
        assert given_away(f"{hint_of(answer)} Where is it?", answers) == answer
    assert given_away("Where is it?", answers) is None
    assert given_away("It is the cave. It is the hall. Where is it?", answers) is None


@pytest.mark.parametrize("name", ["deliberation", "speaks_of_captions", "names_letters", "other_conclusion", "other_language"])
def test_faults_of_a_reasoning_survive_the_retelling(drafts, name: str):
    for one, bad, _ in spoilt(drafts, name):
        before, after = set(sentences(bad.reasoning)) - set(sentences(one.reasoning)), set(sentences(retell(bad.reasoning)))
        assert before and before <= after
        if name != "speaks_of_captions":
            assert "caption" not in retell(bad.reasoning).lower()
        assert "caption" not in retell(one.reasoning).lower()


def sentences(text: str) -> list[str]:
    return [part.strip(".!? ") for part in text.replace("? ", ". ").split(". ")]


def test_a_near_duplicate_asks_the_same_in_other_words(drafts):
    for _, bad, around in spoilt(drafts, "near_duplicate"):
        twins = [one for one in around.earlier if one.query == bad.query]
        assert len(twins) == 1 and bad.question != twins[0].question and parse_question(bad.question) == bad.query
        assert sorted(bad.options) == sorted(twins[0].options) and bad.answer == twins[0].answer
        assert not bad.options or bad.options[LETTERS.index(bad.letter)] == bad.answer


def test_other_languages_are_other_languages_and_understood(drafts):
    for one, bad, _ in spoilt(drafts, "other_language"):
        assert foreign(bad.question, "en") and foreign(bad.reasoning, "en") and not foreign(one.question, "en")
        assert parse_question(bad.question) is None and understood(bad.question) == one.query


def test_no_two_foreign_questions_are_the_same():
    every = list(_all_queries())
    assert len(every) == 2 + 8 + 30 + 90 + 30 + 150
    for language in LANGUAGES:
        asked = [foreign_question(query, language) for query in every]
        assert len(set(asked)) == len(every) and not any("{" in text for text in asked)
        assert [understood(text) for text in asked] == every


def test_a_question_about_another_video_is_not_true_of_this_one(drafts):
    for _, bad, around in spoilt(drafts, "other_video"):
        assert answer_from(around.notes.seen, bad.query) != answer_from(around.elsewhere.seen, bad.query) == bad.answer


def test_a_paragraph_is_long_and_still_right(drafts, honest: Oracle):
    for one, bad, around in spoilt(drafts, "paragraph"):
        assert 60 < len(bad.answer) <= 200 and bad.answer.count(". ") >= 2
        told = "\n".join(f"[{line.start_s:.1f} s - {line.stop_s:.1f} s] {line.text}" for line in around.notes.lines)
        video = f"duration {around.duration_s:.1f} s"
        request = OracleRequest("support", text_of(video=video, captions=told, question=bad.question, answer=bad.answer))
        assert honest.answer(request) == {"verdict": "yes"}
        assert FAULTS["paragraph"][0](one, Around(**{**around.__dict__, "max_answer_chars": 50})) is None


def test_every_kind_is_planted_about_equally_often(drafts):
    counts: Counter[str | None] = Counter()
    for _ in range(12):
        counts.update(plant(one, around).fault for one, around in drafts if one.options)
    assert None not in counts and set(counts) == {name for name, (_, kinds) in FAULTS.items() if "choice" in kinds}
    expected = sum(counts.values()) / len(counts)
    assert all(0.3 * expected < number < 1.8 * expected for number in counts.values()), counts


def test_the_ledger_tells_what_was_wrong(world_folder: Path, honest: Oracle, lines, tmp_path: Path):
    path = tmp_path / "kept" / "ledger.jsonl"
    lying = Oracle([world_folder], LieRates(answers=0.2, planted=0.3), ledger=path)
    asked = [
        question_request(honest, video, lines[video], f"question_{name}", seed=s)
        for video in range(4)
        for name in CATEGORIES
        for s in (0, 1)
    ]
    answers = [lying.answer(request)["questions"] for request in asked]
    entries = list(read_ledger(path))
    assert len(entries) == sum(map(len, answers)) > 100
    for entry, one in zip(entries, [one for answer in answers for one in answer], strict=True):
        key = one["options"][LETTERS.index(one["answer"])]
        assert (entry.question, entry.options, entry.answer, entry.reasoning) == (
            one["question"],
            tuple(one["options"]),
            key,
            one["reasoning"],
        )
        assert not (entry.fault and entry.key_lied) and not entry.captions_lied
        story = next(video.story for video in lying.frames.videos if str(video.path) == entry.video)
        assert entry.true == is_true(story, entry.question, entry.answer)
        if entry.fault is None:
            assert entry.true != entry.key_lied and entry.wrong == entry.key_lied
        else:
            assert entry.wrong
    assert sorted({Path(str(entry.video)).stem for entry in entries}) == ["000000", "000001", "000002", "000003"]
    assert 0.2 < np.mean([entry.fault is not None for entry in entries]) < 0.4
    assert lying.counts["fault/unsupported"] == sum(entry.fault == "unsupported" for entry in entries)
    assert [lying.answer(request)["questions"] for request in asked] == answers
    assert len(list(read_ledger(path))) == len(entries)  # equal requests are one
    lying.close()


def test_the_ledger_goes_on_where_a_killed_server_stopped(world_folder: Path, honest: Oracle, lines, tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    first, second = (question_request(honest, 0, lines[0], f"question_{name}") for name in ("plot", "goal"))
    one = Oracle([world_folder], ledger=path)
    one.answer(first)
    one.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"request": "cut o')
    other = Oracle([world_folder], ledger=path)
    other.answer(first)
    assert path.read_bytes() == whole
    other.answer(second)
    other.close()
    assert path.read_bytes().startswith(whole) and {entry.category for entry in read_ledger(path)} == {"plot", "goal"}
    path.write_bytes(b'{"request": 1}\n' + whole)
    with pytest.raises(CurationError, match="line 1 is no entry"):
        Oracle([world_folder], ledger=path)


def test_lying_captions_are_found_out_in_the_ledger(world_folder: Path, honest: Oracle, lines, tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    reasoner = Oracle([world_folder], ledger=path)
    place = honest.frames.videos[0].story.scenes[0].place
    other = next(name for name in PLACES if all(scene.place != name for scene in honest.frames.videos[0].story.scenes))
    told = [lines[0][0].replace(place, other), *lines[0][1:]]
    reasoner.answer(question_request(honest, 0, told, "question_plot"))
    reasoner.close()
    by_question = {entry.question: entry for entry in read_ledger(path)}
    begin, end = by_question["Where does the story begin?"], by_question["Where does the story end?"]
    assert (begin.captions_lied, begin.true, begin.wrong, begin.answer) == (True, False, True, other)
    assert (end.captions_lied, end.true, end.wrong) == (False, True, False)
    assert json.loads(path.read_text().splitlines()[0])["video"].endswith("videos/000000.mp4")
    assert LedgerEntry(**{**begin.__dict__, "true": True, "fault": "unsupported"}).wrong
