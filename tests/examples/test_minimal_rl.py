"""examples/minimal_rl.py computes what the library computes, piece by piece and as a whole step, and its run does what it prints."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from longtake.algorithms.advantages import advantages
from longtake.algorithms.losses import LossDenominator, policy_loss
from longtake.config.sections import AlgorithmConfig, PromptConfig, RewardConfig
from longtake.data.render import render_prompt, response_ids
from longtake.models.qwen2_5_vl import Qwen2_5VL
from longtake.models.tiny import TINY_PATH
from longtake.parallel.packed import pack_rows
from longtake.rewards import Rewards
from longtake.testing.models import random_tiny
from longtake.testing.rows import sft_batch, take_batch, take_logprobs
from longtake.testing.takes import plain_ids
from longtake.training.sft_loss import sft_loss
from longtake.types import Example, Option, Prompt, Take, VideoTokens

PATH = Path(__file__).parents[2] / "examples" / "minimal_rl.py"
NO_INSTRUCTION = PromptConfig(instruction="")
OPTIONS = tuple(Option(letter, colour) for letter, colour in zip("ABCD", ("red", "green", "blue", "white"), strict=True))


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal_rl", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["minimal_rl"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("minimal_model")


@pytest.fixture
def model(checkpoint_folder: Path) -> Qwen2_5VL:
    return random_tiny(checkpoint_folder, seed=0)


def question(problem_id: int, text: str = "What colour?") -> Example:
    options = "".join(f"\n{option.letter}. {option.text}" for option in OPTIONS)
    return Example(problem_id, text + options, OPTIONS, "B", "letter", "plot", "Red goes, green stays.", (), None, None)


def video_tokens(model: Qwen2_5VL, grid: tuple[int, int, int], seconds: float, seed: int = 0) -> VideoTokens:
    generator = torch.Generator().manual_seed(seed)
    width = model.hf.config.text_config.hidden_size
    return VideoTokens(torch.randn(model.num_video_tokens(grid), width, generator=generator), grid, seconds, f"{grid}-{seed}")


def both_prompts(example: ModuleType, model: Qwen2_5VL, seed: int = 0) -> tuple[list[Example], list[object], list[Prompt]]:
    """Questions of different lengths with videos of different grids, as the file and as the library render them."""
    rows = [question(1), question(2, "Which one was it that stayed in the hall?"), question(3, "Who?")]
    grids = [((4, 4, 8), 1.3), ((16, 2, 2), 4.1), ((5, 8, 4), 0.7)]
    videos = [video_tokens(model, grid, seconds, seed) for grid, seconds in grids]
    ours = [example.make_prompt(model, row.question, video) for row, video in zip(rows, videos, strict=True)]
    library = [render_prompt(row, [video], model, NO_INSTRUCTION) for row, video in zip(rows, videos, strict=True)]
    return rows, ours, library


def responses_of(model: Qwen2_5VL, lengths: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.tensor(plain_ids(model, length, torch.Generator().manual_seed(length))) for length in lengths]


def test_it_is_one_short_file():
    assert len(PATH.read_text(encoding="utf-8").splitlines()) <= 300


def test_prompts_and_positions_equal_the_librarys(example, model):
    _, ours, library = both_prompts(example, model)
    for mine, theirs in zip(ours, library, strict=True):
        assert torch.equal(mine.ids, theirs.token_ids)
        assert torch.equal(mine.positions, theirs.position_ids)
        assert mine.next_position == theirs.next_position
        assert mine.video_start == theirs.spans[0].start


def test_logprobs_of_padded_rows_equal_the_librarys(example, model):
    _, ours, library = both_prompts(example, model)
    responses = responses_of(model, (7, 12, 1))
    with torch.no_grad():
        logprobs, mask = example.response_logprobs(model, ours, responses)
        expected, _ = take_logprobs(model, sft_batch(library, responses, model.device), 1.0)
    assert mask.sum(1).tolist() == [7, 12, 1]
    # Measured 0; the log-probs are about -6 and spread over 1.
    assert torch.allclose(logprobs[mask], expected[mask], rtol=0, atol=1e-5)


def test_logprobs_notice_a_wrong_position_and_a_wrong_video(example, model):
    """Negative controls of the test above: these faults are a thousand times its tolerance."""
    _, ours, _ = both_prompts(example, model)
    responses = responses_of(model, (7, 12, 3))
    shifted = [replace(prompt, next_position=prompt.next_position + 1) for prompt in ours]
    swapped = [replace(prompt, video=prompt.video.flip(0)) for prompt in ours]
    with torch.no_grad():
        right, mask = example.response_logprobs(model, ours, responses)
        for wrong in (shifted, swapped):
            found, _ = example.response_logprobs(model, wrong, responses)
            assert (found - right)[mask].abs().max() > 1e-2


def test_the_sampler_reports_what_the_library_scores(example, model):
    """Sampled through the cache, in a batch, against one pass without a cache; takes end at their first end token."""
    _, ours, library = both_prompts(example, model)
    lengths = set()
    for mine, theirs in zip(ours, library, strict=True):
        takes = example.sample_takes(model, mine, 6, 40, torch.Generator().manual_seed(1))
        scored = take_batch([theirs] * 6, [Take(t.ids, t.sampler_lp, "stop", "", 0) for t in takes], model.device)
        with torch.no_grad():
            expected, _ = take_logprobs(model, scored, 1.0)
        # Measured 2e-6; the log-probs are about -5.5 and spread over 1.3.
        assert torch.allclose(scored.sampler_logprobs, expected, rtol=0, atol=1e-5)
        for take in takes:
            ends = torch.isin(take.ids, torch.tensor(model.end_ids))
            assert not ends[:-1].any() and (bool(ends[-1]) or len(take.ids) == 40)
            assert not torch.isin(take.ids, model.banned_ids).any()
            lengths.add(len(take.ids))
    assert len({tuple(take.ids.tolist()) for take in takes}) == 6  # the takes of a prompt differ
    assert 40 in lengths


def test_an_end_token_ends_a_take_and_counts(example, model):
    """The head is rigged: an end token now and then."""
    _, ours, _ = both_prompts(example, model)
    rigged = example.log_distribution

    def often_ends(model, hidden):
        logp = rigged(model, hidden)
        logp[..., model.end_id] = logp.logsumexp(-1) - 1.5
        return logp.log_softmax(-1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "log_distribution", often_ends)
        takes = example.sample_takes(model, ours[0], 16, 30, torch.Generator().manual_seed(3))
        with torch.no_grad():
            scored, mask = example.response_logprobs(model, [ours[0]] * 16, [take.ids for take in takes])
    lengths = [len(take.ids) for take in takes]
    assert min(lengths) < max(lengths) < 30
    assert all(int(take.ids[-1]) in model.end_ids for take in takes)
    for row, take in enumerate(takes):
        assert torch.allclose(scored[row][mask[row]], take.sampler_lp, rtol=0, atol=1e-5)  # measured 1e-6


def test_advantages_equal_the_librarys(example):
    rewards = torch.tensor([[1.0, 0.0, 0.1, 0.1], [0.9, 1.0, 1.0, 0.0], [0.1] * 4, [0.9 + 0.1, 1.0, 1.0, 1.0]])
    expected = torch.stack(advantages(list(rewards), AlgorithmConfig()))
    assert torch.equal(example.advantages(rewards), expected)
    assert example.advantages(rewards)[2:].eq(0).all()
    # (1, 0, 0.1, 0.1): mean 0.3, squared deviations 0.49 + 0.09 + 0.04 + 0.04 = 0.66, std sqrt(0.22)
    assert example.advantages(rewards)[0, 0].item() == pytest.approx(0.7 / 0.22**0.5, rel=1e-5)


def test_loss_and_gradient_equal_the_librarys_however_the_step_is_cut(example):
    """Ratios from 0.1 to 10, so that both clips and the dual clip bite; padding holds rubbish."""
    generator = torch.Generator().manual_seed(0)
    sampler = -3 * torch.rand(8, 9, generator=generator)
    policy = (sampler + 2.3 * (2 * torch.rand(8, 9, generator=generator) - 1)).requires_grad_()
    gains, lengths = torch.tensor([1.2, -0.8, 0.3, -1.5, -0.4, 0.9, -1.1, 0.6]), [9, 1, 4, 7, 2, 9, 3, 5]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    whole = policy_loss(policy, sampler, gains, mask, AlgorithmConfig(), denominator=LossDenominator.of_lengths(lengths, 9))
    (expected,) = torch.autograd.grad(whole.loss, policy)
    parts = [slice(0, 3), slice(3, 8)]
    loss = torch.stack([example.clipped_loss(policy[part], sampler[part], gains[part], mask[part], 8) for part in parts]).sum()
    (found,) = torch.autograd.grad(loss, policy)
    assert whole.metrics["clipped_high"].value() > 0.05 and whole.metrics["clipped_dual"].value() > 0.02
    assert loss.item() == pytest.approx(whole.loss.item(), abs=1e-6)  # measured 0
    assert torch.allclose(found, expected, rtol=0, atol=1e-7)  # measured 0; the largest entry is about 0.1


def test_sft_gradient_equals_the_librarys(example, model, checkpoint_folder):
    rows, ours, library = both_prompts(example, model)
    line = example.sft_gradient(model, list(zip(rows, ours, strict=True)))
    other = random_tiny(checkpoint_folder, seed=0)
    packed = pack_rows(library, [response_ids(row, other) for row in rows], other.device)
    loss = sft_loss(other, packed, int(packed.response_mask.sum()))
    loss.backward()
    assert line == f"loss {loss.item():.3f}"
    assert_same_gradients(model, other)


def test_an_rl_step_equals_the_librarys(example, model, checkpoint_folder, monkeypatch):
    """Same takes in, same gradient out: rewards, advantages, log-probs and loss together, with ratios away from 1."""
    rows, ours, library = both_prompts(example, model)
    texts = ["<think>x</think><answer>B</answer>", "<think>yes</think><answer>green</answer>", "B", "<think>x</think><answer>A</answer>"]
    groups = [made_takes(example, model, prompt, texts, seed) for seed, prompt in enumerate(ours)]
    given = iter(groups)
    monkeypatch.setattr(example, "sample_takes", lambda *_: next(given))
    monkeypatch.setattr(example, "MAX_MISMATCH", 10.0)
    args = argparse.Namespace(takes=len(texts), max_new_tokens=64)
    line = example.rl_gradient(model, list(zip(rows, ours, strict=True)), args, torch.Generator())

    other = random_tiny(checkpoint_folder, seed=0)
    takes = [[Take(t.ids, t.sampler_lp, "stop", t.text, 0) for t in group] for group in groups]
    rewards = Rewards(RewardConfig(), 64)
    totals = [rewards.score(row, group).total for row, group in zip(rows, takes, strict=True)]
    gains = torch.cat(advantages(totals, AlgorithmConfig()))
    batch = take_batch([prompt for prompt in library for _ in texts], [take for group in takes for take in group], other.device)
    policy, _ = take_logprobs(other, batch, 1.0)
    denominator = LossDenominator.of_lengths([len(take.token_ids) for group in takes for take in group], 64)
    loss = policy_loss(policy, batch.sampler_logprobs, gains, batch.response_mask, AlgorithmConfig(), denominator=denominator)
    loss.loss.backward()
    assert totals[0].tolist() == pytest.approx([1.0, 1.0, 0.0, 0.1])
    assert f"reward {torch.cat(totals).mean():.3f}" in line
    assert loss.metrics["clipped_low"].value() + loss.metrics["clipped_high"].value() > 0.05
    assert_same_gradients(model, other)


def made_takes(example: ModuleType, model: Qwen2_5VL, prompt: object, texts: list[str], seed: int) -> list[object]:
    """Takes with these texts; their sampler log-probs are the model's own, moved by up to 0.5."""
    ids = [torch.tensor([*model.text_ids(text), model.end_id]) for text in texts]
    with torch.no_grad():
        logprobs, mask = example.response_logprobs(model, [prompt] * len(ids), ids)
    noise = torch.rand(logprobs.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    moved = logprobs + noise
    return [example.Take(each, moved[row][mask[row]], text) for row, (each, text) in enumerate(zip(ids, texts, strict=True))]


def assert_same_gradients(model: Qwen2_5VL, other: Qwen2_5VL) -> None:
    """Of every parameter, relative to the largest entry of its tensor; the frozen tower has none in both."""
    compared = 0
    for (name, mine), theirs in zip(model.hf.named_parameters(), other.hf.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is None or theirs.grad is None:
            continue
        scale = theirs.grad.abs().max()
        assert scale > 0, name
        assert (mine.grad - theirs.grad).abs().max() <= 1e-5 * scale, name  # measured 7e-7
        compared += 1
    assert compared > 20


def test_a_sampler_that_is_not_the_trainer_is_refused(example, model, monkeypatch):
    rows, ours, _ = both_prompts(example, model)
    takes = made_takes(example, model, ours[0], ["B", "A"], 0)
    monkeypatch.setattr(example, "sample_takes", lambda *_: takes)
    args = argparse.Namespace(takes=2, max_new_tokens=64)
    with pytest.raises(SystemExit, match="do not compute the same policy"):
        example.rl_gradient(model, [(rows[0], ours[0])], args, torch.Generator())


def test_a_short_run_from_video_files_to_rl_steps(example, model, checkpoint_folder, tmp_path, capsys):
    """A random model learns nothing in so few steps; that every part runs on real files is what is shown."""
    checkpoint = checkpoint_folder / "random_tiny_0"
    sizes = ["--videos", "3", "--sft-steps", "10", "--rl-steps", "2", "--prompts", "2", "--takes", "3", "--max-new-tokens", "12"]
    example.main(["--model", str(checkpoint), "--out", str(tmp_path), *sizes])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["sft", "10"], ["rl", "1"], ["rl", "2"]]
    assert 0 < float(lines[0].split()[3]) < 7
    mismatches = [float(re.search(r"policy\| (\S+)", line)[1]) for line in lines[1:]]
    assert max(mismatches) < 1e-4
    assert len(list((tmp_path / "world_3" / "videos").glob("*.mp4"))) == 3


@pytest.mark.long
@pytest.mark.skipif(not TINY_PATH.is_dir(), reason="the tiny model is not there")
def test_the_reward_rises(example, tmp_path, capsys):
    """The run that the README shows, for longer, from the shipped tiny model.

    A step has 48 takes of 6 questions, so means of 5 steps are noisy: its own 18 steps gave + 0.25 on one processor and + 0.085 on another,
    with the same code. So means of 12 steps, far apart.
    """
    example.main(["--out", str(tmp_path), "--rl-steps", "48"])
    rewards = [float(line.split()[3]) for line in capsys.readouterr().out.splitlines() if line.startswith("rl")]
    assert len(rewards) == 48
    assert sum(rewards[-12:]) / 12 > sum(rewards[:12]) / 12 + 0.1  # measured 0.66 -> 0.84
