"""Whole or absent: kills, bit flips and missing parts; the right one is found; a resumed run continues bit for bit."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from longtake.config.sections import CheckpointConfig, DataConfig, LoraConfig, ModelConfig, ObserveConfig, OptimizerConfig
from longtake.config.stages import RlConfig
from longtake.errors import CheckpointError
from longtake.training import checkpoint as checkpoint_module
from longtake.training.checkpoint import CheckpointStore, check_same_experiment, find_checkpoint, read_checkpoint, saved_weights
from longtake.training.optimizer import build_optimizer
from longtake.training.tensor_files import layout_of, read_tensors
from longtake.training.trainable import choose_trainable

CONFIG = RlConfig(out=Path("run"), data=DataConfig(rows=Path("rows.jsonl")))


def _parts(model, config: ModelConfig | None = None):
    choose_trainable(model, config or ModelConfig())
    return model, build_optimizer(model, OptimizerConfig(lr=1e-2, warmup_steps=2), total_steps=10)


def _noisy_step(model, optimizer) -> None:
    """One update whose loss draws from all three generators."""
    ids = torch.randint(0, 300, (2, 6 + random.randrange(3)))
    scale = float(np.random.normal()) + random.gauss(0, 1)
    (scale * model.hf(input_ids=ids).logits.float().log_softmax(-1)[..., 3].mean()).backward()
    optimizer.step()


def _state(model, optimizer) -> dict[str, torch.Tensor]:
    tensors = {f"w.{name}": tensor for name, tensor in saved_weights(model).items()} | optimizer.state_dict()
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run", keep_last=2)


@pytest.mark.parametrize("model_config", [ModelConfig(), ModelConfig(lora=LoraConfig(rank=4, dropout=0.5))], ids=["full", "lora"])
def test_a_resumed_run_continues_bit_for_bit(store: CheckpointStore, new_model, model_config: ModelConfig):
    model, optimizer = _parts(new_model(), model_config)
    for step in range(8):
        if step == 4:
            store.save(4, model, optimizer, CONFIG, position=64, extra={"best": float("-inf"), "at": [1, 2]})
        _noisy_step(model, optimizer)
    expected = _state(model, optimizer)

    def resumed(restore_random: bool, restore_optimizer: bool) -> dict[str, torch.Tensor]:
        random.seed(9), np.random.seed(9), torch.manual_seed(9)
        model, optimizer = _parts(new_model(), model_config)
        found = store.latest()
        assert found is not None and (found.step, found.position, found.extra) == (4, 64, {"best": float("-inf"), "at": [1, 2]})
        store.load(found, model, optimizer if restore_optimizer else None, CONFIG)
        if not restore_random:
            torch.manual_seed(9)
        for _ in range(4):
            _noisy_step(model, optimizer)
        return _state(model, optimizer)

    assert _same(resumed(True, True), expected)
    assert not _same(resumed(False, True), expected)  # negative controls: the state that is restored matters
    assert not _same(resumed(True, False), expected)


def test_what_is_on_disk_is_safetensors_and_json_and_a_tied_head_once(store: CheckpointStore, new_model):
    model, optimizer = _parts(new_model())
    _noisy_step(model, optimizer)
    path = store.save(1, model, optimizer, CONFIG)
    names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    tensors = {f"{part}/{name}" for part in ("weights", "optimizer", "rng") for name in TWO_FILES}
    assert names == tensors | {"config.json", "manifest.json"}
    weights = read_tensors(path / "weights")
    assert "lm_head.weight" not in weights and _same(weights, saved_weights(model))
    assert layout_of(path / "optimizer")["exp_avg.model.language_model.norm.weight"] == ((32,), "float32")
    assert json.loads((path / "config.json").read_text()) == json.loads(CONFIG.model_dump_json())


TWO_FILES = ("model-00001-of-00001.safetensors", "model.safetensors.index.json")


def test_types_are_kept(store: CheckpointStore, new_model):
    model, optimizer = _parts(new_model("bfloat16"))
    _noisy_step(model, optimizer)
    store.save(1, model, optimizer, CONFIG)
    other, other_optimizer = _parts(new_model("bfloat16"))
    store.load(store.latest(), other, other_optimizer)
    assert saved_weights(other)["model.language_model.norm.weight"].dtype == torch.bfloat16
    assert _same(_state(model, optimizer), _state(other, other_optimizer))


def test_the_last_ones_and_the_best_are_kept(store: CheckpointStore, new_model):
    model, optimizer = _parts(new_model())
    assert store.latest() is None and store.best() is None
    for step in (10, 20, 30, 40, 50):
        store.save(step, model, optimizer, CONFIG, best=step in (10, 20))
    assert _names(store) == ["step-00000020", "step-00000040", "step-00000050"]
    assert (store.latest().step, store.best().step) == (50, 20)
    store.mark_best(store.folder / "step-00000040")
    assert store.best().step == 40
    store.save(60, model, optimizer, CONFIG)
    store.save(70, model, optimizer, CONFIG)
    assert _names(store) == ["step-00000040", "step-00000060", "step-00000070"]
    assert find_checkpoint(store.folder.parent).step == 70
    assert find_checkpoint(store.folder.parent, "best").step == 40
    assert find_checkpoint(store.folder / "step-00000060").step == 60


def test_a_step_saved_again_replaces_nothing_and_is_the_newest(store: CheckpointStore, new_model):
    model, optimizer = _parts(new_model())
    store.save(10, model, optimizer, CONFIG, extra={"try": 1})
    store.save(10, model, optimizer, CONFIG, extra={"try": 2})
    assert _names(store) == ["step-00000010", "step-00000010.1"]
    assert store.latest().extra == {"try": 2}


@pytest.mark.parametrize("part", ["weights", "optimizer", "rng"])
@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_checkpoint_is_skipped_with_a_line(store: CheckpointStore, new_model, caplog, part: str, damage: str):
    model, optimizer = _parts(new_model())
    store.save(10, model, optimizer, CONFIG)
    _damage(store.save(20, model, optimizer, CONFIG) / part / TWO_FILES[0], damage)
    with caplog.at_level(logging.WARNING):
        assert store.latest().step == 10
    assert f"step-00000020: {part}/{TWO_FILES[0]}" in caplog.text and "trying an older one" in caplog.text


@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_json_is_skipped(store: CheckpointStore, new_model, name: str, damage: str):
    model, optimizer = _parts(new_model())
    store.save(10, model, optimizer, CONFIG)
    _damage(store.save(20, model, optimizer, CONFIG) / name, damage)
    assert store.latest().step == 10


def test_every_single_digit_changed_in_the_manifest_is_seen(store: CheckpointStore, new_model):
    path = store.save(20, *_parts(new_model()), CONFIG, position=7)
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"position": 7', '"position": 8'))
    with pytest.raises(CheckpointError, match="was changed"):
        read_checkpoint(path)


def test_a_damaged_newest_does_not_push_out_the_good_one(store: CheckpointStore, new_model):
    model, optimizer = _parts(new_model())
    for step in (10, 20, 30):
        path = store.save(step, model, optimizer, CONFIG)
    _damage(path / "weights" / TWO_FILES[0], "cut")
    store.save(25, model, optimizer, CONFIG)  # resumed from 20
    assert _names(store) == ["step-00000020", "step-00000025"]


def test_only_damaged_ones_are_refused_and_none_at_all_is_a_fresh_start(store: CheckpointStore, new_model):
    path = store.save(10, *_parts(new_model()), CONFIG)
    _damage(path / "manifest.json", "missing")
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        store.latest()
    path.rename(store.folder / ".part-0")  # what a kill in the first save leaves
    assert store.latest() is None and store.best() is None
    with pytest.raises(CheckpointError, match="no best checkpoint that is whole"):
        find_checkpoint(store.folder.parent, "best")


def test_a_full_disk_costs_only_the_new_checkpoint(store: CheckpointStore, new_model, monkeypatch):
    model, optimizer = _parts(new_model())
    store.save(10, model, optimizer, CONFIG)

    def no_space(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "_flush", no_space)
    with pytest.raises(CheckpointError, match="No space left"):
        store.save(20, model, optimizer, CONFIG)
    assert [path.name for path in store.folder.iterdir()] == ["step-00000010"]


def test_a_model_of_another_shape_type_or_base_is_refused_before_anything_changes(store: CheckpointStore, new_model):
    lora = ModelConfig(lora=LoraConfig(rank=4))
    model, optimizer = _parts(new_model(), lora)
    _noisy_step(model, optimizer)
    found = read_checkpoint(store.save(1, model, optimizer, CONFIG))
    for other_model, config, message in [
        (new_model(), ModelConfig(lora=LoraConfig(rank=8)), r"\(4, 48\).*\(8, 48\)"),
        (new_model("bfloat16"), lora, "bfloat16|other base"),
        (new_model(), ModelConfig(), "no tensor"),
    ]:
        other, other_optimizer = _parts(other_model, config)
        before = _state(other, other_optimizer)
        with pytest.raises(CheckpointError, match=message):
            store.load(found, other, other_optimizer)
        assert _same(_state(other, other_optimizer), before)
    other = new_model()
    other.hf.model.language_model.norm.weight.data[3] += 1e-3
    with pytest.raises(CheckpointError, match="other base weights"):
        CheckpointStore(store.folder.parent).load(found, *_parts(other, lora))


def test_another_experiment_is_refused_by_name_and_another_length_is_not(store: CheckpointStore, new_model):
    model, optimizer = _parts(new_model())
    found = read_checkpoint(store.save(1, model, optimizer, CONFIG))
    free = CONFIG.model_copy(
        update={
            "out": Path("elsewhere"),
            "steps": 999,
            "max_seconds": 5.0,
            "observe": ObserveConfig(tensorboard=False),
            "checkpoint": CheckpointConfig(every=3),
            "micro_batch_tokens": 64,
        }
    )
    store.load(found, model, optimizer, free)
    other = CONFIG.model_copy(update={"seed": 7, "optimizer": OptimizerConfig(lr=0.5, schedule="constant"), "steps": 3})
    with pytest.raises(CheckpointError) as error:
        store.load(found, model, optimizer, other)
    assert "seed was 0, is 7" in str(error.value) and "optimizer.lr was 1e-06, is 0.5" in str(error.value)
    assert "steps" not in str(error.value)


def test_a_key_on_one_side_only_is_a_difference():
    with pytest.raises(CheckpointError, match=r"model.lora was None, is '\(absent\)'; model.lora.rank was '\(absent\)', is 4"):
        check_same_experiment({"model": {"lora": None}}, {"model": {"lora": {"rank": 4}}})
    check_same_experiment({"steps": 3, "steps_ahead": 1}, {"steps": 4, "steps_ahead": 1})
    with pytest.raises(CheckpointError, match="steps_ahead"):  # a free name frees no longer name
        check_same_experiment({"steps_ahead": 1}, {"steps_ahead": 2})


def test_a_run_of_before_a_field_came_goes_on_with_its_default():
    """What older configurations lack did then what its default does now; anything else is another experiment."""
    now = {"seed": 0, **CONFIG.model_dump(mode="json", include={"rollout": {"engine", "vllm"}, "algorithm": {"importance"}})}
    check_same_experiment({"seed": 0}, now)
    now["algorithm"]["importance"]["kind"] = "mask"
    with pytest.raises(CheckpointError, match=r"importance\.kind was 'auto', is 'mask'"):
        check_same_experiment({"seed": 0}, now)


def test_kill_9_in_the_middle_of_saves_never_costs_the_run(tmp_path: Path):
    """20 children that do nothing but save, each killed at another moment; see save_and_kill.py."""
    script = Path(__file__).with_name("save_and_kill.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path), "20"], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["kills"] == 20
    assert outcome["inside_a_save"] >= 5, outcome  # the trial means nothing if the kills fall between saves
    assert outcome["last_step"] > 20


def _names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def _damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) * 2 // 3] ^= 0x01
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(content[:-9])
    else:
        path.unlink()
