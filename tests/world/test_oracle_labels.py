"""Rows of a run are judged by the ledger and by the log of their own video."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from longtake.config.world_serve import LieRates
from longtake.curation.outputs import write_stage
from longtake.curation.records import Draft, Outcome, TimeRange, named
from longtake.testing.oracle_calls import captions_of, question_request
from longtake.testing.oracle_labels import Label, label_drafts, write_labels
from longtake.world.oracle import Oracle
from longtake.world.oracle_ledger import LedgerEntry, read_ledger
from longtake.world.questions import CATEGORIES
from longtake.world.truth import is_true


def draft_of(entry: LedgerEntry, video: str) -> Draft:
    """As the pipeline lays it out."""
    options = tuple(" ".join(option.split()) for option in entry.options)
    ranges = tuple(TimeRange(start, stop) for start, stop in entry.ranges)
    return named(Draft(video, "d", entry.category, entry.question, options, " ".join(entry.answer.split()), entry.reasoning, ranges))


@pytest.fixture(scope="module")
def ledger(world_folder: Path, honest: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a reasoner who spoils a third and lies in a third of the rest, about the first three videos."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    lying = Oracle([world_folder], LieRates(planted=0.35, answers=0.35), ledger=path)
    for video in range(3):
        for category in CATEGORIES:
            lying.answer(question_request(honest, video, captions_of(honest, video), f"question_{category}"))
    lying.close()
    return path


def test_labels_of_a_run(ledger: Path, world_folder: Path, tmp_path: Path):
    entries = list(read_ledger(ledger))
    drafts = [draft_of(entry, str(Path(str(entry.video)).relative_to(world_folder / "videos"))) for entry in entries]
    write_stage(tmp_path / "run", "question", Outcome(tuple(drafts)))
    labels = write_labels(tmp_path / "labels.jsonl", tmp_path / "run", ledger, [world_folder])
    assert [label.right for label in labels] == [not entry.wrong for entry in entries]
    assert [label.fault for label in labels] == [entry.fault or ("wrong key" if entry.key_lied else None) for entry in entries]
    assert {label.fault for label in labels} > {None, "wrong key"} and 0 < sum(label.right for label in labels) < len(labels)
    written = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert written == [{"key": draft.key, "right": label.right, "fault": label.fault} for draft, label in zip(drafts, labels, strict=True)]


def test_the_truth_is_that_of_the_drafts_own_video(ledger: Path, world_folder: Path, honest: Oracle):
    entry = next(entry for entry in read_ledger(ledger) if not entry.wrong and entry.category == "plot")
    right = draft_of(entry, Path(str(entry.video)).name)
    elsewhere = next(video for video in honest.frames.videos if not is_true(video.story, right.question, right.answer))
    other = replace(right, video=elsewhere.path.name)
    labels = label_drafts([right, other], ledger, [world_folder])
    assert labels == [Label(right.key, True, None), Label(right.key, False, "untrue")]


def test_a_draft_that_nobody_gave_out_is_an_error(ledger: Path, world_folder: Path):
    entry = next(read_ledger(ledger))
    with pytest.raises(KeyError):
        label_drafts([replace(draft_of(entry, "000000.mp4"), reasoning="Made up.")], ledger, [world_folder])
    with pytest.raises(KeyError):
        label_drafts([draft_of(entry, "other.mp4")], ledger, [world_folder])
