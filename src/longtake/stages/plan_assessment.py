"""A configuration assessed: a usual step and the largest one, their layouts, seconds and bytes, and where memory falls short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from longtake.config.plan import PlanConfig
from longtake.errors import ConfigError, MemoryLimitError, PromptTooLongError, RowError
from longtake.models.costs import model_costs
from longtake.parallel.costs import embedding_bytes, num_video_tokens
from longtake.parallel.layouts import Allowed
from longtake.parallel.memory import HostBytes, RankBytes, RolloutLimits, host_bytes
from longtake.parallel.planner import smallest_update
from longtake.parallel.seconds import Split
from longtake.parallel.setting import GIB, Cluster, DeviceRates, Setting
from longtake.parallel.step import StepPlan, StepWork, VideoShape, plan_step, step_bytes
from longtake.stages.plan_hardware import training_costs_of
from longtake.stages.plan_workload import SampledRow, Workload, sample_rows
from longtake.types import ModelCosts, PackedGroup

WORDS = {
    "optimizer": "moments",
    "gathered": "in passing",
    "keys_values": "keys and values",
    "pixels": "pixels and tower",
    "device": "the ranks' tensors",
}


def in_words(part: str) -> str:
    """What a part of the memory is called in front of people."""
    return WORDS.get(part, part.replace("_", " "))


@dataclass(frozen=True)
class Shortfall:
    """A phase that needs more memory than there is."""

    phase: str
    """encode, rollout, update, optimizer; or host."""
    need: float
    limit: float
    largest_part: str

    def __str__(self) -> str:
        return f"{self.phase} needs {self.need / GIB:.1f} of {self.limit / GIB:.1f} GiB (most of it {in_words(self.largest_part)})"


@dataclass(frozen=True)
class Assessment:
    """What a configuration comes to."""

    setting: Setting
    rows: tuple[SampledRow, ...]
    refused: Counter[str]
    """Rows that this configuration refuses, by kind of error."""
    usual: StepPlan | None
    """None where memory falls short."""
    largest: StepPlan | None
    largest_bytes: tuple[tuple[str, RankBytes], ...]
    """By phase, of the largest step; of an update that does not fit the least it would need."""
    host: HostBytes
    num_videos: int
    """Different videos that the run sees."""
    kept_videos: int
    """Of these the ones whose embeddings stay cached."""
    fresh_steps: float
    """Steps of the run that have videos to decode and encode."""
    shortfalls: tuple[Shortfall, ...]

    @property
    def keeps_embeddings(self) -> bool:
        """Later passes over the rows decode and encode nothing."""
        return self.kept_videos == self.num_videos


def assess(config: PlanConfig, workload: Workload, cluster: Cluster, rates: DeviceRates) -> Assessment:
    """Plan a usual step (prompts spread evenly over the lengths drawn, takes as long as expected) and the largest (the longest prompts,
    takes of max_new_tokens). Raises RowError when no row is left, ModelError for a model that is none."""
    costs = model_costs(config.model.path, config.model.dtype)
    setting = setting_of(config, costs, cluster, rates)
    rows, refused = sample_rows(config, costs, workload)
    if not rows:
        raise _nothing_left(config, refused)
    rows = sorted(rows, key=lambda row: row.prompt_tokens)
    videos, num_videos = _videos(config, rows)
    kept = _kept(config, costs, videos, num_videos)
    longest = longest_rows(config, rows)
    evenly = spread_evenly(rows, {name: source.weight for name, source in config.data.sources.items()}, config.prompts_per_step)
    largest = _step(config, setting, longest, config.rollout.max_new_tokens)
    usual = _step(config, setting, evenly, config.response_tokens or config.rollout.max_new_tokens)
    sizes = largest_bytes(config, setting, longest, largest)
    host = _host(config, setting, videos, num_videos, max(size.total for _, size in sizes))
    return Assessment(
        setting=setting,
        rows=tuple(rows),
        refused=refused,
        usual=usual,
        largest=largest,
        largest_bytes=sizes,
        host=host,
        num_videos=num_videos,
        kept_videos=kept,
        fresh_steps=_fresh_steps(config, len(_videos(config, evenly)[0]), num_videos, kept),
        shortfalls=shortfalls(setting, sizes, host),
    )


def shortfalls_of(config: PlanConfig, workload: Workload, cluster: Cluster, rates: DeviceRates) -> tuple[Shortfall, ...]:
    """Where memory falls short in the largest step, without planning it: quick enough to try many configurations. Raises as `assess`."""
    setting = setting_of(config, model_costs(config.model.path, config.model.dtype), cluster, rates)
    rows, refused = sample_rows(config, setting.costs, workload)
    if not rows:
        raise _nothing_left(config, refused)
    sizes = largest_bytes(config, setting, longest_rows(config, sorted(rows, key=lambda row: row.prompt_tokens)), None)
    videos, num_videos = _videos(config, rows)
    return shortfalls(setting, sizes, _host(config, setting, videos, num_videos, max(size.total for _, size in sizes)))


def spread_evenly(rows: Sequence[SampledRow], weights: Mapping[str, float], count: int) -> list[SampledRow]:
    """`count` of `rows`, in their order, each standing for an equal part of what is drawn: a source as often as its weight says."""
    counts = Counter(row.source for row in rows)
    drawn = np.cumsum([weights.get(row.source, 1.0) * len(rows) / counts[row.source] for row in rows])
    middles = (2 * np.arange(count) + 1) * drawn[-1] / (2 * count)
    return [rows[place] for place in np.searchsorted(drawn, middles, side="right")]


def longest_rows(config: PlanConfig, rows: Sequence[SampledRow]) -> list[SampledRow]:
    """A step's worth of the longest of `rows`, which are in order of length; a small set comes round again."""
    return [rows[-1 - place % len(rows)] for place in range(config.prompts_per_step)]


def setting_of(config: PlanConfig, costs: ModelCosts, cluster: Cluster, rates: DeviceRates) -> Setting:
    uses_reference = config.algorithm.kl.coefficient > 0
    training = training_costs_of(config.model, costs, reference_passes=uses_reference, sharded=config.parallel.sharded)
    return Setting(costs, training, cluster, rates)


def allowed_of(config: PlanConfig, setting: Setting) -> Allowed:
    """Layers are checkpointed where the configuration says so, and degrees above 1 are kept; the rest is the planner's."""
    splits = (asked_split(config, setting),) if asks_for_degrees(config) else None
    return Allowed(checkpointing=config.model.gradient_checkpointing, splits=splits, max_tokens=config.micro_batch_tokens)


def asks_for_degrees(config: PlanConfig) -> bool:
    return config.parallel.ulysses * config.parallel.ring > 1


def asked_split(config: PlanConfig, setting: Setting) -> Split:
    """The degrees of the configuration. Raises ConfigError when they do not go with the ranks or the heads."""
    ulysses, ring = config.parallel.ulysses, config.parallel.ring
    world, heads = setting.cluster.world_size, setting.costs.heads
    if world % (ulysses * ring) or heads % ulysses:
        raise ConfigError(
            f"parallel.ulysses = {ulysses}, parallel.ring = {ring} for {world} processes and {heads} query heads",
            rule="ulysses divides the heads, ulysses x ring the number of processes",
            remedy="set hardware.gpus_per_node and hardware.nodes as the run will have them, or leave the degrees out",
        )
    return Split(ulysses, ring)


def limits_of(config: PlanConfig) -> RolloutLimits:
    rollout = config.rollout
    return RolloutLimits(rollout.num_takes, rollout.max_new_tokens, rollout.max_rows)


def step_work(config: PlanConfig, rows: Sequence[SampledRow], take_tokens: int) -> StepWork:
    """A step with these rows, one group each, divided into its updates."""
    groups = [PackedGroup(row.prompt_tokens, (take_tokens,) * config.rollout.num_takes) for row in rows]
    count = config.updates_per_step
    updates = tuple(tuple(groups[part * len(groups) // count : (part + 1) * len(groups) // count]) for part in range(count))
    return StepWork(updates, tuple(_videos(config, rows)[0]), limits_of(config), config.video.encode_groups)


def _step(config: PlanConfig, setting: Setting, rows: Sequence[SampledRow], take_tokens: int) -> StepPlan | None:
    try:
        return plan_step(setting, step_work(config, rows, take_tokens), allowed_of(config, setting))
    except MemoryLimitError:
        return None


def largest_bytes(
    config: PlanConfig, setting: Setting, rows: Sequence[SampledRow], step: StepPlan | None
) -> tuple[tuple[str, RankBytes], ...]:
    """Bytes of each phase of the largest step; where no layout fits, the least that an update would need."""
    if step is not None:
        return tuple(step.bytes.phases())
    work = step_work(config, rows, config.rollout.max_new_tokens)
    update = smallest_update(setting, work.groups, allowed_of(config, setting))
    found = step_bytes(setting, work, ())
    return tuple(replace(found, update=update).phases())


def shortfalls(setting: Setting, sizes: Sequence[tuple[str, RankBytes]], host: HostBytes) -> tuple[Shortfall, ...]:
    limit, host_limit = setting.cluster.rank_bytes, setting.cluster.host_bytes
    found = [Shortfall(phase, size.total, limit, size.largest()) for phase, size in sizes if size.total > limit]
    if host.total > host_limit:
        found.append(Shortfall("host", host.total, host_limit, host.largest()))
    return tuple(found)


def _videos(config: PlanConfig, rows: Sequence[SampledRow]) -> tuple[list[VideoShape], int]:
    """The different videos of these rows, and how many the run sees: those of its rows, or a hypothetical one per prompt."""
    videos = list(dict(one for row in rows for one in row.media).values())
    return videos, len(videos) if config.frames is None else config.steps * config.prompts_per_step


def _host(config: PlanConfig, setting: Setting, videos: Sequence[VideoShape], num_videos: int, rank_peak: float) -> HostBytes:
    largest = max(videos, key=lambda video: video.num_frames * video.height * video.width, default=VideoShape(0, 0, 0))
    in_memory = config.cache.memory_bytes if config.cache.folder is None or config.model.train_vision else 0
    return host_bytes(
        setting,
        largest.num_frames,
        largest.height,
        largest.width,
        num_videos=num_videos,
        cache_bytes=in_memory,
        rank_peak=rank_peak,
    )


def _kept(config: PlanConfig, costs: ModelCosts, videos: Sequence[VideoShape], num_videos: int) -> int:
    """How many of the run's videos have room in the cache, all being as large as these are on average. A full cache keeps what it has."""
    if config.model.train_vision:
        return 0
    budget = config.cache.memory_bytes if config.cache.folder is None else config.cache.disk_bytes
    sizes = [embedding_bytes(costs, num_video_tokens(costs, video.num_frames, video.height, video.width)) for video in videos]
    return min(num_videos, int(budget * len(sizes) // sum(sizes))) if sizes else num_videos


def _fresh_steps(config: PlanConfig, per_step: int, num_videos: int, kept: int) -> float:
    """Steps' worth of videos that are decoded and encoded: each once when all stay cached, else (nearly) every step's."""
    if kept < num_videos:
        return config.steps
    return min(config.steps, num_videos / max(1, per_step))


def _nothing_left(config: PlanConfig, refused: Counter[str]) -> RowError | PromptTooLongError:
    kinds = ", ".join(f"{count} {kind}" for kind, count in refused.items())
    if set(refused) == {"PromptTooLongError"}:
        return PromptTooLongError(
            f"all {refused.total()} prompts are longer than allowed",
            rule=f"prompt.max_prompt_tokens = {config.prompt.max_prompt_tokens}, video.max_video_tokens = {config.video.max_video_tokens}",
            remedy="lower video.max_frames or video.max_pixels_per_frame, or raise the limits",
        )
    return RowError(f"no row is left ({kinds})", rule="a plan needs rows that can be used", remedy="mend the rows or the video section")
