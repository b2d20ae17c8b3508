"""ask, export, world and tiny through the command line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from longtake.cli import main
from longtake.config.stages import RlConfig, SftConfig
from longtake.models import load_model
from longtake.stages import rl as rl_stage
from longtake.stages import sft as sft_stage
from longtake.testing.training import last_weights
from longtake.training.checkpoint import saved_weights
from longtake.training.trainable import choose_trainable

Capture = pytest.CaptureFixture[str]


def ask(video: Path, model: Path, *more: str) -> int:
    options = ["--video", str(video), "--model", str(model), "--rollout.max_new_tokens", "6", "--frames.max_frames", "4"]
    return main(["ask", "Where is the key?\nA. shop\nB. cave", *options, "--frames.max_pixels_per_frame", "784", *more])


def test_ask_a_good_file(rows: Path, base: Path, tmp_path: Path, capfd: Capture) -> None:
    """Anywhere on the disk, whatever its name; the answer on stdout, tokens, seconds and memory on stderr."""
    video = tmp_path / "my holiday [bold].mp4"
    video.write_bytes(next((rows.parent / "videos").glob("*.mp4")).read_bytes())
    assert ask(video, base) == 0
    told = capfd.readouterr()
    assert told.out.strip()
    assert "video: 2 temporal groups of 2 x 2 patches, 2 tokens" in told.err and "peak memory" in told.err and "decode" in told.err


@pytest.mark.parametrize("name", ["missing", "fifo", "damaged", "empty", "folder", "device"])
def test_ask_a_file_that_cannot_be_used(rows: Path, base: Path, tmp_path: Path, capfd: Capture, name: str) -> None:
    whole = next((rows.parent / "videos").glob("*.mp4")).read_bytes()
    path = tmp_path / "video.mp4"
    made: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "fifo": lambda: os.mkfifo(path),
        "damaged": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "empty": lambda: path.write_bytes(b""),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
    }
    made[name]()
    assert ask(path, base) == 2
    told = capfd.readouterr()
    errors = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "video.mp4" in errors[0] and "Remedy: " in errors[0] and "Traceback" not in told.err
    assert told.out == ""


def test_ask_with_subtitles_and_without_a_model(rows: Path, tmp_path: Path, base: Path, capfd: Capture) -> None:
    video = next((rows.parent / "videos").glob("*.mp4"))
    assert ask(video, base, "--subtitles", str(video.with_suffix(".srt"))) == 0
    assert ask(video, base, "--subtitles", str(tmp_path / "none.srt")) == 2
    assert ask(video, tmp_path / "nowhere") == 2
    assert "error: " in capfd.readouterr().err


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_export_gives_equal_logits(sft: Callable[..., SftConfig], tmp_path: Path, lora: dict | None) -> None:
    """The trained model in memory against what plain transformers reads. Full: bit for bit; merged adapters are rounded once."""
    config = sft(model={"lora": lora}, max_steps=3, optimizer={"lr": 1e-2})
    sft_stage.run(config)
    assert main(["export", str(config.out), "--out", str(tmp_path / "model")]) == 0
    trained = load_model(config.model)
    choose_trainable(trained, config.model, config.seed)
    weights = last_weights(config.out)
    with torch.no_grad():
        for name, tensor in saved_weights(trained).items():
            tensor.copy_(weights[f"weights/{name}"])
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        wanted, start = trained.hf(input_ids=ids).logits, load_model(config.model).hf(input_ids=ids).logits
        found = plain(input_ids=ids).logits
    assert float((wanted - start).abs().max()) > 0.05, "training has changed them"
    assert float((wanted - found).abs().max()) <= (1e-5 if lora else 0.0)
    assert main(["export", str(config.out), "--out", str(tmp_path / "model")]) == 2, "an export never overwrites"


def test_export_of_nothing(tmp_path: Path, capfd: Capture) -> None:
    assert main(["export", str(tmp_path / "none"), "--out", str(tmp_path / "model")]) == 2
    assert "has no latest checkpoint" in capfd.readouterr().err


def test_rl_goes_on_from_an_export(sft: Callable[..., SftConfig], rl: Callable[..., RlConfig], tmp_path: Path) -> None:
    """The chain of the quickstart: SFT, its best or last as a directory, RL from there."""
    sft_stage.run(sft("sft"))
    assert main(["export", str(sft("sft").out), "--out", str(tmp_path / "model")]) == 0
    config = rl("rl", model={"path": str(tmp_path / "model")}, steps=1)
    rl_stage.run(config)
    assert last_weights(config.out).keys() == last_weights(sft("sft").out).keys()


def test_world_make_twice_reuses(tmp_path: Path, capfd: Capture) -> None:
    command = ["world", "make", "--out", str(tmp_path / "world"), "--num_videos", "2", "--seconds", "10,11", "--workers", "1"]
    assert main(command) == 0
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "world").rglob("*") if path.is_file()}
    assert len(stamps) >= 7
    assert main(command) == 0
    assert "already holds this world (2 videos, 8 rows)" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert main([*command, "--seed", "1"]) == 2
    assert "made with other settings" in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.timeout(400)
def test_tiny_train_is_reproducible(tmp_path: Path, capfd: Capture) -> None:
    """Four steps: the same bytes twice, also when interrupted between phases, others from another seed; nothing is overwritten or mixed."""
    sizes = ["--num_videos", "8", "--num_held_out", "2", "--steps", "4", "--copy_steps", "2", "--read_steps", "2", "--focus_steps", "2"]
    sizes += ["--batch_size", "4", "--frames", "4,2", "--num_threads", "1"]
    for name, seed in (("one", "0"), ("two", "0"), ("three", "1")):
        assert main(["tiny", "train", "--out", str(tmp_path / name), "--seed", seed, *sizes]) == 0
    one, two, three = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three
    assert (tmp_path / "one/log.jsonl").read_bytes() == (tmp_path / "two/log.jsonl").read_bytes()
    assert main(["tiny", "train", "--out", str(tmp_path / "one"), *sizes]) == 2
    assert "is already there" in capfd.readouterr().err
    for name in ("read", "model"):
        shutil.rmtree(tmp_path / "two" / name)
    assert main(["tiny", "train", "--out", str(tmp_path / "two"), "--seed", "3", *sizes]) == 2
    assert "holds a run with other settings" in capfd.readouterr().err
    assert main(["tiny", "train", "--out", str(tmp_path / "two"), *sizes]) == 0
    assert (tmp_path / "two" / "model" / "model.safetensors").read_bytes() == one
    assert (tmp_path / "one/log.jsonl").read_bytes() == (tmp_path / "two/log.jsonl").read_bytes()
