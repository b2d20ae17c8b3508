"""Captions: the right frames and times are shown, each clip is paid once, and one that fails costs itself alone."""

from __future__ import annotations

import asyncio
import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from longtake.config.curate import CurateConfig
from longtake.curation import look
from longtake.curation.caption import caption_schema, caption_video
from longtake.curation.frames import clip_frames
from longtake.curation.prompts import Prompts
from longtake.curation.records import Clip, SourceVideo, VideoClips
from longtake.errors import BudgetError
from longtake.llm.calls import Answer, CallFailure, ChatCall
from longtake.observe.keyed_lines import KeyedLines
from longtake.testing.videos import cut, picture, write_video

SECONDS = 40
CLIPS = tuple(Clip(float(start), start + 10.0) for start in range(0, SECONDS, 10))
TIMES = re.compile(r"<times>\n(.*)\n</times>")


@dataclass
class Captioner:
    """A server that says when the first image was shown, and remembers what it was asked."""

    calls: list[ChatCall] = field(default_factory=list)
    fail: dict[int, CallFailure | Exception] = field(default_factory=dict)
    """Number of the call -> what comes instead of its answer."""
    text: str = "{times}"

    async def __call__(self, call: ChatCall) -> Answer | CallFailure:
        number = len(self.calls)
        self.calls.append(call)
        await asyncio.sleep(0)
        found = self.fail.get(number)
        if isinstance(found, Exception):
            raise found
        if found is not None:
            return found
        times = TIMES.search(call.text)
        assert times is not None
        value = {"caption": self.text.format(times=times[1])}
        assert Draft202012Validator(dict(call.schema)).is_valid(value)
        return Answer(value, 100, 10, cached=False)


@dataclass(eq=False)
class Tools:
    """What `Viewer` asks for."""

    config: CurateConfig
    made: KeyedLines
    vlm: Captioner
    prompts: Prompts = field(default_factory=Prompts)
    captioner: str = "model-a"
    decode: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "v.mp4", [number / 2 for number in range(SECONDS * 2)])
    return folder


@pytest.fixture
def tools(root: Path, tmp_path: Path) -> Iterator[Tools]:
    config = CurateConfig(videos=root, out=tmp_path / "out").model_copy(
        update={"caption": CurateConfig(videos=root, out=root).caption.model_copy(update={"frames_per_clip": 4, "max_chars": 200})}
    )
    with KeyedLines(tmp_path / "state", "a") as store:
        yield Tools(config, store, Captioner())


VIDEO = SourceVideo("v.mp4", "digest of v", float(SECONDS), 64, 48, SECONDS * 2, (), "", "")
CUT = VideoClips("v.mp4", "digest of v", CLIPS)


def run(tools: Tools, video: SourceVideo = VIDEO, clips: VideoClips = CUT):
    return asyncio.run(caption_video(video, clips, tools))


def test_each_clip_is_shown_in_its_frames_at_their_times(tools: Tools):
    outcome = run(tools)
    assert outcome.dropped == () and [(one.start_s, one.stop_s) for one in outcome.kept] == [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert outcome.kept[1].times_s == (11.0, 13.5, 16.0, 18.5)  # shown at the midpoints 11.25, 13.75, ...
    assert outcome.kept[1].text == "11.00 s, 13.50 s, 16.00 s, 18.50 s"
    call = tools.vlm.calls[1]
    assert call.purpose == "caption" and call.num_images == 4 and "<ranges>\n10.0 s - 20.0 s\n</ranges>" in call.text
    assert "v.mp4" not in call.text and (call.temperature, call.sample, call.max_tokens) == (0.0, 0, 300)
    for number, part in zip((22, 27, 32, 37), call.parts[1:], strict=True):
        assert isinstance(part, bytes)
        shown = np.asarray(Image.open(io.BytesIO(part)), dtype=float)
        distances = [np.abs(shown - picture(other, 48, 64)).mean() for other in range(SECONDS * 2)]
        assert int(np.argmin(distances)) == number


def test_what_was_captioned_is_neither_decoded_nor_asked_again(tools: Tools, monkeypatch: pytest.MonkeyPatch):
    first = run(tools)
    monkeypatch.setattr(look, "clip_frames", lambda *_: pytest.fail("decoded again"))
    assert run(tools).kept == first.kept and len(tools.vlm.calls) == 4
    moved = run(tools, replace(VIDEO, video="else/where.mp4"))
    assert [one.video for one in moved.kept] == ["else/where.mp4"] * 4 and len(tools.vlm.calls) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"frames_per_clip": 3}},
        {"config": {"max_pixels_per_frame": 28 * 28}},
        {"config": {"max_chars": 300}},
        {"config": {"temperature": 0.5}},
        {"captioner": "model-b"},
        {"prompts": "Other words. $times $ranges $max_chars"},
        {"digest": "other bytes"},
    ],
    ids=str,
)
def test_what_decides_a_caption_is_in_its_key(tools: Tools, tmp_path: Path, change: dict):
    run(tools)
    video = VIDEO
    if "config" in change:
        caption = tools.config.caption.model_copy(update=change["config"])
        tools.config = tools.config.model_copy(update={"caption": caption})
    if "captioner" in change:
        tools.captioner = change["captioner"]
    if "prompts" in change:
        (tmp_path / "caption.txt").write_text(change["prompts"])
        tools.prompts = Prompts(tmp_path)
    if "digest" in change:
        video = replace(VIDEO, digest=change["digest"])
    run(tools, video)
    assert len(tools.vlm.calls) == 8


def test_only_clips_without_a_caption_are_decoded(tools: Tools, monkeypatch: pytest.MonkeyPatch):
    run(tools, clips=replace(CUT, clips=CLIPS[1:3]))
    decoded: list[Clip] = []
    monkeypatch.setattr(
        look, "clip_frames", lambda path, limits, clips, *more: decoded.extend(clips) or clip_frames(path, limits, clips, *more)
    )
    outcome = run(tools)
    assert decoded == [CLIPS[0], CLIPS[3]] and len(tools.vlm.calls) == 4
    assert [one.start_s for one in outcome.kept] == [0.0, 10.0, 20.0, 30.0]


def test_a_failed_call_costs_its_clip_and_is_tried_again_next_time(tools: Tools):
    tools.vlm.fail = {1: CallFailure("timeout", "no answer in 600 s", 7)}
    outcome = run(tools)
    assert [one.start_s for one in outcome.kept] == [0.0, 20.0, 30.0]
    (drop,) = outcome.dropped
    assert (drop.stage, drop.reason, drop.video) == ("caption", "timeout", "v.mp4")
    assert drop.message == "10.0 s - 20.0 s: no answer in 600 s"
    assert len(run(tools).kept) == 4 and len(tools.vlm.calls) == 5


def test_an_empty_caption_is_dropped_and_not_paid_again(tools: Tools):
    tools.vlm.text = " \n "
    outcome = run(tools)
    assert outcome.kept == () and [drop.reason for drop in outcome.dropped] == ["empty"] * 4
    assert run(tools).dropped == outcome.dropped and len(tools.vlm.calls) == 4


def test_a_caption_is_one_line_that_can_be_written(tools: Tools):
    tools.vlm.text = "A man\n\twaves.\u0000 \ud800He leaves."
    text = run(tools).kept[0].text
    assert text == "A man waves. He leaves." and text.encode()


def test_a_file_that_cannot_be_decoded_drops_its_clips(tools: Tools, root: Path, tmp_path: Path):
    (tmp_path / "videos").mkdir()
    path = tmp_path / "videos" / "v.mp4"
    path.write_bytes((root / "v.mp4").read_bytes())
    cut(path, 0.5)
    tools.config = tools.config.model_copy(update={"videos": path.parent})
    outcome = run(tools)
    assert outcome.kept == () and [drop.reason for drop in outcome.dropped] == ["VideoDamagedError"] * 4 and not tools.vlm.calls
    outside = run(tools, replace(VIDEO, video="../v.mp4"))
    assert [drop.reason for drop in outside.dropped] == ["PathError"] * 4


def test_the_budget_ends_the_work_but_not_the_calls_under_way(tools: Tools):
    """The second call passes the budget; what the others say is kept."""
    tools.vlm.fail = {1: BudgetError("spent", rule="a budget is kept", remedy="raise it")}
    with pytest.raises(BudgetError):
        run(tools)
    assert len(tools.made) == 3
    tools.vlm.fail = {}
    assert len(run(tools).kept) == 4 and len(tools.vlm.calls) == 5


def test_batches_bound_what_is_in_memory(tools: Tools, monkeypatch: pytest.MonkeyPatch):
    """With 2 clips at once: the third pair is not decoded before the first pair has its answers."""
    monkeypatch.setattr(look, "CLIPS_AT_ONCE", 2)
    many = replace(CUT, clips=tuple(Clip(start * 5.0, start * 5.0 + 5.0) for start in range(8)))
    answered: list[int] = []
    at_decoding: list[int] = []

    def decode(path, limits, clips, *more):
        at_decoding.append(len(answered))
        return clip_frames(path, limits, clips, *more)

    class Slow(Captioner):
        async def __call__(self, call: ChatCall) -> Answer | CallFailure:
            answer = await super().__call__(call)
            answered.append(1)
            return answer

    monkeypatch.setattr(look, "clip_frames", decode)
    tools.vlm = Slow()
    assert len(run(tools, clips=many).kept) == 8
    assert len(at_decoding) == 4 and at_decoding[0] == 0 and at_decoding[2] >= 2 and at_decoding[3] >= 4


def test_the_budget_ends_decoding_too(tools: Tools, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(look, "CLIPS_AT_ONCE", 1)
    tools.vlm.fail = {0: BudgetError("spent", rule="a budget is kept", remedy="raise it")}
    decoded: list[Clip] = []
    monkeypatch.setattr(
        look, "clip_frames", lambda path, limits, clips, *more: decoded.extend(clips) or clip_frames(path, limits, clips, *more)
    )
    with pytest.raises(BudgetError):
        run(tools)
    assert len(decoded) == 2 and len(tools.vlm.calls) == 1


def test_no_more_files_are_decoded_at_once_than_there_are_places(tools: Tools, monkeypatch: pytest.MonkeyPatch):
    at_once, most, lock = [0], [0], threading.Lock()

    def counted(*given):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        made = clip_frames(*given)
        with lock:
            at_once[0] -= 1
        return made

    async def several() -> None:
        tools.decode = asyncio.Semaphore(2)
        videos = [replace(VIDEO, digest=str(number)) for number in range(8)]
        await asyncio.gather(*(caption_video(video, CUT, tools) for video in videos))

    monkeypatch.setattr(look, "clip_frames", counted)
    asyncio.run(several())
    assert 1 <= most[0] <= 2 and len(tools.vlm.calls) == 32


def test_cancelled_in_the_middle_it_ends_soon_and_keeps_what_it_has(tools: Tools):
    """Ctrl-C while one answer is there and the others are awaited."""

    class Stuck(Captioner):
        async def __call__(self, call: ChatCall) -> Answer | CallFailure:
            if self.calls:
                self.calls.append(call)
                await asyncio.sleep(3600)
            return await super().__call__(call)

    async def broken_off() -> None:
        tools.vlm = Stuck()
        task = asyncio.create_task(caption_video(VIDEO, CUT, tools))
        while len(tools.vlm.calls) < 4 or not len(tools.made):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(broken_off(), 60))
    assert len(tools.made) == 1
    tools.vlm = Captioner()
    assert len(run(tools).kept) == 4 and len(tools.vlm.calls) == 3


def test_the_schema_refuses_what_is_no_caption(tools: Tools):
    validator = Draft202012Validator(caption_schema(tools.config.caption))
    assert validator.is_valid({"caption": "x" * 200})
    for wrong in ({"caption": "x" * 201}, {}, {"caption": 1}, {"caption": "x", "more": "y"}, "x"):
        assert not validator.is_valid(wrong)
