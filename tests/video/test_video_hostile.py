"""Damaged and hostile files: each gives its own typed error that names file, reason and remedy; none hurts."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from longtake.config.sections import VideoConfig, VideoLimits
from longtake.errors import PathError, VideoDamagedError, VideoError, VideoLimitError, VideoMissingError
from longtake.testing.videos import HOSTILE, HOSTILE_LIMITS, duration_absurd, good_mp4, write_video
from longtake.types import VideoRef
from longtake.video.decode import decode_at, load_frames
from longtake.video.index import DigestIndex
from longtake.video.paths import regular_file, resolve_inside
from longtake.video.probe import probe

ALL_FRAMES = VideoConfig(max_frames=120, limits=HOSTILE_LIMITS)

IN_ITS_OWN_PROCESS = """
import json, sys
from pathlib import Path
from longtake.config.sections import VideoConfig
from longtake.errors import VideoError
from longtake.testing.videos import HOSTILE, HOSTILE_LIMITS
from longtake.types import VideoRef
from longtake.video.decode import load_frames
import resource
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
for name, hostile in HOSTILE.items():
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    path = hostile.make(folder)
    try:
        load_frames(VideoRef(path, ""), VideoConfig(max_frames=120, limits=HOSTILE_LIMITS), 28, 2)
        print(json.dumps([name, "none", ""]))
    except VideoError as error:
        print(json.dumps([name, type(error).__name__, str(error)]))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """name -> (error class, message), from one process with bounded time and memory that must live through all files."""
    command = [sys.executable, "-c", IN_ITS_OWN_PROCESS, str(tmp_path_factory.mktemp("hostile"))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""  # no log of FFmpeg, no traceback
    return {name: (kind, message) for name, kind, message in map(json.loads, run.stdout.splitlines())}


def test_there_are_enough() -> None:
    assert len(HOSTILE) >= 50


@pytest.mark.parametrize("name", HOSTILE)
def test_own_error(outcomes: dict[str, tuple[str, str]], name: str) -> None:
    kind, message = outcomes[name]
    assert kind == HOSTILE[name].error.__name__
    assert HOSTILE[name].words in message
    assert f"/{name}/" in message  # the file
    assert ". Rule: " in message and ". Remedy: " in message
    assert "\n" not in message


def test_whole_folder_is_counted(outcomes: dict[str, tuple[str, str]]) -> None:
    """Every file keeps its place, and no two kinds of fault look alike."""
    counts: dict[str, int] = {}
    for kind, _ in outcomes.values():
        counts[kind] = counts.get(kind, 0) + 1
    assert sum(counts.values()) == len(HOSTILE)
    assert set(counts) == {"VideoMissingError", "VideoEmptyError", "VideoNoStreamError", "VideoDamagedError", "VideoLimitError"}


def test_good_file_passes_under_the_same_limits(tmp_path: Path) -> None:
    """Negative control: it is the damage that is refused."""
    for faststart in (True, False):
        frames = load_frames(VideoRef(good_mp4(tmp_path / "v.mp4", faststart=faststart), ""), ALL_FRAMES, 28, 2)
        assert frames.times_s.tolist() == [number / 2 for number in range(120)]


def test_absurd_duration_in_a_header_is_harmless(tmp_path: Path) -> None:
    assert probe(duration_absurd(tmp_path), HOSTILE_LIMITS).duration_s == pytest.approx(60.0)


def test_truncated_file_is_not_its_first_part_repeated(tmp_path: Path) -> None:
    """Data for 20 of 60 s: an error for any target, also one whose frame is there."""
    path = good_mp4(tmp_path / "v.mp4", faststart=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    for time_s in (0.0, 10.0, 50.0):
        with pytest.raises(VideoDamagedError, match="truncated"):
            decode_at(path, [time_s], (28, 28), HOSTILE_LIMITS)


def test_playlist_opens_nothing(tmp_path: Path) -> None:
    """A playlist names a local server: no request may arrive."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/x.ts"
        texts = [f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n", f"ffconcat version 1.0\nfile {url}\n", url]
        for number, text in enumerate(texts):
            path = tmp_path / f"{number}.mp4"
            path.write_text(text)
            with pytest.raises(VideoDamagedError):
                probe(path, VideoLimits())
        for name in (url, f"concat:{url}", f"cache:{url}"):
            with pytest.raises(VideoMissingError):
                probe(Path(name), VideoLimits())
        server.shutdown()
    assert asked == []


def test_each_limit(tmp_path: Path) -> None:
    path = good_mp4(tmp_path / "v.mp4")
    size = path.stat().st_size
    tight = {"max_bytes": size - 1, "max_seconds": 59.9, "max_frame_pixels": 48 * 64 - 1, "max_decoded_frames": 119}
    exact = {"max_bytes": size, "max_seconds": 60.0, "max_frame_pixels": 48 * 64, "max_decoded_frames": 120}
    for name in tight:
        with pytest.raises(VideoLimitError, match=name):
            decode_at(path, [30.0], (28, 28), VideoLimits(**{name: tight[name]}))
    assert decode_at(path, [30.0], (28, 28), VideoLimits(**exact)).times_s.tolist() == [30.0]


@pytest.mark.parametrize("name", ["x\0.mp4", "x" * 5000])
def test_impossible_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(VideoMissingError):
        probe(tmp_path / name, VideoLimits())


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi", "ts", "flv"])
def test_random_damage_never_escapes(tmp_path: Path, container: str) -> None:
    """Wrong bytes anywhere: frames or a VideoError, nothing else (a crash would take this process with it)."""
    import numpy as np

    options = {"bf": "0"} if container in ("avi", "flv") else {}
    whole = write_video(tmp_path / f"v.{container}", [number / 5 for number in range(20)], options=options).read_bytes()
    generator = np.random.default_rng(5)
    outcomes = {"frames": 0, "error": 0}
    for _ in range(40):
        data = np.frombuffer(whole, np.uint8).copy()
        at = generator.integers(0, len(data), generator.integers(1, 12))
        data[at] = generator.integers(0, 256, len(at))
        path = tmp_path / f"damaged.{container}"
        path.write_bytes(data.tobytes())
        try:
            load_frames(VideoRef(path, ""), VideoConfig(max_frames=8, limits=HOSTILE_LIMITS), 28, 2)
            outcomes["frames"] += 1
        except VideoError:
            outcomes["error"] += 1
    assert outcomes["error"] > 0


@pytest.mark.parametrize(
    ("relative", "reason"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("/etc/passwd", "absolute"),
        ("~/video.mp4", "absolute"),
        ("../video.mp4", ".."),
        ("a/../../video.mp4", ".."),
        ("a/..", ".."),
        ("http://host/v.mp4", "URL"),
        ("file:video.mp4", "URL"),
        ("concat:a|b", "URL"),
        ("C:/video.mp4", "drive"),
        ("a\\..\\b.mp4", "back slash"),
        ("v.mp4\0.txt", "control"),
        ("v\n.mp4", "control"),
        ("x" * 300, "too long"),
        ("a/" * 2500 + "v.mp4", "too long"),
        ("\ud800.mp4", "Unicode"),
        (".", "leads to"),
        ("link_out/v.mp4", "leads to"),
        ("file_out.mp4", "leads to"),
        ("loop/v.mp4", "circle|levels|leads|link"),
    ],
)
def test_paths_that_rows_may_not_give(tmp_path: Path, relative: str, reason: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link_out").symlink_to(tmp_path)
    (root / "file_out.mp4").symlink_to("/etc/passwd")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(PathError, match=reason):
        resolve_inside(root, relative)


def test_paths_that_rows_may_give(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "inside").symlink_to(tmp_path / "videos")
    for relative in ("v.mp4", "videos/a b (1) ü.mp4", "./videos/v.mp4", "videos/..v.mp4"):
        assert resolve_inside(tmp_path, relative) == (tmp_path / relative).resolve()
    assert resolve_inside(tmp_path, "inside/v.mp4") == tmp_path.resolve() / "videos" / "v.mp4"


def test_root_that_is_a_prefix_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "root2")
    with pytest.raises(PathError):
        resolve_inside(tmp_path / "root", "link/v.mp4")


def test_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"x")
    assert regular_file(path) == path
    for wrong in (tmp_path, tmp_path / "missing", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(PathError):
            regular_file(wrong)


def test_digest_of_special_files(tmp_path: Path) -> None:
    index = DigestIndex(None, max_bytes=10)
    (tmp_path / "v").write_bytes(b"x" * 11)
    with pytest.raises(VideoLimitError, match="max_bytes"):
        index.ref(tmp_path / "v")
    for path in (Path("/dev/zero"), tmp_path, tmp_path / "missing"):
        with pytest.raises(VideoMissingError):
            index.ref(path)
