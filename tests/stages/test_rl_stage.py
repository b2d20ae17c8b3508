"""`longtake rl` on a small world and a small random model, whose rewards are a user's function of the text's length."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longtake.config.sections import ModelConfig
from longtake.config.stages import RlConfig
from longtake.errors import ConfigError, MismatchError, NoSignalError, RowError
from longtake.models import load_model
from longtake.observe.lines import read_lines
from longtake.stages import rl as stage
from longtake.stages import training_rows, training_run
from longtake.stages.rl_update import shares
from longtake.testing.samplers import bent_sampler, shifted
from longtake.testing.training import assert_same_run, base_weights, largest_difference, last_weights, metrics_of
from longtake.training.checkpoint import CheckpointStore
from longtake.video.index import DigestIndex

Make = Callable[..., RlConfig]
TOWER = "model.visual."
UNIFORM = {"weights": {"same": 1.0}}
KL = {"coefficient": 0.1}


def uniform(rewards: Path) -> dict:
    return {**UNIFORM, "functions": {"same": f"{rewards}:same"}}


VARIANTS: dict[str, dict] = {
    "grpo": {},
    "dr_grpo": {"algorithm": {"advantage": "dr_grpo", "aggregation": "constant"}},
    "rloo": {"algorithm": {"advantage": "rloo"}},
    "reinforce_pp": {"algorithm": {"advantage": "reinforce_pp", "aggregation": "token_mean"}},
    "gspo": {"algorithm": {"loss": "gspo"}},
    "cispo": {"algorithm": {"loss": "cispo", "aggregation": "token_mean"}},
    "no_dual_clip": {"algorithm": {"dual_clip": None}},
    "kl_loss_k1": {"algorithm": {"kl": {**KL, "estimator": "k1"}}},
    "kl_loss_k2": {"algorithm": {"kl": {**KL, "estimator": "k2"}}},
    "kl_loss_k3": {"algorithm": {"kl": {**KL, "estimator": "k3"}}},
    "kl_reward_k1": {"algorithm": {"kl": {**KL, "estimator": "k1", "place": "reward"}}},
    "kl_reward_k2": {"algorithm": {"kl": {**KL, "estimator": "k2", "place": "reward"}}},
    "kl_reward_k3": {"algorithm": {"kl": {**KL, "estimator": "k3", "place": "reward"}}},
    "dynamic": {"algorithm": {"dynamic_sampling": {"max_rounds": 2}}},
    "overlong": {"algorithm": {"overlong": {"cache_tokens": 4}}},
    "overlong_masked": {"algorithm": {"overlong": {"cache_tokens": 4, "mask_truncated": True}}, "rollout": {"num_takes": 12}},
    "two_updates": {"updates_per_step": 2},
    "importance": {"algorithm": {"importance": {"kind": "mask", "level": "sequence"}}},
    "importance_two_updates": {"updates_per_step": 2, "algorithm": {"importance": {"kind": "truncate"}, "kl": KL}},
    "importance_vision": {"updates_per_step": 2, "model": {"train_vision": True}, "algorithm": {"importance": {"kind": "truncate"}}},
    "lora": {"model": {"lora": {"rank": 2}}},
    "lora_kl": {"model": {"lora": {"rank": 2}}, "algorithm": {"kl": KL}},
    "train_vision": {"model": {"train_vision": True}},
    "checkpointing": {"model": {"gradient_checkpointing": True}},
    "warm": {"rollout": {"temperature": 0.7}},
}
"""Every way of the configuration to make a gradient."""


def by_name(config: RlConfig) -> dict[str, torch.Tensor]:
    return last_weights(config.out)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_whatever_the_micro_batches(rl: Make, base: Path, name: str) -> None:
    """Two steps at once and take by take: the same weights, takes and metrics, and weights that have moved.

    eps 1e-4 keeps AdamW from blowing rounding errors of absent gradients up to whole steps. Measured over all variants: weights differ by
    1.8e-7 at most (lr 1e-3; they move by 2e-3), sampler and policy by 3.8e-6.
    """
    changes = {"optimizer": {"eps": 1e-4}} | VARIANTS[name]
    runs = [rl("together", **{**changes, "micro_batch_tokens": 100_000}), rl("one_by_one", **{**changes, "micro_batch_tokens": 1})]
    for config in runs:
        stage.run(config)
    together, alone = (by_name(config) for config in runs)
    assert largest_difference(together, alone) < 2e-6
    if name.startswith("lora"):
        assert all(".lora_" in key for key in together)
        assert max(float(tensor.abs().max()) for key, tensor in together.items() if "lora_B" in key) > 1e-4
    else:
        before = base_weights(base)
        assert largest_difference(together, before) > 1e-3
        tower = [key for key in before if TOWER in key]
        moved = [key for key in tower if not torch.equal(before[key], together[key])]
        assert bool(moved) == name.endswith("vision")
    check_log(runs[0])
    texts = [[take["text"] for take in read_lines(config.out / "takes.jsonl")] for config in runs]
    assert texts[0] == texts[1]


def check_log(config: RlConfig) -> None:
    """What every run of two steps must have written."""
    takes, lines = read_lines(config.out / "takes.jsonl"), metrics_of(config.out)
    assert [line["step"] for line in lines] == [1, 2]
    assert len(takes) == sum(line["count/takes"] for line in lines)
    for take in takes:
        length = len(take["token_ids"])
        assert 1 <= length <= config.rollout.max_new_tokens and len(take["sampler_logprobs"]) == length
        assert take["finish_reason"] == ("length" if length == 10 and take["token_ids"][-1] not in END else "stop")
        assert {"accuracy", "format", "parity"} <= take["rewards"].keys()
        assert take["rewards"]["parity"] == len(take["text"]) % 2
        assert len(take["prompt_digest"]) == 64 and [len(digest) for digest in take["video_digests"]] == [64]
        assert take["weights_version"] == take["step"] - 1
        assert not set(take["token_ids"]) & MEDIA
        if take["dropped"]:
            assert take["policy_logprobs"] is None and take["advantage"] == 0.0
        else:
            assert len(take["policy_logprobs"]) == length
    for line in lines:
        kept = [take for take in takes if take["step"] == line["step"] and not take["dropped"]]
        gaps = [abs(a - b) for take in kept for a, b in zip(take["sampler_logprobs"], take["policy_logprobs"], strict=True)]
        first = gaps if config.updates_per_step == 1 else gaps[:1]
        assert max(first) <= 1e-5 and line["mismatch/max"] <= 1e-5
        if config.updates_per_step == 1:
            assert line["mismatch/max"] == pytest.approx(max(gaps), rel=1e-3)
        mean = sum(take["rewards"]["parity"] for take in takes if take["step"] == line["step"]) / line["count/takes"]
        assert line["reward/parity"] == pytest.approx(mean)


END: set[int] = set()
MEDIA: set[int] = set()


@pytest.fixture(autouse=True, scope="module")
def token_ids(base: Path) -> None:
    """The end tokens and the placeholders of the model that all tests here use."""
    model = load_model(ModelConfig(path=str(base), device="cpu"))
    END.update(int(token) for token in model.end_ids)
    MEDIA.update(model.banned_ids.tolist())
    assert len(MEDIA) >= 3


def test_updates_of_a_step_share_its_groups_evenly() -> None:
    assert shares(5, 4) == [range(0, 1), range(1, 2), range(2, 3), range(3, 5)]
    assert shares(6, 2) == [range(0, 3), range(3, 6)]
    assert shares(1, 3) == [range(0, 1)]


def test_the_schedule_counts_every_update(rl: Make) -> None:
    """Cosine over 3 steps x 2 updates: the first updates of the steps are 0, 2, 4 of 6, x = 0, 2/5, 4/5 (lr 1e-3, down to a tenth)."""
    config = rl(steps=3, updates_per_step=2, prompts_per_step=2, optimizer={"schedule": "cosine"})
    stage.run(config)
    rates = [line["optimizer/lr"] for line in metrics_of(config.out)]
    assert rates == pytest.approx([1e-3, 1e-4 + 9e-4 * 0.6545085, 1e-4 + 9e-4 * 0.0954915], rel=1e-5)


@pytest.mark.parametrize("dynamic", [None, {"max_rounds": 3}], ids=["kept", "dropped"])
def test_no_group_survives(rl: Make, base: Path, rewards: Path, dynamic: dict | None) -> None:
    """Rewards that never differ: no weight moves, the metrics say so, every take is logged, the checkpoint is written."""
    config = rl(rewards=uniform(rewards), algorithm={"dynamic_sampling": dynamic})
    stage.run(config)
    assert largest_difference(last_weights(config.out), base_weights(base)) == 0.0
    rounds = 3 if dynamic else 1
    for line in metrics_of(config.out):
        assert (line["group/uniform"], line["reward/same"], line["count/rounds"]) == (1.0, 1.0, rounds)
        assert line["count/takes"] == 4 * 3 * rounds
        assert line["count/groups"] == (0 if dynamic else 3)
        assert line["count/dropped_uniform_groups"] == (9 if dynamic else 0)
        assert ("loss/total" in line) == (dynamic is None)
    takes = read_lines(config.out / "takes.jsonl")
    assert len(takes) == 2 * 4 * 3 * rounds and {take["dropped"] for take in takes} == {dynamic is not None}
    found = CheckpointStore(config.out).latest()
    assert found is not None and (found.step, found.position) == (2, 2 * 3 * rounds)
    assert found.extra["steps_without_signal"] == 2


def test_a_prompt_asked_again_in_the_same_step_is_answered_anew(rl: Make, rewards: Path) -> None:
    """12 rows, 3 rounds of 6 prompts: some rows come twice. The same takes again could not help."""
    config = rl(steps=1, prompts_per_step=6, rewards=uniform(rewards), algorithm={"dynamic_sampling": {"max_rounds": 3}})
    stage.run(config)
    texts: dict[int, list[str]] = {}
    for take in read_lines(config.out / "takes.jsonl"):
        texts.setdefault(take["problem_id"], []).append(take["text"])
    twice = [said for said in texts.values() if len(said) == 8]
    assert twice and all(said[:4] != said[4:] for said in twice)


def test_silence_ends_the_run_with_everything_saved(rl: Make, rewards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MAX_STEPS_WITHOUT_SIGNAL", 3)
    config = rl(steps=9, rewards=uniform(rewards))
    with pytest.raises(NoSignalError, match="3 steps in a row"):
        stage.run(config)
    found = CheckpointStore(config.out).latest()
    assert found is not None and found.step == 3 == metrics_of(config.out)[-1]["step"]
    with pytest.raises(NoSignalError, match="4 steps in a row"):
        stage.run(config)


@pytest.mark.parametrize("micro_batch_tokens", [1, 100_000])
def test_a_sampler_that_differs_is_refused(rl: Make, micro_batch_tokens: int) -> None:
    """The checkpoint before survives, no weight of the refused step is kept, and an honest sampler goes on from there."""
    changes = {"steps": 4, "checkpoint": {"every": 1}, "micro_batch_tokens": micro_batch_tokens}
    stage.run(rl("honest", **changes))
    rigged = bent_sampler(lambda step, key, take: shifted(take, 0.6) if step >= 2 else take)
    with rigged, pytest.raises(MismatchError, match=r"differ by 0\.6"):
        stage.run(rl("rigged", **changes))
    found = CheckpointStore(rl("rigged").out).latest()
    assert found is not None and found.step == 2
    stage.run(rl("rigged", **changes))
    assert_same_run(rl("honest").out, rl("rigged").out)


def test_the_mean_is_over_the_whole_update(rl: Make) -> None:
    """One token of each take is off by 0.3, in the mean 0.03 or a little more: under a limit of 0.05 (a tenth of 0.5). A short take by
    itself is over it, and must not be refused for being alone in its micro-batch."""
    outcomes = []
    for tokens in (1, 100_000):
        with bent_sampler(lambda step, key, take: shifted(take, 0.3)):
            config = rl(f"run{tokens}", micro_batch_tokens=tokens, steps=1, rollout={"num_takes": 8}, max_logprob_difference=0.5)
            stage.run(config)
        outcomes.append(metrics_of(config.out)[0]["mismatch/mean"])
    assert outcomes[0] == pytest.approx(outcomes[1], rel=1e-4) and 0.03 <= outcomes[0] < 0.05


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), OSError("disk"), RowError("x", rule="y", remedy="z")])
def test_a_validation_that_fails_costs_nothing(rl: Make, rows: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The run goes on to the weights of a run without validation."""

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    stage.run(rl("plain", steps=3))
    monkeypatch.setattr(training_run, "evaluate_examples", fail)
    validation = {"data": {"rows": rows}, "every": 1, "max_new_tokens": 2}
    config = rl("validated", steps=3, validation=validation)
    stage.run(config)
    assert largest_difference(last_weights(rl("plain").out), last_weights(config.out)) == 0.0
    assert [line["validation/failed"] for line in metrics_of(config.out)] == [1.0] * 4


def test_validation_counts_failed_rows_as_wrong(rl: Make, rows: Path, tmp_path: Path) -> None:
    path = tmp_path / "validation.jsonl"
    path.write_text("{}\n" + rows.read_text())
    validation = {"data": {"rows": path, "root": rows.parent}, "num_rows": 4, "every": 2, "max_new_tokens": 2}
    config = rl(validation=validation)
    stage.run(config)
    assert [line.get("validation/accuracy") for line in metrics_of(config.out)] == [0.0, None, 0.0]
    assert training_rows.validation_items(config, DigestIndex(None))[0].kind == "RowError"


def test_damaged_videos_are_counted_and_never_replaced(rl: Make, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One pass over 12 good and 4 damaged rows: 12 groups, 4 failures, and the damaged rows' places stay empty."""
    folder = tmp_path_factory.mktemp("damaged")
    for video in (rows.parent / "videos").iterdir():
        (folder / video.name).write_bytes(video.read_bytes())
    data = copied(rows, folder, 4)
    config = rl(steps=4, prompts_per_step=4, data={"rows": data, "max_failed_fraction": 0.25})
    stage.run(config)
    lines = metrics_of(config.out)
    assert sum(line["failures/total"] for line in lines) == 4 == sum(line.get("failures/VideoDamagedError", 0) for line in lines)
    assert [line["count/groups"] + line["failures/total"] for line in lines] == [4.0] * 4
    assert lines[-1]["failures/known_rows"] == 4.0
    takes = read_lines(config.out / "takes.jsonl")
    assert len(takes) == 12 * 4 and {take["problem_id"] for take in takes} == set(range(12))


def copied(rows: Path, folder: Path, num_damaged: int) -> Path:
    """A folder with the rows, their videos, and `num_damaged` more rows whose videos are cut in half: only decoding finds out."""
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    for number in range(num_damaged):
        whole = (rows.parent / records[number]["videos"]).read_bytes()
        (folder / f"cut{number}.mp4").write_bytes(whole[: len(whole) // 2])
    damaged = [{**records[number], "problem_id": 1000 + number, "videos": f"cut{number}.mp4"} for number in range(num_damaged)]
    good = [{**record, "videos": Path(record["videos"]).name} for record in records]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in [*good, *damaged]))
    return path


def test_too_many_failures_found_while_training_end_it(rl: Make, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """4 of 16 are more than a fifth: the run stops at the fourth, saved up to the step before, and may go on with a larger share."""
    folder = tmp_path_factory.mktemp("damaged")
    for video in (rows.parent / "videos").iterdir():
        (folder / video.name).write_bytes(video.read_bytes())
    data = {"rows": copied(rows, folder, 4), "max_failed_fraction": 0.2}
    with pytest.raises(RowError, match="4 of 16 rows cannot be used, 4 of them found out while training"):
        stage.run(rl(steps=4, prompts_per_step=4, data=data))
    found = CheckpointStore(rl().out).latest()
    assert found is not None and found.step < 4
    stage.run(rl(steps=4, prompts_per_step=4, data=data | {"max_failed_fraction": 0.5}))
    stage.run(rl("whole", steps=4, prompts_per_step=4, data=data | {"max_failed_fraction": 0.5}))
    assert largest_difference(last_weights(rl().out), last_weights(rl("whole").out)) == 0.0


def test_too_many_unreadable_rows_stop_before_training(rl: Make, rows: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n{}\n" + rows.read_text())
    with pytest.raises(RowError, match=r"2 of 14 rows cannot be used \(2 RowError\)"):
        stage.run(rl(data={"rows": path, "root": rows.parent}))
    assert not (rl().out / "checkpoints").exists() and not (rl().out / "metrics.jsonl").exists()


def test_dropout_is_refused(rl: Make) -> None:
    with pytest.raises(ConfigError, match=r"dropout = 0\.1 in RL"):
        stage.run(rl(model={"lora": {"dropout": 0.1}}))


def test_a_trained_tower_beside_a_reference_is_refused(rl: Make) -> None:
    with pytest.raises(ValueError, match=r"coefficient = 0\.1 with model\.train_vision"):
        rl(model={"train_vision": True}, algorithm={"kl": {"coefficient": 0.1}})


def test_kl_keeps_the_policy_near_its_start(rl: Make, base: Path) -> None:
    """A strong KL in the loss holds the weights back; the reference stays the start, over a resume too."""
    kl = {"algorithm": {"kl": {"coefficient": 50.0, "estimator": "k3"}}, "optimizer": {"lr": 3e-3}}
    stage.run(rl("free", steps=6, optimizer={"lr": 3e-3}, algorithm={"kl": {"coefficient": 1e-9}}))
    stage.run(rl("held", steps=6, **kl))
    free, held = (metrics_of(rl(name).out)[-1]["policy/kl"] for name in ("free", "held"))
    assert 0.0 < held < 0.5 * free
    stage.run(rl("parts", steps=3, **kl))
    stage.run(rl("parts", steps=6, **kl))
    assert_same_run(rl("held").out, rl("parts").out)
