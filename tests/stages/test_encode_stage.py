"""`longtake encode`: what it leaves is what the run of the same file would have made; it goes on where it was; shards share the work."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from longtake.cli import main
from longtake.config.load import dump_config
from longtake.config.stages import EncodeConfig, EvaluateConfig, RlConfig, SftConfig
from longtake.data import videos
from longtake.data.row_files import write_rows
from longtake.errors import VideoDamagedError
from longtake.stages import encode as stage
from longtake.stages import rl as rl_stage
from longtake.testing.processes import run_processes
from longtake.testing.training import NUM_VIDEOS, ROWS_PER_VIDEO, assert_same_run, metrics_of
from longtake.types import Failure, Row
from longtake.video.decode import load_frames
from longtake.video.index import DigestIndex

Capture = pytest.CaptureFixture[str]
Make = Callable[..., RlConfig]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files decoded so far."""
    names: list[str] = []

    def load(ref, *args, **kwargs):
        names.append(ref.path.name)
        return load_frames(ref, *args, **kwargs)

    monkeypatch.setattr(videos, "load_frames", load)
    return names


def saved(config: RlConfig | SftConfig | EvaluateConfig, path: Path) -> str:
    path.write_text(dump_config(config), encoding="utf-8")
    return str(path)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.safetensors"))


def test_the_run_of_the_same_file_finds_everything(rl: Make, rows: Path, tmp_path: Path, decoded: list[str], capfd: Capture) -> None:
    cache = {"folder": tmp_path / "cache"}
    validation = {"validation": {"data": {"rows": rows}, "num_rows": 2, "max_new_tokens": 2}}
    config = rl("run", cache=cache, **validation)
    assert main(["encode", saved(config, tmp_path / "rl.json")]) == 0
    assert len(decoded) == len(set(decoded)) == NUM_VIDEOS == len(files(tmp_path / "cache"))
    told = capfd.readouterr()
    assert f"encode: {NUM_VIDEOS} videos: {NUM_VIDEOS} encoded; 0 failed; 0 rows cannot be read" in told.err and told.out == ""
    decoded.clear()
    assert main(["encode", saved(config, tmp_path / "rl.json")]) == 0
    assert f"encode: {NUM_VIDEOS} videos: 0 encoded" in capfd.readouterr().err
    rl_stage.run(config)
    assert decoded == []
    last = metrics_of(config.out)[-1]
    assert (last["encode/groups"], last["cache/disk_hits"] > 0, last["cache/misses"]) == (0, True, 0)
    rl_stage.run(rl("alone", **validation))
    assert_same_run(config.out, rl("alone").out)


def test_no_byte_of_a_known_video_is_read_again(rl: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = rl("run", cache={"folder": tmp_path / "cache"})
    assert main(["encode", saved(config, tmp_path / "rl.json")]) == 0
    hashed = []
    remember = DigestIndex._remember
    monkeypatch.setattr(DigestIndex, "_remember", lambda self, key, entry: hashed.append(key) or remember(self, key, entry))
    rl_stage.run(config)
    assert hashed == []


def test_it_goes_on_where_it_was_stopped(rl: Make, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch, capfd: Capture):
    path = saved(rl("run", cache={"folder": tmp_path / "cache"}), tmp_path / "rl.json")
    load = videos.load_frames

    def stopping(*args, **kwargs):
        if len(decoded) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return load(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(videos, "load_frames", stopping)
        assert main(["encode", path]) == 143
    assert f"stopped: 3 of {NUM_VIDEOS} videos are encoded; start again to go on" in capfd.readouterr().err
    assert len(files(tmp_path / "cache")) == 3
    assert main(["encode", path]) == 0
    assert len(decoded) == len(set(decoded)) == NUM_VIDEOS == len(files(tmp_path / "cache"))


def test_shards_share_the_work(rl: Make, tmp_path: Path, decoded: list[str]) -> None:
    """Four shards of six videos, one after the other over one folder: none twice, none left out."""
    path = saved(rl("run", cache={"folder": tmp_path / "cache"}), tmp_path / "rl.json")
    sizes = []
    for shard in range(4):
        assert main(["encode", path, "--num-shards", "4", "--shard", str(shard)]) == 0
        sizes.append(len(decoded) - sum(sizes))
    assert sizes == [2, 2, 1, 1]
    assert len(set(decoded)) == NUM_VIDEOS == len(files(tmp_path / "cache"))
    assert len(DigestIndex(tmp_path / "cache" / "digests.json")._entries) == NUM_VIDEOS


def encode_in_a_launch(path: str) -> int:
    return main(["encode", path, "--num-shards", "2", "--shard", "1"])


def test_processes_of_a_launch_share_their_machines_shard(rl: Make, tmp_path: Path) -> None:
    """Machine 1 of 2 with two processes has shards 2 and 3 of 4; one process alone then finds these two and does the rest."""
    path = saved(rl("run", cache={"folder": tmp_path / "cache"}), tmp_path / "rl.json")
    assert run_processes(encode_in_a_launch, 2, path, timeout_s=120) == [0, 0]
    assert len(files(tmp_path / "cache")) == 2
    assert main(["encode", path]) == 0
    assert len(files(tmp_path / "cache")) == NUM_VIDEOS


def damaged_world(rows: Path, folder: Path, names: list[str]) -> Path:
    shutil.copytree(rows.parent, folder)
    for name in names:
        video = folder / "videos" / name
        video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    return folder / rows.name


@pytest.mark.parametrize(("allowed", "code"), [(0.5, 0), (0.1, 2)])
def test_damaged_videos_are_named_and_counted(
    rl: Make, rows: Path, tmp_path: Path, decoded: list[str], capfd: Capture, allowed: float, code: int
) -> None:
    """One video of six: two rows of twelve. All others are encoded whatever the outcome."""
    name = sorted(path.name for path in (rows.parent / "videos").glob("*.mp4"))[1]
    path = damaged_world(rows, tmp_path / "world", [name])
    with path.open("a") as file:
        file.write("{}\n")
    config = rl("run", cache={"folder": tmp_path / "cache"}, data={"rows": path, "max_failed_fraction": allowed})
    assert main(["encode", saved(config, tmp_path / "rl.json")]) == code
    told = capfd.readouterr().err
    assert f"{NUM_VIDEOS} videos: {NUM_VIDEOS - 1} encoded; 1 failed (VideoDamagedError 1); 1 rows cannot be read (RowError 1)" in told
    assert told.count(f"{name}: ") >= 1
    assert len(files(tmp_path / "cache")) == NUM_VIDEOS - 1
    if code:
        assert f"{ROWS_PER_VIDEO + 1} of {2 * NUM_VIDEOS + 1} rows cannot be used" in told


def test_a_full_folder_ends_it_with_what_to_do(rl: Make, tmp_path: Path, capfd: Capture) -> None:
    config = rl("run", cache={"folder": tmp_path / "cache", "disk_bytes": 4000})
    assert main(["encode", saved(config, tmp_path / "rl.json")]) == 2
    told = capfd.readouterr().err
    assert "the cache folder took 2 videos and refused" in told and "raise cache.disk_bytes" in told
    assert len(files(tmp_path / "cache")) == 2


def test_numbers_of_frames_of_an_evaluation(rows: Path, base: Path, tmp_path: Path, decoded: list[str]) -> None:
    config = EvaluateConfig.model_validate(
        {
            "out": tmp_path / "evaluation",
            "model": {"path": str(base), "device": "cpu"},
            "video": {"max_pixels_per_frame": 28 * 28},
            "data": {"rows": rows, "max_rows": 4},
            "frames": (2, 4),
            "cache": {"folder": tmp_path / "cache"},
        }
    )
    assert main(["encode", saved(config, tmp_path / "evaluate.json")]) == 0
    assert len(decoded) == 2 * len(set(decoded)) == len(files(tmp_path / "cache"))


REFUSED = {
    "shard": (["--shard", "2", "--num-shards", "2"], "shards are counted from 0"),
    "no folder": (["--cache.folder", "none"], "set cache.folder"),
    "trained tower": (["--model.train-vision", "true"], "a trained tower's embeddings change"),
    "blind": (["--data.with-video", "false"], "a blind run has no videos"),
    "option of the run": (["--steps", "3"], "unknown option --steps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(rl: Make, tmp_path: Path, capfd: Capture, name: str) -> None:
    options, message = REFUSED[name]
    assert main(["encode", saved(rl("run", cache={"folder": tmp_path / "cache"}), tmp_path / "rl.json"), *options]) == 2
    assert message in capfd.readouterr().err


def test_the_file_of_any_run_will_do_and_a_typing_error_will_not(rl: Make, sft: Callable[..., SftConfig], tmp_path: Path) -> None:
    values = [config.model_dump() | {"cache": {"folder": tmp_path}} for config in (rl("run"), sft("run"))]
    for value in values:
        config = EncodeConfig.model_validate(value)
        assert config.video.max_frames == 4 and config.cache.folder == tmp_path
        with pytest.raises(ValueError, match="rolout"):
            EncodeConfig.model_validate(value | {"rolout": {}})


def test_videos_come_in_the_order_of_the_rows(rl: Make, rows: Path, tmp_path: Path) -> None:
    config = EncodeConfig.model_validate(rl("run", cache={"folder": tmp_path}).model_dump())
    rows_read = list(stage.rows_of(config.data, None))
    media = stage.media_of(rows_read)
    assert len(rows_read) == NUM_VIDEOS * ROWS_PER_VIDEO and len(media) == NUM_VIDEOS
    assert [path.name for path, _ in media] == sorted(path.name for path, _ in media)


def image_rows(folder: Path, names: list[tuple[str, ...]], num_texts: int) -> Path:
    """Rows of these images, of which d.png is cut in half, and rows of text alone behind them."""
    folder.mkdir()
    for name in "abcd":
        Image.new("RGB", (56, 56), (ord(name), 0, 0)).save(folder / f"{name}.png")
    (folder / "d.png").write_bytes((folder / "d.png").read_bytes()[:60])
    asked = "q?\nA. r\nB. b", "image", "plot", "s", (), "<answer>A</answer>"
    rows = [Row(number, *asked, images=images) for number, images in enumerate(names)]
    texts = [Row(100 + number, asked[0], "text", *asked[2:]) for number in range(num_texts)]
    write_rows(folder / "rows.jsonl", [*rows, *texts])
    return folder / "rows.jsonl"


@pytest.mark.parametrize(
    ("names", "num_texts", "told"),
    [
        ([("a.png",), ("b.png",), ("c.png",), ("d.png",)], 20, ""),
        ([("a.png",), ("b.png",), ("c.png",), ("d.png",)], 4, "1 of 8 rows cannot be used"),
        ([("a.png", "b.png", "c.png"), ("a.png", "d.png")], 18, ""),
        ([("a.png", "b.png", "c.png"), ("a.png", "d.png", "d.png")], 2, "1 of 4 rows cannot be used"),
        ([("a.png",), ("d.png", "e.png")], 18, ""),
        ([], 3, ""),
    ],
)
def test_the_share_of_failures_is_one_of_rows(
    rl: Make, tmp_path: Path, capfd: Capture, names: list[tuple[str, ...]], num_texts: int, told: str
) -> None:
    """At most a tenth of the rows: one without media counts once, as does one with several, and it fails with any of them."""
    path = image_rows(tmp_path / "stills", names, num_texts)
    config = rl("run", data={"rows": path}, cache={"folder": tmp_path / "cache"})
    assert main(["encode", saved(config, tmp_path / "rl.json")]) == (2 if told else 0)
    assert told in capfd.readouterr().err


def test_rows_of_validation_are_encoded_and_refuse_nothing(rl: Make, tmp_path: Path, capfd: Capture) -> None:
    """As in the run, where such a row is a wrong answer."""
    path = image_rows(tmp_path / "stills", [("a.png",), ("d.png",), ("d.png",), ("d.png",)], 0)
    validation = {"validation": {"data": {"rows": path}, "num_rows": 4, "max_new_tokens": 2}}
    assert main(["encode", saved(rl("run", cache={"folder": tmp_path / "cache"}, **validation), tmp_path / "rl.json")]) == 0
    assert f"{NUM_VIDEOS + 2} videos: {NUM_VIDEOS + 1} encoded; 1 failed" in capfd.readouterr().err


def test_each_shard_judges_its_rows() -> None:
    """Media 0 and 2 are those of shard 0. Rows 1 and 4 are dealt out by their places, row 3 is of both."""
    media: list[stage.Media] = [(Path(str(number)), "image") for number in range(4)]
    unreadable = Failure(4, "rows", "RowError", "bad")
    rows: list[stage.MediaRow] = [[media[0]], [], [media[1]], [media[2], media[3]], unreadable]
    error = VideoDamagedError("3", rule="r", remedy="m")
    first = stage.row_outcomes(rows, media[::2], {media[2]: error}, 0, 2)
    second = stage.row_outcomes(rows, media[1::2], {}, 1, 2)
    assert [isinstance(row, Failure) for row in first] == [False, True, True] and first[-1] is unreadable
    assert second == [[], [media[1]], [media[2], media[3]]]
