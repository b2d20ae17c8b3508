"""Boxes: only those that can be one are kept, the others are counted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from longtake.config.curate import CurateConfig
from longtake.curation import look
from longtake.curation.ground import checked_boxes, ground_schema, ground_video
from longtake.curation.prompts import Prompts
from longtake.curation.records import Box, Clip, SourceVideo, VideoClips
from longtake.llm.calls import Answer, CallFailure, ChatCall
from longtake.observe.keyed_lines import KeyedLines
from longtake.testing.videos import write_video

VIDEO = SourceVideo("v.mp4", "digest of v", 20.0, 64, 48, 60, (), "", "")
CUT = VideoClips("v.mp4", "digest of v", (Clip(0.0, 10.0), Clip(10.0, 20.0)))


def frame(time_s: float, *objects: tuple[str, list[int]]) -> dict:
    return {"time": time_s, "objects": [{"label": label, "box": box} for label, box in objects]}


@dataclass
class Locator:
    """A server that answers in turn."""

    answers: list[list[dict] | CallFailure]
    calls: list[ChatCall] = field(default_factory=list)

    async def __call__(self, call: ChatCall) -> Answer | CallFailure:
        self.calls.append(call)
        found = self.answers[(len(self.calls) - 1) % len(self.answers)]
        if isinstance(found, CallFailure):
            return found
        assert Draft202012Validator(dict(call.schema)).is_valid({"frames": found})
        return Answer({"frames": found}, 100, 10, cached=False)


@dataclass(eq=False)
class Tools:
    config: CurateConfig
    made: KeyedLines
    vlm: Locator
    prompts: Prompts = field(default_factory=Prompts)
    captioner: str = "model-a"
    decode: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[Tools]:
    write_video(tmp_path / "v.mp4", [number / 3 for number in range(60)])
    config = CurateConfig(videos=tmp_path, out=tmp_path / "out", ground={"frames_per_clip": 2})
    with KeyedLines(tmp_path / "state", "a") as store:
        yield Tools(config, store, Locator([[]]))


def run(tools: Tools, video: SourceVideo = VIDEO):
    return asyncio.run(ground_video(video, CUT, tools))


def test_boxes_have_the_exact_times_of_the_frames(tools: Tools):
    """Frames at 2.333, 7.333, 12.333 and 17.333 s; the model is told hundredths."""
    tools.vlm.answers = [
        [frame(2.33, ("red cup", [0, 0, 1000, 1000])), frame(7.33, ("red cup", [10, 20, 30, 40]), ("man", [1, 2, 3, 4]))],
        [frame(17.33, ("door", [5, 6, 7, 8])), frame(12.33)],
    ]
    outcome = run(tools)
    assert outcome.dropped == ()
    assert [(box.label, box.box) for box in outcome.kept] == [
        ("red cup", (0, 0, 1000, 1000)),
        ("red cup", (10, 20, 30, 40)),
        ("man", (1, 2, 3, 4)),
        ("door", (5, 6, 7, 8)),
    ]
    assert [box.time_s for box in outcome.kept] == pytest.approx([7 / 3, 22 / 3, 22 / 3, 52 / 3], abs=1e-5)
    call = tools.vlm.calls[0]
    assert call.purpose == "ground" and call.num_images == 2 and "<times>\n2.33 s, 7.33 s\n</times>" in call.text
    assert "at most 12 objects" in call.text and call.max_tokens == 2 * (30 + 12 * 120)


@pytest.mark.parametrize(
    ("time_s", "label", "box", "words"),
    [
        (2.5, "cup", [1, 2, 3, 4], "no such frame was shown"),
        (2.35, "cup", [1, 2, 3, 4], "no such frame was shown"),
        (2.33, " \n", [1, 2, 3, 4], "no label"),
        (2.33, "cup", [-1, 2, 3, 4], "leaves the picture"),
        (2.33, "cup", [1, 2, 3, 1001], "leaves the picture"),
        (2.33, "cup", [3, 2, 3, 4], "left is smaller"),
        (2.33, "cup", [1, 4, 3, 2], "top than bottom"),
        (2.33, "ball", [9, 9, 10, 10], "named before"),
    ],
)
def test_a_box_that_cannot_be_one_costs_itself_alone(time_s: float, label: str, box: list[int], words: str):
    ball = ("ball", [9, 9, 10, 10])
    outcome = checked_boxes(VIDEO, [frame(2.33, ball), frame(time_s, (label, box))], [7 / 3])
    assert outcome.kept == (Box("v.mp4", "digest of v", 7 / 3, "ball", (9, 9, 10, 10)),)
    (drop,) = outcome.dropped
    assert (drop.stage, drop.reason, drop.video) == ("ground", "bad_box", "v.mp4") and words in drop.message


def test_without_frames_every_box_is_bad():
    outcome = checked_boxes(VIDEO, [frame(2.33, ("ball", [1, 2, 3, 4]))], [])
    assert outcome.kept == () and [drop.reason for drop in outcome.dropped] == ["bad_box"]


def test_answers_are_paid_once_and_bad_boxes_counted_again(tools: Tools, monkeypatch: pytest.MonkeyPatch):
    tools.vlm.answers = [[frame(2.33, ("cup", [1, 2, 3, 4]), ("cup", [5, 6, 5, 8]))], CallFailure("http_500", "the server failed", 7)]
    first = run(tools)
    assert len(first.kept) == 1 and [drop.reason for drop in first.dropped] == ["bad_box", "http_500"]
    assert first.dropped[1].message == "10.0 s - 20.0 s: the server failed"
    tools.vlm.answers = [[frame(12.33, ("door", [1, 2, 3, 4]))]]
    second = run(tools)
    assert len(tools.vlm.calls) == 3 and len(second.kept) == 2 and second.dropped == first.dropped[:1]
    monkeypatch.setattr(look, "clip_frames", lambda *_: pytest.fail("decoded again"))
    assert run(tools) is not None and len(tools.vlm.calls) == 3
    run_again = run(tools, replace(VIDEO, video="moved.mp4"))
    assert {box.video for box in run_again.kept} == {"moved.mp4"}


def test_what_decides_an_answer_is_in_its_key(tools: Tools):
    run(tools)
    for number, change in enumerate(
        ({"ground": {"frames_per_clip": 1}}, {"ground": {"max_objects": 3}}, {"caption": {"max_pixels_per_frame": 2000}}), 1
    ):
        config = tools.config
        tools.config = CurateConfig(videos=config.videos, out=config.out, **{"ground": {"frames_per_clip": 2}, **change})
        run(tools)
        tools.config = config
        assert len(tools.vlm.calls) == 2 + 2 * number
    tools.captioner = "model-b"
    run(tools)
    assert len(tools.vlm.calls) == 10


def test_nothing_is_asked_without_frames(tools: Tools):
    tools.config = CurateConfig(videos=tools.config.videos, out=tools.config.out, ground={"frames_per_clip": 0})
    outcome = run(tools)
    assert (outcome.kept, outcome.dropped, tools.vlm.calls) == ((), (), [])


def test_the_schema_refuses_what_is_no_answer(tools: Tools):
    config = tools.config.ground.model_copy(update={"max_objects": 2})
    validator = Draft202012Validator(ground_schema(1, config))
    box = ("cup", [1, 2, 3, 4])
    assert validator.is_valid({"frames": [frame(1.0, box, box)]}) and validator.is_valid({"frames": []})
    assert validator.is_valid({"frames": [frame(1.0, ("cup", [-5, 2, 3, 4000]))]})  # counted one by one, later
    wrong = (
        [frame(1.0, box, box, box)],
        [frame(1.0), frame(2.0)],
        [frame(1.0, ("cup", [1, 2, 3]))],
        [frame(1.0, ("c" * 81, [1, 2, 3, 4]))],
    )
    assert not any(validator.is_valid({"frames": frames}) for frames in wrong)
    assert not validator.is_valid({"frames": [{"time": 1.0}]})
