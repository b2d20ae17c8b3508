"""A whole RL step predicted: seconds of each phase, bytes of a rank in each phase, and the layouts of its updates. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from longtake.parallel.balance import balanced
from longtake.parallel.layouts import EVERYTHING, Allowed, Plan, predict
from longtake.parallel.memory import RankBytes, RolloutLimits, encode_bytes, optimizer_step_bytes, rollout_bytes, standing_bytes
from longtake.parallel.planner import plan_batch
from longtake.parallel.seconds import encode_seconds, optimizer_seconds, prefill_seconds, sample_seconds, sum_gradients_seconds
from longtake.parallel.setting import Setting
from longtake.types import PackedGroup

DECODED_PIXELS_PER_S = 2.5e8
"""Of one decoder thread (H.264, measured on a busy core: 512 frames of an hour of 640 x 360 in 7 to 17 s)."""


@dataclass(frozen=True)
class VideoShape:
    """One video as it is sampled."""

    num_frames: int
    height: int
    width: int
    decoded_pixels: float = 0.0
    """Of all source frames that the decoder must produce for these."""


@dataclass(frozen=True)
class StepWork:
    """What a step is made of."""

    updates: tuple[tuple[PackedGroup, ...], ...]
    """The groups of each optimizer step."""
    videos: tuple[VideoShape, ...]
    """Different ones."""
    rollout: RolloutLimits
    encode_groups: int
    """Temporal groups that the tower takes at a time."""

    @property
    def groups(self) -> list[PackedGroup]:
        return [group for update in self.updates for group in update]


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of each phase on the slowest rank."""

    decode: float
    """Video files to frames."""
    encode: float
    prefill: float
    sample: float
    reference: float
    update: float
    """Forward and backward of the policy."""
    optimizer: float
    """Sum of gradients and AdamW."""

    @property
    def total(self) -> float:
        return sum(seconds for _, seconds in self.phases())

    def phases(self) -> list[tuple[str, float]]:
        return [(part.name, getattr(self, part.name)) for part in fields(self)]


@dataclass(frozen=True)
class StepBytes:
    """Bytes of the fullest rank in each phase."""

    encode: RankBytes
    rollout: RankBytes
    update: RankBytes
    optimizer: RankBytes

    def phases(self) -> list[tuple[str, RankBytes]]:
        return [(part.name, getattr(self, part.name)) for part in fields(self)]

    @property
    def peak(self) -> float:
        return max(size.total for _, size in self.phases())


@dataclass(frozen=True)
class StepPlan:
    """The layouts of each update, and what the step takes."""

    plans: tuple[Plan, ...]
    seconds: StepSeconds
    bytes: StepBytes


def plan_step(setting: Setting, work: StepWork, allowed: Allowed = EVERYTHING) -> StepPlan:
    """Raises MemoryLimitError when an update fits in no layout; the other phases are predicted whether they fit or not."""
    plans = tuple(plan_batch(setting, update, allowed) for update in work.updates)
    return StepPlan(plans, step_seconds(setting, work, plans), step_bytes(setting, work, plans))


def step_seconds(setting: Setting, work: StepWork, plans: Sequence[Plan]) -> StepSeconds:
    """Videos are decoded by all ranks of a node, encoded by all ranks together; each rank samples whole groups."""
    world = setting.cluster.world_size
    reference = sum(reference_seconds(setting, update, plan) for update, plan in zip(work.updates, plans, strict=True))
    once = sum_gradients_seconds(setting) + optimizer_seconds(setting)
    prefill, sample = rollout_seconds(setting, work)
    return StepSeconds(
        decode=sum(video.decoded_pixels for video in work.videos) / DECODED_PIXELS_PER_S / world,
        encode=sum(encode_seconds(setting, video.num_frames, video.height, video.width, world) for video in work.videos),
        prefill=prefill,
        sample=sample,
        reference=reference,
        update=sum(plan.seconds for plan in plans) - reference,
        optimizer=once * len(work.updates),
    )


def reference_seconds(setting: Setting, groups: Sequence[PackedGroup], plan: Plan) -> float:
    """The reference's share of a plan: what the same layouts would take less without it."""
    if not setting.training.reference_passes:
        return 0.0
    without = replace(setting, training=replace(setting.training, reference_passes=False))
    return plan.seconds - sum(predict(without, groups, layout).seconds for layout in plan.layouts)


def rollout_seconds(setting: Setting, work: StepWork) -> tuple[float, float]:
    """(prefill, sampling) of the slowest rank: groups are balanced over the ranks by what they cost, and decoded in waves."""
    groups = work.groups
    costs = [prefill_seconds(setting, group) + sample_seconds(setting, [group]) for group in groups]
    found = [
        _rank_rollout(setting, work.rollout, [groups[index] for index in part]) for part in balanced(costs, setting.cluster.world_size)
    ]
    return max(found, key=sum)


def _rank_rollout(setting: Setting, limits: RolloutLimits, groups: Sequence[PackedGroup]) -> tuple[float, float]:
    ordered = sorted(groups, key=lambda group: group.prompt_length)
    size = limits.wave(max((group.prompt_length for group in groups), default=1))
    waves = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return sum(prefill_seconds(setting, group) for group in groups), sum(sample_seconds(setting, wave) for wave in waves)


def step_bytes(setting: Setting, work: StepWork, plans: Sequence[Plan]) -> StepBytes:
    """The largest of each phase. A rank may be given the longest prompts of the step."""
    standing = standing_bytes(setting)
    encodes = [encode_bytes(setting, video.num_frames, video.height, video.width, work.encode_groups) for video in work.videos]
    per_rank = -(-len(work.groups) // setting.cluster.world_size)
    prompts = sorted((group.prompt_length for group in work.groups), reverse=True)[:per_rank]
    return StepBytes(
        encode=max(encodes, key=lambda size: size.total, default=standing),
        rollout=rollout_bytes(setting, prompts, work.rollout) if prompts else standing,
        update=max((plan.bytes for plan in plans), key=lambda size: size.total, default=standing),
        optimizer=optimizer_step_bytes(setting),
    )
