"""Which setting to change, and to what, when a configuration does not fit: every remedy offered has been tried and does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from longtake.config.base import Section
from longtake.config.plan import PlanConfig
from longtake.config.sections import LoraConfig
from longtake.errors import LongtakeError
from longtake.parallel.layouts import splits_of
from longtake.stages.plan_assessment import Assessment, asks_for_degrees
from longtake.stages.plan_workload import video_config

MAX_GPUS = 1024
LORA_RANK = 16
LOOKS = 16

Fits = Callable[[PlanConfig], bool]


@dataclass(frozen=True)
class Remedy:
    """Settings with which the run fits."""

    settings: tuple[tuple[str, Any], ...]
    """(dotted key, value)."""

    def __str__(self) -> str:
        return " and ".join(f"{key} = {_written(value)}" for key, value in self.settings)


def remedies(config: PlanConfig, assessment: Assessment, fits: Fits) -> list[Remedy]:
    """Single changes that are enough, each by itself and none larger than needed; where none is, the savings that change no result taken
    together, with one further change if that is not enough either."""
    single = [*_degrees(config, assessment, fits), *(Remedy((change,)) for change in _single(config, assessment, fits))]
    if single:
        return single
    savings = _savings(config, assessment)
    together = changed_all(config, savings)
    if savings and _fits(fits, together):
        return [Remedy(tuple(savings))]
    return [Remedy((*savings, change)) for change in _single(together, assessment, fits)]


def _single(config: PlanConfig, assessment: Assessment, fits: Fits) -> Iterator[tuple[str, Any]]:
    for change in _savings(config, assessment):
        if _fits(fits, changed_all(config, [change])):
            yield change
    for key, values in _ladders(config, assessment):
        value = largest_that_works(values, lambda value, key=key: _fits(fits, changed_all(config, [(key, value)])))  # type: ignore[misc]
        if value is not None:
            yield key, value
    yield from _more_gpus(config, assessment, fits)


def _degrees(config: PlanConfig, assessment: Assessment, fits: Fits) -> Iterator[Remedy]:
    """Other degrees than the configuration asks for: the fewest ranks a sequence with which it fits."""
    if not asks_for_degrees(config):
        return
    for split in sorted(splits_of(assessment.setting), key=lambda split: (split.degree, split.ring)):
        settings = [("parallel.ulysses", split.ulysses), ("parallel.ring", split.ring)]
        if split.degree > 1 and _fits(fits, changed_all(config, settings)):
            yield Remedy(tuple(settings))
            return


def _savings(config: PlanConfig, assessment: Assessment) -> list[tuple[str, Any]]:
    """What saves memory at the price of time or of freedom in training, the mildest first."""
    model = config.model
    found: list[tuple[str, Any]] = []
    if assessment.setting.cluster.world_size > 1 and not config.parallel.sharded:
        found.append(("parallel.sharded", True))
    if not model.gradient_checkpointing:
        found.append(("model.gradient_checkpointing", True))
    if model.dtype == "float32":
        found.append(("model.dtype", "bfloat16"))
    if model.lora is None and not model.train_vision:
        found.append(("model.lora.rank", LORA_RANK))
    return found


def _ladders(config: PlanConfig, assessment: Assessment) -> Iterator[tuple[str, list[int]]]:
    """(key, values to try, ascending), for settings of which less is enough at some point."""
    costs = assessment.setting.costs
    video = video_config(config, costs)
    patch, token = costs.tower.temporal_patch, costs.patch_multiple**2
    yield ("frames" if config.frames else "video.max_frames"), list(range(patch, video.max_frames, patch))
    yield "video.max_pixels_per_frame", list(range(max(token, video.min_pixels_per_frame), video.max_pixels_per_frame or 0, token))
    yield "rollout.max_new_tokens", list(range(64, config.rollout.max_new_tokens, 64))
    yield "rollout.max_rows", list(range(1, config.rollout.max_rows))
    yield "video.encode_groups", list(range(1, config.video.encode_groups))
    yield "cache.memory_bytes", [part << 28 for part in range(config.cache.memory_bytes >> 28)]


def _more_gpus(config: PlanConfig, assessment: Assessment, fits: Fits) -> Iterator[tuple[str, Any]]:
    """More of the same GPUs, a node at a time; a CPU's processes share one memory, of which more of them have no more."""
    cluster = assessment.setting.cluster
    if cluster.device == "cpu":
        return
    counts = [
        cluster.nodes * factor for factor in (2, 4, 8, 16, 32, 64, 128) if cluster.nodes * factor * cluster.ranks_per_node <= MAX_GPUS
    ]
    per_node = [count for count in (2, 4, 8) if count > cluster.ranks_per_node and cluster.nodes == 1]
    for key, values in (("hardware.gpus_per_node", per_node), ("hardware.nodes", counts)):
        enough = next((value for value in values if _fits(fits, changed_all(config, [(key, value)]))), None)
        if enough is not None:
            yield key, enough
            return


def largest_that_works(values: Sequence[int], works: Callable[[int], bool]) -> int | None:
    """The largest of ascending `values` that works: looked for from above at LOOKS places, then by halves up to the next that does not.
    Less is not always enough where more is: of shorter prompts more are decoded together."""
    stride = max(1, len(values) // LOOKS)
    places = [*range(len(values) - 1, 0, -stride), 0] if values else []
    low = next((place for place in places if works(values[place])), None)
    if low is None:
        return None
    high = min(low + stride, len(values))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(values[middle]) else (low, middle)
    return values[low]


def _fits(fits: Fits, config: PlanConfig) -> bool:
    """A change that leaves nothing to plan (no row is left, the model's family refuses it) is none that fits."""
    try:
        return fits(config)
    except LongtakeError:
        return False


def changed_all(config: PlanConfig, settings: list[tuple[str, Any]]) -> PlanConfig:
    """The configuration with these values set."""
    for key, value in settings:
        config = _changed(config, key.split("."), value)
    return config


def _changed(section: Any, names: list[str], value: Any) -> Any:
    if len(names) == 1:
        return section.model_copy(update={names[0]: value})
    inner = getattr(section, names[0])
    inner = LoraConfig() if inner is None and names[0] == "lora" else inner
    assert isinstance(inner, Section)
    return section.model_copy(update={names[0]: _changed(inner, names[1:], value)})


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
