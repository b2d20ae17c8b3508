"""The whole method in one file: long videos -> chain-of-thought SFT -> GRPO, on an unmodified transformers Qwen2.5-VL.

    python examples/minimal_rl.py            # a little over a minute on one CPU core; --help lists its options

What is dull comes from longtake: making and decoding videos, loading a checkpoint, reading answers. What is the METHOD stands here,
each formula beside its code; tests/examples/test_minimal_rl.py holds every piece against the library. The library adds: many prompts
in one decoding batch, logits in chunks, memory bounds, other losses, checkpoints, resume, validation and reports.

Letters in shapes: G takes (responses) of one prompt, M rows of a batch, P prompt tokens, R response tokens, T = P + R, V video tokens,
D model width, W vocabulary.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache

from longtake.answers import is_correct, parse_response
from longtake.config.sections import DataConfig, ModelConfig, VideoConfig
from longtake.config.stages import WorldConfig
from longtake.data.rows import read_examples
from longtake.models import Message, Model, load_model
from longtake.types import Example, Frames, VideoTokens
from longtake.video.decode import load_frames
from longtake.world.write import write_world

Asked = tuple[Example, "Prompt"]
VIDEO = VideoConfig(max_frames=32, max_pixels_per_frame=28 * 28)
CLIP_LOW, CLIP_HIGH, DUAL_CLIP = 0.2, 0.3, 3.0
MAX_MISMATCH = 1e-3
"""Sampler and trainer are one float32 model here, so their log-probs agree to about 1e-6; more is a bug, not noise."""


# ------------------------------------------------------------------------------------------------ 1. a video becomes tokens, once
def encode_videos(model: Model, examples: Sequence[Example]) -> dict[str, VideoTokens]:
    """Decode and encode every video ONCE: the tower is frozen, so all questions, takes and steps share the result.

    The key is the digest of the file's bytes. A key made of names would serve stale embeddings when a file changes.
    """
    tokens: dict[str, VideoTokens] = {}
    for video in (video for example in examples for video in example.media):
        if video.digest not in tokens:
            frames: Frames = load_frames(video, VIDEO, model.patch_multiple, model.temporal_patch)
            tokens[video.digest] = model.encode(frames, VIDEO.encode_groups)
    return tokens


# ------------------------------------------------------------------------------------------------ 2. prompts with explicit positions
@dataclass(frozen=True, eq=False)
class Prompt:
    """What the language model reads before it answers."""

    ids: Tensor  # int64 [P], one placeholder per video token
    positions: Tensor  # int64 [3, P]: time, row, column
    next_position: int  # of the first response token, the same on all three axes
    video_start: int
    video: Tensor  # [V, D]


def make_prompt(model: Model, question: str, video: VideoTokens) -> Prompt:
    """The chat template writes ONE placeholder for the video; the model needs one per video token."""
    ids = model.token_ids([Message("user", question, media=("video",))], add_generation_prompt=True)
    start = ids.index(model.placeholder_ids["video"])
    ids[start : start + 1] = [model.placeholder_ids["video"]] * len(video.embeddings)
    positions, next_position = rope_positions(model, len(ids), start, video)
    return Prompt(torch.tensor(ids), positions, next_position, start, video.embeddings)


def rope_positions(model: Model, num_ids: int, start: int, video: VideoTokens) -> tuple[Tensor, int]:
    """M-RoPE of Qwen2.5-VL: text counts 0, 1, 2, ... alike on all axes; in a video that starts at position s, the patch in temporal
    group g, merged row y, merged column x has (s + floor(g * tokens_per_second * seconds_per_group), s + y, s + x); the text behind
    goes on at the LARGEST position so far + 1.

    They are computed here and passed explicitly, to sampler and trainer alike: what transformers would compute itself starts the
    text inside the video's time range, and a sampler and a trainer that disagree on positions train on a policy that never spoke.
    """
    merge = model.patch_multiple // model.hf.config.vision_config.patch_size
    groups, rows, columns = video.grid[0], video.grid[1] // merge, video.grid[2] // merge
    g, y, x = torch.meshgrid(torch.arange(groups), torch.arange(rows), torch.arange(columns), indexing="ij")
    time_position = (g.double() * (model.tokens_per_second * video.seconds_per_grid)).floor().long()
    inside = start + torch.stack([time_position, y, x]).flatten(1)  # [3, V]
    before = torch.arange(start).expand(3, -1)
    num_after = num_ids - start - inside.shape[1]
    after = int(inside.max()) + 1 + torch.arange(num_after).expand(3, -1)
    return torch.cat([before, inside, after], dim=1), int(inside.max()) + 1 + num_after


# ------------------------------------------------------------------------------------------------ 3. the model, called in three parts
def embed(model: Model, ids: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Token embeddings [M, T, D] of ids [M, T], each row's video in place of its placeholders."""
    embeds = model.hf.model.language_model.embed_tokens(ids)
    for row, prompt in enumerate(prompts):
        embeds[row, prompt.video_start : prompt.video_start + len(prompt.video)] = prompt.video
    return embeds


def decode(model: Model, embeds: Tensor, positions: Tensor, cache: DynamicCache | None) -> Tensor:
    """Hidden states [M, T, D]; positions [3, M, T]. No mask: attention is causal and padding, if any, stands on the right."""
    decoder = model.hf.model.language_model
    return decoder(inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=cache is not None).last_hidden_state


def log_distribution(model: Model, hidden: Tensor) -> Tensor:
    """log pi(. | ...) [..., W] from hidden [..., D], at temperature 1. The ONE distribution that is sampled from and trained.

    Media placeholders can never be sampled: one of them in a response would make the next forward look for a video that is not there.
    """
    logits = model.hf.lm_head(hidden).float().index_fill(-1, model.banned_ids, float("-inf"))
    return logits.log_softmax(-1)


# ------------------------------------------------------------------------------------------------ 4. rollout
@dataclass(frozen=True, eq=False)
class Take:
    """One sampled response."""

    ids: Tensor  # int64 [R], the end token included when it was drawn
    sampler_lp: Tensor  # float32 [R], log-prob of each token under the distribution it was drawn from
    text: str


@torch.no_grad()
def sample_takes(model: Model, prompt: Prompt, num_takes: int, max_new_tokens: int, generator: torch.Generator) -> list[Take]:
    """G takes of one prompt: the prompt is prefilled ONCE, its keys and values serve all of them, and they are decoded as a batch."""
    cache = DynamicCache()
    hidden = decode(model, embed(model, prompt.ids[None], [prompt]), prompt.positions[:, None], cache)
    cache.batch_repeat_interleave(num_takes)
    hidden = hidden[:, -1:].expand(num_takes, -1, -1)  # the last prompt token predicts the first token of every take
    end_ids, drawn, scores = torch.tensor(model.end_ids), [], []
    running = torch.ones(num_takes, dtype=torch.bool)
    for step in range(max_new_tokens):
        logp = log_distribution(model, hidden[:, 0])  # [G, W]
        # No top-p, no top-k: they would make the sampler another policy than the one whose gradient is taken.
        token = torch.multinomial(logp.exp(), 1, generator=generator)  # [G, 1]
        drawn.append(token)
        scores.append(logp.gather(-1, token))
        running &= ~torch.isin(token[:, 0], end_ids)
        if not running.any():
            break
        position = torch.full((3, num_takes, 1), prompt.next_position + step)
        hidden = decode(model, embed(model, token, []), position, cache)
    ids, logprobs = torch.cat(drawn, dim=1), torch.cat(scores, dim=1)  # [G, R]; rows that ended early drew on, and are cut here
    return [cut_at_end(model, row, row_lp, end_ids) for row, row_lp in zip(ids, logprobs, strict=True)]


def cut_at_end(model: Model, ids: Tensor, logprobs: Tensor, end_ids: Tensor) -> Take:
    """A take ends with its first end token, which counts: when to stop is part of what is learned."""
    ends = torch.isin(ids, end_ids).nonzero()
    length = int(ends[0]) + 1 if len(ends) else len(ids)
    return Take(ids[:length], logprobs[:length], model.decode(ids[:length].tolist()))


def reward(example: Example, take: Take) -> tuple[float, float]:
    """(accuracy, format), each 0 or 1: the answer in any usual spelling; `<think>..</think><answer>..</answer>` and nothing else."""
    return float(is_correct(example, take.text)), float(parse_response(take.text).well_formed)


# ------------------------------------------------------------------------------------------------ 5. learning
def response_logprobs(model: Model, prompts: Sequence[Prompt], responses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """log pi(y_t | prompt, y_<t) of every response token, [M, R] with gradient, and the mask bool [M, R] of real tokens.

    Row: prompt, response, padding on the RIGHT (repeating an end token). Response token t stands at index P + t and at position
    next_position + t, and is predicted by the hidden state at index P - 1 + t. The head sees those hidden states only.
    """
    width = max(len(p.ids) + len(r) for p, r in zip(prompts, responses, strict=True))
    longest = max(len(r) for r in responses)
    ids = torch.full((len(prompts), width), model.end_id)
    positions = torch.zeros(3, len(prompts), width, dtype=torch.int64)
    targets = torch.full((len(prompts), longest), model.end_id)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        num_prompt, num_all = len(prompt.ids), len(prompt.ids) + len(response)
        ids[row, :num_all] = torch.cat([prompt.ids, response])
        positions[:, row, :num_prompt] = prompt.positions
        positions[:, row, num_prompt:num_all] = prompt.next_position + torch.arange(len(response))
        targets[row, : len(response)] = response
        mask[row, : len(response)] = True
    hidden = decode(model, embed(model, ids, prompts), positions, None)
    starts = torch.tensor([len(prompt.ids) - 1 for prompt in prompts])[:, None]
    predictors = (starts + torch.arange(longest)).clamp(max=width - 1)  # [M, R]
    hidden = hidden.gather(1, predictors[..., None].expand(-1, -1, hidden.shape[-1]))  # [M, R, D]
    return log_distribution(model, hidden).gather(-1, targets[..., None])[..., 0], mask


def sft_loss(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Stage 1, cross-entropy on the response only: -1/(all response tokens) * sum log pi(y_t)."""
    return -logprobs[mask].sum() / mask.sum()


def advantages(rewards: Tensor) -> Tensor:
    """Stage 2, rewards [B, G] of B groups -> A_i = (R_i - mean R) / (std R + 1e-6), mean and std over the takes of ONE prompt.

    A take is only ever compared with others of the same prompt, so no value network is needed. A group whose rewards are all equal
    says nothing: 0, and not rounding noise divided by a tiny standard deviation.
    """
    rewards = rewards.double()
    scaled = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    is_uniform = rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True) <= 1e-6
    return torch.where(is_uniform, 0.0, scaled).float()


def clipped_loss(policy_lp: Tensor, sampler_lp: Tensor, advantage: Tensor, mask: Tensor, num_takes: int) -> Tensor:
    """GRPO with PPO's clip, log-probs and mask [M, R], advantage [M]; no KL term (beta = 0, so no reference model is needed):

        r_t = pi(y_t) / pi_sampler(y_t)        l_t = -min(r_t A, clamp(r_t, 0.8, 1.3) A);   for A < 0: l_t = min(l_t, -3 A)
        loss = 1/(takes of the STEP) * sum over takes of 1/R_i * sum_t l_t

    `num_takes` counts the whole step, so the losses of its groups ADD UP to the loss of the step however it is cut into forwards.
    With one update per batch of takes r_t is 1 and the clip idle, but the gradient of r_t A is A * grad log pi: REINFORCE.
    """
    ratio, gain = (policy_lp - sampler_lp).exp(), advantage[:, None]
    losses = -torch.minimum(ratio * gain, ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * gain)
    losses = torch.where(gain < 0, torch.minimum(losses, -DUAL_CLIP * gain), losses)
    return (torch.where(mask, losses, 0.0).sum(1) / mask.sum(1)).sum() / num_takes


# ------------------------------------------------------------------------------------------------ 6. the two stages
def sft_gradient(model: Model, batch: Sequence[Asked]) -> str:
    """Teach the rows' own reasoning. RL needs it: a base model that never answers in the right form gets no reward to compare."""
    texts = [f"<think>{example.reasoning}</think><answer>{example.answer}</answer>" for example, _ in batch]
    responses = [torch.tensor([*model.text_ids(text), model.end_id]) for text in texts]
    loss = sft_loss(*response_logprobs(model, [prompt for _, prompt in batch], responses))
    loss.backward()
    return f"loss {loss.item():.3f}"


def rl_gradient(model: Model, batch: Sequence[Asked], args: argparse.Namespace, generator: torch.Generator) -> str:
    """Sample groups, score them, compare inside each group, leave the gradient of the step; returns a line for people."""
    groups = [sample_takes(model, prompt, args.takes, args.max_new_tokens, generator) for _, prompt in batch]
    scores = torch.tensor([[reward(ex, take) for take in takes] for (ex, _), takes in zip(batch, groups, strict=True)])  # [B, G, 2]
    total = 0.9 * scores[..., 0] + 0.1 * scores[..., 1]
    gains, differences = advantages(total), []
    for (_, prompt), takes, gain in zip(batch, groups, gains, strict=True):
        policy_lp, mask = response_logprobs(model, [prompt] * len(takes), [take.ids for take in takes])
        sampler_lp = torch.nn.utils.rnn.pad_sequence([take.sampler_lp for take in takes], batch_first=True)
        differences.append((policy_lp - sampler_lp)[mask].detach().abs().max())
        clipped_loss(policy_lp, sampler_lp, gain, mask, gains.numel()).backward()
    mismatch = float(torch.stack(differences).max())
    if not mismatch <= MAX_MISMATCH:  # written so that nan is refused too
        raise SystemExit(f"sampler and trainer differ by {mismatch:.2g} nats on the same token: they do not compute the same policy")
    accuracy, well_formed = scores.mean((0, 1)).tolist()
    return f"reward {total.mean():.3f}  accuracy {accuracy:.2f}  format {well_formed:.2f}  " + (
        f"groups without signal {int((gains == 0).all(1).sum())}/{len(batch)}  |sampler - policy| {mismatch:.0e}"
    )


def read_world(folder: Path, num_videos: int) -> list[Example]:
    """Procedural videos as real H.264 files, with questions and reasoning. A row that cannot be used is said, never replaced."""
    write_world(WorldConfig(out=folder, num_videos=num_videos, num_scenes=(5, 5), workers=1))
    items = read_examples(DataConfig(rows=folder / "rows.jsonl"))
    for failure in [item for item in items if not isinstance(item, Example)]:
        print(f"skipped row {failure.problem_id}: {failure.message}")
    return [item for item in items if isinstance(item, Example)]


def train(model: Model, stages: dict[str, list[Asked]], args: argparse.Namespace) -> None:
    """Both stages, each with an AdamW of its own, rows drawn at random."""
    generator, started = torch.Generator().manual_seed(args.seed), time.perf_counter()
    parameters = [parameter for parameter in model.hf.parameters() if parameter.requires_grad]
    for stage, num_steps, batch_size, lr in (("sft", args.sft_steps, 16, 1e-3), ("rl", args.rl_steps, args.prompts, 2e-4)):
        optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=0.0)
        for step in range(1, num_steps + 1):
            drawn = torch.randperm(len(stages[stage]), generator=generator)[:batch_size].tolist()
            batch = [stages[stage][index] for index in drawn]
            line = sft_gradient(model, batch) if stage == "sft" else rl_gradient(model, batch, args, generator)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if stage == "rl" or step % 10 == 0:
                print(f"{stage} {step:3d}  {line}  {time.perf_counter() - started:.0f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """World, SFT on a third of the videos, GRPO on a few questions about others: so few that a minute shows the reward rise on them.
    Whether it rises on videos never seen is another question, and the one that the quickstart answers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny", help="checkpoint directory, or `tiny`")
    parser.add_argument("--out", type=Path, default=Path("runs/minimal_rl"), help="folder for the videos")
    numbers = {"videos": 96, "sft-steps": 120, "rl-steps": 18, "questions": 12, "prompts": 6, "takes": 8, "max-new-tokens": 96, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = load_model(ModelConfig(path=args.model, device="cpu"))  # frozen tower, eval mode
    examples = read_world(args.out / f"world_{args.videos}", args.videos)
    videos = encode_videos(model, examples)
    asked = [(ex, make_prompt(model, ex.question, videos[ex.media[0].digest])) for ex in examples]
    third = len(asked) // 12 * 4  # whole videos, four questions each: RL practises on videos whose answers SFT has not shown
    train(model, {"sft": asked[:third], "rl": asked[third : third + args.questions]}, args)


if __name__ == "__main__":
    main()
