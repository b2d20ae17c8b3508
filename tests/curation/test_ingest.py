"""Ingest: what is found, refused and kept, and which videos are the same."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from longtake.config.curate import IngestConfig
from longtake.config.sections import VideoLimits
from longtake.config.stages import WorldConfig
from longtake.curation import hashes, ingest
from longtake.curation.hashes import first_same_before, frame_hash, hashes_of, looks_of, same
from longtake.curation.ingest import Origin, deduplicate, inspect, inspect_held_out, list_files, read_origins
from longtake.curation.records import Drop, SourceVideo
from longtake.errors import CurationError, PathError
from longtake.observe.keyed_lines import KeyedLines
from longtake.testing.videos import HOSTILE, cut, good_mp4
from longtake.video.decode import decode_at
from longtake.video.encode import VideoWriter
from longtake.video.index import DigestIndex
from longtake.video.probe import probe
from longtake.world.write import write_world

LIMITS = VideoLimits()
CONFIG = IngestConfig(min_seconds=20.0)
MAX = CONFIG.max_hash_distance
ZERO, ONES, HALF = "0" * 16, "f" * 16, "f" * 8 + "0" * 8


def video(name: str, frame_hashes: list[str], duration_s: float = 60.0, digest: str = "") -> SourceVideo:
    return SourceVideo(name, digest or f"digest of {name}", duration_s, 64, 48, 120, tuple(frame_hashes), "unknown", "unknown")


def is_same(left: SourceVideo, right: SourceVideo, max_distance: float = MAX) -> bool:
    return bool(same(looks_of([left]), looks_of([right]), max_distance)[0, 0])


def flipped(text: str, bits: int) -> str:
    """The hash with its lowest bits changed."""
    return f"{int(text, 16) ^ ((1 << bits) - 1):016x}"


# What is found


def test_files_are_found_sorted_and_the_others_counted(tmp_path: Path):
    for name in ("b.mp4", "a/c.MKV", "a/notes.txt", "a.webm", "out/videos/b.mp4", "rows.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "a")
    assert list_files(tmp_path, CONFIG, skip=(tmp_path / "out",)) == (("a.webm", "a/c.MKV", "b.mp4"), 3)
    assert list_files(tmp_path, CONFIG.model_copy(update={"suffixes": (".txt",)}))[0] == ("a/notes.txt",)
    with pytest.raises(CurationError, match="is not a folder"):
        list_files(tmp_path / "b.mp4", CONFIG)


def test_what_is_no_video_inside_the_folder_is_dropped_with_its_reason(tmp_path: Path):
    root = tmp_path / "videos"
    root.mkdir()
    good_mp4(tmp_path / "outside.mp4")
    (root / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    os.mkfifo(root / "fifo.mp4")
    cut(good_mp4(root / "damaged.mp4"), 0.5)
    good_mp4(root / "short.mp4", seconds=19.0)
    good_mp4(root / "good.mp4", seconds=21.0)
    os.symlink("good.mp4", root / "inside.mp4")
    HOSTILE["audio_only"].make(root).rename(root / "song.mp4")
    with KeyedLines(tmp_path / "state", "a") as store:
        found = {name: inspect(root, name, CONFIG, DigestIndex(), store) for name in list_files(root, CONFIG)[0]}
    assert {name: drop.reason for name, drop in found.items() if isinstance(drop, Drop)} == {
        "link.mp4": "PathError",
        "fifo.mp4": "VideoMissingError",
        "damaged.mp4": "VideoDamagedError",
        "short.mp4": "too_short",
        "song.mp4": "VideoNoStreamError",
    }
    good = found["good.mp4"]
    assert isinstance(good, SourceVideo) and (good.width, good.height, good.num_frames) == (64, 48, 42)
    assert good.duration_s == pytest.approx(21.0) and len(good.hashes) == 16 and all(len(one) == 16 for one in good.hashes)
    assert found["inside.mp4"] == replace(good, video="inside.mp4")


def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path):
    with KeyedLines(tmp_path / "state", "a") as store:
        drop = inspect(tmp_path, "../x.mp4", CONFIG, DigestIndex(), store)
    assert isinstance(drop, Drop) and drop.reason == "PathError" and "`..`" in drop.message


def test_a_file_is_measured_once_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    good_mp4(tmp_path / "a.mp4", seconds=30.0)
    origins = {"b.mp4": Origin("CC0", "archive")}
    with KeyedLines(tmp_path / "state", "a") as store:
        first = inspect(tmp_path, "a.mp4", CONFIG, DigestIndex(), store)
        monkeypatch.setattr(ingest, "hashes_of", lambda *_: pytest.fail("decoded again"))
        (tmp_path / "a.mp4").rename(tmp_path / "b.mp4")
        assert isinstance(first, SourceVideo) and (first.licence, first.source) == ("unknown", "unknown")
        moved = replace(first, video="b.mp4", licence="CC0", source="archive")
        assert inspect(tmp_path, "b.mp4", CONFIG, DigestIndex(), store, origins) == moved
        later = inspect(tmp_path, "b.mp4", CONFIG.model_copy(update={"min_seconds": 31.0}), DigestIndex(), store)
        assert isinstance(later, Drop) and later.reason == "too_short"
        for other in ({"hash_frames": 8}, {"limits": VideoLimits(max_seconds=10.0)}):
            with pytest.raises(pytest.fail.Exception, match="decoded again"):
                inspect(tmp_path, "b.mp4", CONFIG.model_copy(update=other), DigestIndex(), store)


def test_a_file_that_failed_is_looked_at_again(tmp_path: Path):
    with KeyedLines(tmp_path / "state", "a") as store:
        assert isinstance(inspect(tmp_path, "a.mp4", CONFIG, DigestIndex(), store), Drop)
        good_mp4(tmp_path / "a.mp4", seconds=30.0)
        assert isinstance(inspect(tmp_path, "a.mp4", CONFIG, DigestIndex(), store), SourceVideo)


# Where videos are from


def test_origins_are_read(tmp_path: Path):
    path = tmp_path / "sources.jsonl"
    path.write_text('{"video": "a.mp4", "licence": "CC BY 4.0", "source": "archive"}\n\n{"video": "b/c.mp4", "licence": "CC0"}\n')
    config = IngestConfig(sources=path, licence="own", source="camera")
    assert read_origins(config) == {"a.mp4": Origin("CC BY 4.0", "archive"), "b/c.mp4": Origin("CC0", "camera")}
    assert read_origins(IngestConfig()) == {}
    with pytest.raises(PathError):
        read_origins(IngestConfig(sources=tmp_path / "absent"))


def test_all_bad_lines_are_told_at_once(tmp_path: Path):
    path = tmp_path / "sources.jsonl"
    lines = [
        '{"video": "a.mp4"}',
        "{",
        "[]",
        '{"video": 1}',
        '{"video": "a.mp4"}',
        '{"video": "b", "license": "x"}',
        '{"video": "c", "source": 3}',
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(CurationError) as error:
        read_origins(IngestConfig(sources=path))
    told = str(error.value)
    assert "line 2: no JSON; line 3: no object with a video; line 4: no object with a video; line 5: a.mp4 is named a second time" in told
    assert "line 6: unknown field license; line 7: licence and source are texts" in told and "line 1" not in told
    path.write_text("{\n" * 25)
    with pytest.raises(CurationError, match="line 20: no JSON; and 5 more"):
        read_origins(IngestConfig(sources=path))


# Which are the same: by hand


def test_distance_is_the_mean_over_the_frames():
    """Two frames of 64 bits that differ in 20 and 0: 10 on average. Each video's own frames differ in 44 or 64."""
    left, right = video("a", [ZERO, ONES]), video("b", [flipped(ZERO, 20), ONES])
    assert is_same(left, right, 10.0) and not is_same(left, right, 9.9)


def test_distance_is_measured_against_the_spread():
    """Frames of one studio: they differ by 10 bits. By 4 it is the same video, by 5 another."""
    mine = video("a", [ZERO, flipped(ZERO, 10)])
    assert looks_of([mine]).spreads[0] == pytest.approx(10.0)
    assert is_same(mine, video("b", [flipped(ZERO, 4), flipped(ZERO, 14)]))  # the spread of b is 10, too
    assert not is_same(mine, video("b", [flipped(ZERO, 5), flipped(ZERO, 15)]))
    nearer = f"{sum(1 << bit for bit in (1, 2, 3, 4, 5, 6, 7, 8, 20, 21)):016x}"  # 4 from mine, 8 from its own first frame
    assert not is_same(mine, video("b", [flipped(ZERO, 4), nearer]))  # the smaller spread counts
    assert looks_of([video("c", [ZERO, ONES, HALF])]).spreads[0] == pytest.approx((64 + 32 + 32) / 3)


def test_videos_that_do_not_move_are_the_same_within_a_bit():
    still = video("a", [HALF] * 16)
    assert is_same(still, video("b", [HALF] * 16)) and is_same(still, video("b", [flipped(HALF, 1)] * 16))
    assert not is_same(still, video("b", [flipped(HALF, 2)] * 16))


def test_frames_without_structure_prove_nothing():
    colour = video("a", [""] * 16)
    assert not is_same(colour, video("b", [""] * 16)) and not is_same(colour, video("b", [ZERO] * 16))
    moving = [ZERO, ONES, HALF, flipped(HALF, 20)]
    assert is_same(video("a", moving + [""] * 12), video("b", moving + [""] * 12))
    assert not is_same(video("a", moving[:3] + [""] * 13), video("b", moving[:3] + [""] * 13))  # fewer than a quarter
    assert is_same(video("a", moving * 3 + [""]), video("b", moving * 3 + [ZERO]))  # 32 bits in one of 13 frames
    assert not is_same(video("a", moving + [""] * 3), video("b", moving + [ZERO] * 3))  # 32 bits in three of 7


def test_durations_must_agree():
    mine = video("a", [ZERO, ONES], 60.0)
    assert is_same(mine, video("b", [ZERO, ONES], 63.0)) and not is_same(mine, video("b", [ZERO, ONES], 63.2))
    assert is_same(video("a", [ZERO, ONES], 10.0), video("b", [ZERO, ONES], 12.0))
    assert not is_same(video("a", [ZERO, ONES], 10.0), video("b", [ZERO, ONES], 12.1))


def test_numbers_of_frames_must_agree():
    with pytest.raises(ValueError, match="same number of frames"):
        looks_of([video("a", [ZERO]), video("b", [ZERO, ONES])])


@pytest.mark.parametrize("block", [1, 3, 128])
def test_blocks_find_what_one_by_one_finds(block: int, monkeypatch: pytest.MonkeyPatch):
    """Against the obvious loops, on videos that are near to each other in chains."""
    monkeypatch.setattr(hashes, "BLOCK", block)
    generator = np.random.default_rng(5)
    base = [generator.bytes(8).hex() for _ in range(4)]
    bits = [int(generator.integers(0, 16)) for _ in range(40)]
    videos = [video(f"{number:02d}", [flipped(one, bits[number]) for one in base]) for number in range(40)]
    expected: list[int] = []
    for number, mine in enumerate(videos):
        before = [other for other in range(number) if expected[other] == -1 and is_same(mine, videos[other])]
        expected.append(before[0] if before else -1)
    assert first_same_before(looks_of(videos), MAX).tolist() == expected
    assert 2 <= expected.count(-1) <= 20


def test_the_first_by_path_stays_and_drops_name_the_other():
    moving = [ZERO, ONES, HALF]
    videos = [
        video("c.mp4", moving),
        video("b.mp4", [flipped(one, 1) for one in moving]),
        video("a.mp4", [HALF, ZERO, ZERO]),
        video("d.mp4", moving[::-1], digest="x"),
        video("e.mp4", moving[::-1], digest="x"),
        video("f.mp4", [ONES, ZERO, ONES]),
        video("g.mp4", [ZERO, ZERO, HALF], digest="y"),
    ]
    held_out = [video("bench/1.mp4", [flipped(ONES, 2), ZERO, ONES]), video("bench/2.mp4", [""] * 3, digest="y")]
    outcome = deduplicate(videos, held_out, MAX)
    assert [one.video for one in outcome.kept] == ["a.mp4", "b.mp4", "d.mp4"]
    assert [(drop.video, drop.reason, drop.message) for drop in outcome.dropped] == [
        ("c.mp4", "duplicate_content", "the same as b.mp4"),
        ("e.mp4", "duplicate_bytes", "the same as d.mp4"),
        ("f.mp4", "in_held_out", "the same as bench/1.mp4"),
        ("g.mp4", "in_held_out", "the same as bench/2.mp4"),
    ]
    assert deduplicate([], held_out, MAX).kept == ()
    assert len(deduplicate(videos, [], 0.0).kept) == 6


# Which are the same: real files


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_world(WorldConfig(out=out, num_videos=24, seconds=(40.0, 44.0), size=112, workers=1))
    return out / "videos"


def encode(path: Path, frames: list[np.ndarray], fps: float, crf: int = 20) -> Path:
    height, width = frames[0].shape[:2]
    with VideoWriter(path, width, height, gop=12, fps=fps, crf=crf) as writer:
        for number, rgb in enumerate(frames):
            writer.write(rgb, number / fps)
    return path


def decoded(path: Path, size: tuple[int, int], fps: float = 2.0, skip: int = 0) -> list[np.ndarray]:
    info = probe(path, LIMITS)
    times_s = np.arange(skip, int(info.duration_s * fps)) / fps
    return list(decode_at(path, times_s, size, LIMITS).pixels)


def looked_at(path: Path) -> SourceVideo:
    info, found = hashes_of(path, LIMITS, CONFIG.hash_frames)
    return SourceVideo(path.name, path.name, info.duration_s, info.width, info.height, info.num_frames, found, "", "")


def test_a_video_in_another_size_and_quality_is_the_same(world: Path, tmp_path: Path):
    """Measured on 40 worlds: 1.0 to 3.5 bits, at half the frame rate or half a second later up to 9.8; different ones: 21 and more."""
    files = sorted(world.glob("*.mp4"))[:4]
    for number, path in enumerate(files):
        encode(tmp_path / f"small{number}.mp4", decoded(path, (56, 72)), 2.0, crf=36)
        encode(tmp_path / f"slow{number}.mp4", decoded(path, (112, 112), fps=1.0), 1.0)
        encode(tmp_path / f"late{number}.mp4", decoded(path, (112, 112), skip=1), 2.0)
    videos = [looked_at(path) for path in [*files, *sorted(tmp_path.glob("*.mp4"))]]
    outcome = deduplicate(videos, [], MAX)
    assert [one.video for one in outcome.kept] == [path.name for path in files]
    assert {drop.video: drop.message for drop in outcome.dropped} == {
        f"{kind}{number}.mp4": f"the same as {path.name}" for number, path in enumerate(files) for kind in ("small", "slow", "late")
    }


def test_worlds_of_one_folder_are_different(world: Path):
    """As long as each other, in the same eight places with the same six figures."""
    videos = [looked_at(path) for path in sorted(world.glob("*.mp4"))]
    assert deduplicate(videos, [], MAX).dropped == ()
    distances = [
        np.mean([bin(int(one, 16) ^ int(two, 16)).count("1") for one, two in zip(left.hashes, right.hashes, strict=True)])
        for number, left in enumerate(videos)
        for right in videos[:number]
    ]
    assert min(distances) > 1.5 * MAX


def studio(seed: int) -> list[np.ndarray]:
    """40 s of somebody in front of a background that is the same in every video."""
    background = np.random.default_rng(9).normal(0, 1, (8, 8, 3)).repeat(12, 0).repeat(16, 1) * 40 + 120
    generator = np.random.default_rng(seed)
    x, colour = 64.0, tuple(int(part) for part in generator.integers(0, 255, 3))
    frames = []
    for _ in range(80):
        x = float(np.clip(x + generator.normal(0, 4), 40, 88))
        image = Image.fromarray(np.clip(background, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        draw.ellipse((x - 10, 20, x + 10, 46), fill=(224, 172, 140))
        draw.rectangle((x - 24, 46, x + 24, 96), fill=colour)
        frames.append(np.asarray(image))
    return frames


def test_talks_in_one_studio_are_different_and_their_copies_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    videos = []
    for seed in range(5):
        frames = studio(seed)
        videos.append(looked_at(encode(tmp_path / f"talk{seed}.mp4", frames, 2.0)))
        small = [np.asarray(Image.fromarray(rgb).resize((64, 48))) for rgb in frames]
        videos.append(looked_at(encode(tmp_path / f"talk{seed}_copy.mp4", small, 2.0, crf=36)))
    assert [one.video for one in deduplicate(videos, [], MAX).kept] == [f"talk{seed}.mp4" for seed in range(5)]
    monkeypatch.setattr(hashes, "SHARE_OF_SPREAD", 64.0)
    assert len(deduplicate(videos, [], MAX).kept) < 5  # distance alone takes them for one


def test_still_colours_are_not_each_other(tmp_path: Path):
    black, red = (np.broadcast_to(np.array(rgb, np.uint8), (48, 64, 3)) for rgb in ((0, 0, 0), (200, 30, 30)))
    videos = [looked_at(encode(tmp_path / name, [rgb] * 60, 2.0)) for name, rgb in (("a.mp4", black), ("b.mp4", red), ("c.mp4", black))]
    assert all(set(one.hashes) == {""} for one in videos)
    assert len(deduplicate(videos, [], MAX).kept) == 3


def test_a_hash_does_not_depend_on_size():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    rgb = np.asarray(noise.resize((320, 240), Image.Resampling.BICUBIC))
    large, small = frame_hash(rgb), frame_hash(np.asarray(Image.fromarray(rgb).resize((64, 64))))
    assert bin(int(large, 16) ^ int(small, 16)).count("1") <= 2
    assert bin(int(large, 16) ^ int(frame_hash(rgb[::-1]), 16)).count("1") > 15


def test_held_out_videos_are_found_across_folders(world: Path, tmp_path: Path):
    train, bench = tmp_path / "train", tmp_path / "bench"
    for folder in (train / "sub", bench):
        folder.mkdir(parents=True)
    first, second, third = sorted(world.glob("*.mp4"))[:3]
    (train / "bytes.mp4").write_bytes(first.read_bytes())
    (bench / "x.mp4").write_bytes(first.read_bytes())
    encode(train / "sub" / "looks.mp4", decoded(second, (56, 56)), 2.0, crf=34)
    (bench / "y.mp4").write_bytes(second.read_bytes())
    (train / "free.mp4").write_bytes(third.read_bytes())
    cut(good_mp4(bench / "z.mp4"), 0.5)
    config = CONFIG.model_copy(update={"held_out": (bench,), "min_seconds": 30.0})
    with KeyedLines(tmp_path / "state", "a") as store:
        found = [inspect(train, name, config, DigestIndex(), store) for name in list_files(train, config)[0]]
        held_out = inspect_held_out(config.model_copy(update={"min_seconds": 1e6}), DigestIndex(), store)
    assert [drop.reason for drop in held_out.dropped] == ["held_out_unreadable"] and "z.mp4" in str(held_out.dropped[0].video)
    outcome = deduplicate([one for one in found if isinstance(one, SourceVideo)], held_out.kept, MAX)
    assert [one.video for one in outcome.kept] == ["free.mp4"]
    assert [(drop.video, drop.reason, drop.message) for drop in outcome.dropped] == [
        ("bytes.mp4", "in_held_out", f"the same as {bench}/x.mp4"),
        ("sub/looks.mp4", "in_held_out", f"the same as {bench}/y.mp4"),
    ]
