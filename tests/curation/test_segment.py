"""Clips: they cover the video, keep their lengths, and end where the scene does."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.config.curate import SegmentConfig
from longtake.config.sections import VideoLimits
from longtake.config.stages import WorldConfig
from longtake.curation import segment
from longtake.curation.records import Drop, SourceVideo, VideoClips
from longtake.curation.segment import PASSED_CUT, TIME_CUT, cut_clips, scene_changes, segment_video
from longtake.observe.keyed_lines import KeyedLines
from longtake.testing.videos import cut, good_mp4
from longtake.video import decode
from longtake.video.encode import VideoWriter
from longtake.video.probe import probe
from longtake.world.render import render_frame
from longtake.world.write import story_of, write_world

LIMITS = VideoLimits()
CONFIG = SegmentConfig()


def borders(duration_s: float, cuts_s: list[float], config: SegmentConfig = CONFIG) -> list[float]:
    return [round(clip.stop_s, 6) for clip in cut_clips(duration_s, cuts_s, config)][:-1]


def cost(duration_s: float, cuts_s: list[float], stops_s: list[float], config: SegmentConfig) -> float:
    """Written out from the head of the module, over every border."""
    inner = {cut for cut in cuts_s if 0 < cut < duration_s}
    times = [0.0, *stops_s, duration_s]
    shape = sum(((stop - start) / config.target_s - 1) ** 2 for start, stop in itertools.pairwise(times))
    return shape + TIME_CUT * sum(stop not in inner for stop in stops_s) + PASSED_CUT * len(inner - set(stops_s))


@pytest.mark.parametrize(
    ("duration_s", "cuts_s", "expected"),
    [
        (10.0, [], []),
        (14.0, [], []),  # 0.16 against 2 x 0.09 + 0.2
        (16.0, [], [8.0]),  # 2 x 0.04 + 0.2 against 0.36
        (30.0, [], [10.0, 20.0]),
        (20.0, [6.0], [6.0]),  # 2 x 0.16, against 0.2 + 0.4 for 10 and 10
        (20.0, [5.0, 10.0, 15.0], [10.0]),  # two changes passed over: 0.8, against 4 x 0.25
        (20.0, [2.0], [10.0]),  # 2 s would be too short
        (20.0, [3.0, 9.0, 19.0], [9.0]),
        (40.0, [6.0, 20.0, 26.0], [6.0, 20.0, 26.0]),
        (35.0, [11.0], [11.0, 23.0]),
        (30.0, [0.0, -1.0, 30.0, 99.0], [10.0, 20.0]),  # none of these is inside
        (30.0, [20.0, 10.0, 10.0], [10.0, 20.0]),
        (3.0, [1.0], []),
        (8.0, [4.0], []),  # 0.04 + 0.4 against 2 x 0.36
    ],
)
def test_hand_computed(duration_s: float, cuts_s: list[float], expected: list[float]):
    assert borders(duration_s, cuts_s) == expected


def test_a_long_take_is_cut_near_the_target():
    clips = cut_clips(3600.0, [], CONFIG)
    assert len(clips) == 329  # 3600 / (10 x sqrt(1.2)) = 328.6
    assert max(clip.stop_s - clip.start_s for clip in clips) < 11


durations = st.floats(min_value=0.01, max_value=400.0)
cut_lists = st.lists(st.floats(min_value=-5.0, max_value=450.0), max_size=60)
lengths = st.tuples(st.floats(0.5, 6.0), st.floats(0.0, 1.0), st.floats(2.0, 5.0)).map(
    lambda drawn: SegmentConfig(
        shortest_s=drawn[0], longest_s=drawn[0] * drawn[2], target_s=drawn[0] + drawn[1] * (drawn[0] * drawn[2] - drawn[0])
    )
)


@given(durations, cut_lists, lengths)
def test_clips_cover_the_video_in_lengths_that_are_allowed(duration_s: float, cuts_s: list[float], config: SegmentConfig):
    clips = cut_clips(duration_s, cuts_s, config)
    assert clips[0].start_s == 0.0 and clips[-1].stop_s == duration_s
    assert all(before.stop_s == after.start_s for before, after in itertools.pairwise(clips))
    if duration_s >= config.shortest_s:
        assert all(config.shortest_s - 1e-6 <= clip.stop_s - clip.start_s <= config.longest_s + 1e-6 for clip in clips)
    else:
        assert len(clips) == 1


@given(st.floats(4.0, 60.0), st.lists(st.floats(0.5, 59.0), max_size=6))
def test_no_division_is_cheaper(duration_s: float, cuts_s: list[float]):
    """Against every choice of changes of scene, with every number of equal parts between them."""
    found = cost(duration_s, cuts_s, [clip.stop_s for clip in cut_clips(duration_s, cuts_s, CONFIG)][:-1], CONFIG)
    inner = sorted({cut for cut in cuts_s if cut < duration_s})
    for chosen in itertools.chain.from_iterable(itertools.combinations(inner, size) for size in range(len(inner) + 1)):
        stretches = list(itertools.pairwise([0.0, *chosen, duration_s]))
        best = PASSED_CUT * (len(inner) - len(chosen))
        for start, stop in stretches:
            length = stop - start
            allowed = [n for n in range(1, 20) if CONFIG.shortest_s <= length / n <= CONFIG.longest_s]
            parts = [n * (length / n / CONFIG.target_s - 1) ** 2 + TIME_CUT * (n - 1) for n in allowed]
            best += min(parts, default=math.inf)
        assert found <= best + 1e-6


@given(st.floats(4.0, 60.0), st.lists(st.floats(0.0, 1.0), max_size=7))
def test_equal_parts_are_not_dearer_than_others(duration_s: float, shares: list[float]):
    """The negative control of the search: borders at any other places cost as much or more."""
    stops = sorted(share * duration_s for share in shares)
    times = [0.0, *stops, duration_s]
    if all(CONFIG.shortest_s <= stop - start <= CONFIG.longest_s for start, stop in itertools.pairwise(times)):
        found = [clip.stop_s for clip in cut_clips(duration_s, [], CONFIG)][:-1]
        assert cost(duration_s, [], found, CONFIG) <= cost(duration_s, [], stops, CONFIG) + 1e-6


def test_looking_back_farther_finds_nothing_cheaper(monkeypatch: pytest.MonkeyPatch):
    cuts = [0.13 * number**1.1 for number in range(1, 900)]
    near = cut_clips(240.0, cuts, CONFIG)
    monkeypatch.setattr(segment, "BACK_BORDERS", 10_000)
    assert cut_clips(240.0, cuts, CONFIG) == near


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_world(WorldConfig(out=out, num_videos=12, seconds=(40.0, 60.0), size=56, workers=1))
    return out


def stories(world: Path) -> list[dict]:
    return [json.loads(line) for line in (world / "events.jsonl").read_text().splitlines()]


def test_scene_changes_of_worlds_are_found(world: Path):
    """Every cut within a frame (0.5 s) of where it is. What is found besides are moments at which figures appear or leave: on 40 worlds
    of 112 pixels 181 of 181 cuts, and 61 such moments."""
    wanted = found = 0
    for story in stories(world):
        cuts = [scene["start_s"] for scene in story["scenes"][1:]]
        moments = [scene[name] for scene in story["scenes"] for name in ("event_start_s", "event_stop_s")]
        changes = scene_changes(world / story["video"], LIMITS, 4.0, 27.0)
        wanted += len(cuts)
        found += sum(any(0 <= change - cut <= 0.501 for change in changes) for cut in cuts)
        assert all(any(0 <= change - at <= 0.501 for at in cuts + moments) for change in changes)
    assert wanted >= 48 and found == wanted


def test_clips_of_worlds_end_at_their_cuts(world: Path, tmp_path: Path):
    """Scenes of 6 to 12 s are clips of their own; cut by time alone, borders meet them by chance."""
    hits = {CONFIG.scene_fps: 0, 0.0: 0}
    wanted = 0
    with KeyedLines(tmp_path, "a") as store:
        for story in stories(world):
            cuts = [scene["start_s"] for scene in story["scenes"][1:]]
            wanted += len(cuts)
            for fps in hits:
                config = CONFIG.model_copy(update={"scene_fps": fps})
                made = segment_video(source_of(world, story["video"]), world, config, LIMITS, store)
                assert isinstance(made, VideoClips)
                hits[fps] += sum(any(0 <= clip.stop_s - cut <= 0.501 for clip in made.clips) for cut in cuts)
    assert hits[CONFIG.scene_fps] >= 0.85 * wanted and hits[0.0] <= 0.3 * wanted


def test_no_change_is_found_in_a_still_picture(tmp_path: Path):
    config = WorldConfig(out=tmp_path, num_videos=1, seconds=(40.0, 40.0), size=56)
    story = story_of(config, 0)
    with VideoWriter(tmp_path / "still.mp4", 56, 56, gop=24, fps=4) as writer:
        for number in range(80):
            writer.write(render_frame(story, 0.0, 56, 56), number / 4)
    assert scene_changes(tmp_path / "still.mp4", LIMITS, 4.0, 27.0) == ()


def test_times_count_from_the_start_of_the_video(tmp_path: Path, world: Path):
    """The same frames on a clock that starts at 100 s, and decoded from the start."""
    story = story_of(WorldConfig(out=tmp_path, num_videos=1, seconds=(40.0, 40.0), size=56), 0)
    for name, offset in (("zero.mp4", 0.0), ("late.mp4", 100.0)):
        with VideoWriter(tmp_path / name, 56, 56, gop=24, fps=2) as writer:
            for number in range(80):
                writer.write(render_frame(story, number / 2, 56, 56), offset + number / 2)
    early, late = (scene_changes(tmp_path / name, LIMITS, 4.0, 27.0) for name in ("zero.mp4", "late.mp4"))
    assert late == pytest.approx(early) and len(early) >= 4


def test_a_walk_that_starts_again_forgets_what_it_saw(world: Path, monkeypatch: pytest.MonkeyPatch):
    path = world / stories(world)[0]["video"]
    easy = scene_changes(path, LIMITS, 4.0, 27.0)
    walk = decode._Walk._serve

    def gives_up(self, index: int, target: int) -> None:
        if index == 120:
            raise decode._NotSeekableError
        walk(self, index, target)

    monkeypatch.setattr(decode._Walk, "_serve", gives_up)
    assert scene_changes(path, LIMITS, 4.0, 27.0) == easy


def source_of(root: Path, video: str) -> SourceVideo:
    info = probe(root / video, LIMITS)
    return SourceVideo(video, f"digest of {video}", info.duration_s, info.width, info.height, info.num_frames, (), "", "")


def test_changes_are_looked_for_once(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    video = source_of(world, stories(world)[0]["video"])
    with KeyedLines(tmp_path, "a") as store:
        first = segment_video(video, world, CONFIG, LIMITS, store)
        monkeypatch.setattr(segment, "scene_changes", lambda *_: pytest.fail("decoded again"))
        assert segment_video(video, tmp_path, CONFIG, LIMITS, store) == first
        other = segment_video(video, tmp_path, CONFIG.model_copy(update={"target_s": 5.0}), LIMITS, store)
        assert isinstance(first, VideoClips) and isinstance(other, VideoClips) and len(other.clips) > len(first.clips)
        by_time = segment_video(video, tmp_path, CONFIG.model_copy(update={"scene_fps": 0.0}), LIMITS, store)
        assert by_time == VideoClips(video.video, video.digest, cut_clips(video.duration_s, [], CONFIG))
        with pytest.raises(pytest.fail.Exception, match="decoded again"):
            segment_video(video, world, CONFIG.model_copy(update={"scene_threshold": 30.0}), LIMITS, store)


def test_a_damaged_file_is_dropped_with_its_reason(tmp_path: Path):
    path = good_mp4(tmp_path / "v.mp4", faststart=True)
    video = source_of(tmp_path, "v.mp4")
    cut(path, 0.5)
    with KeyedLines(tmp_path / "state", "a") as store:
        made = segment_video(video, tmp_path, CONFIG, LIMITS, store)
        assert isinstance(made, Drop) and (made.stage, made.reason, made.video) == ("segment", "VideoDamagedError", "v.mp4")
        assert len(store) == 0
        outside = segment_video(SourceVideo("../v.mp4", "d", 60.0, 1, 1, 1, (), "", ""), tmp_path, CONFIG, LIMITS, store)
        assert isinstance(outside, Drop) and outside.reason == "PathError"
