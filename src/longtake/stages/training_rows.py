"""The rows of a training run: which can be used, in which order they come, and which validate it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from longtake.config.sections import DataConfig, PromptConfig
from longtake.config.stages import RlConfig, SftConfig
from longtake.data.order import Mixture, positions
from longtake.data.rows import check_failures, in_turn, read_examples
from longtake.data.texts import response_text, user_text
from longtake.data.videos import VideoSource
from longtake.errors import RowError
from longtake.models.family import Model
from longtake.observe.progress import say
from longtake.parallel.balance import longest_first
from longtake.stages.team import Team
from longtake.types import Example, Failure, VideoRef
from longtake.video.index import DigestIndex

Order = Callable[[int, int, tuple[int, ...]], list[int]]


def read_training_rows(config: SftConfig | RlConfig, index: DigestIndex) -> tuple[list[Example], list[Failure]]:
    """Usable rows in their order, and the failures, each said aloud once. Raises RowError when too many failed or none is left, of a
    mixture when this holds for the share of the draws or for one of its sources."""
    items = read_examples(config.data, index)
    if isinstance(config, SftConfig):
        items = [teachable(item) for item in items]
    check_failures(items, config.data.max_failed_fraction)
    failures = [item for item in items if isinstance(item, Failure)]
    refuse_failed(config.data, Counter(item.source for item in items), Counter(failure.source for failure in failures))
    for failure in failures:
        place = f"row {failure.name}" if failure.name is not None or not failure.source else f"a row of {failure.source}"
        say(f"skipped {place}: {failure.message}", style="yellow")
    return [item for item in items if isinstance(item, Example)], failures


def refuse_failed(data: DataConfig, rows: Counter[str], failed: Counter[str], told: str = "") -> None:
    """Raises RowError when more than data.max_failed_fraction of what is drawn falls on rows that cannot be used, or a source has no other.

    `rows`, `failed`: of each source, "" for rows of one file; a source counts by its weight, however few its rows. `told` goes into the
    message.
    """
    weights = {name: source.weight for name, source in data.parts.items()}
    empty = [name for name in weights if failed[name] == rows[name]]
    share = sum(weight * failed[name] / rows[name] for name, weight in weights.items() if rows[name]) / sum(weights.values())
    if not empty and share <= data.max_failed_fraction:
        return
    given = f"{failed.total()} of {rows.total()} rows cannot be used{told}"
    if data.sources:
        listed = ", ".join(f"{name} {failed[name]} of {rows[name]}" for name in weights if failed[name] or not rows[name])
        given += f" ({listed}), {share:.0%} of what is drawn"
    raise RowError(
        given,
        rule=f"at most {data.max_failed_fraction:.0%} fail (data.max_failed_fraction), and at least one row is left, of every source",
        remedy="mend the rows, allow a larger share, or take a source out of the mixture",
    )


def order_of(config: SftConfig | RlConfig, examples: Sequence[Example]) -> Order:
    """(start, count, front) -> indices of the rows at these data positions, see `data.order`."""
    if not config.data.sources:
        return lambda start, count, front: positions(start, count, len(examples), config.seed, front)
    counts = Counter(example.source for example in examples)
    weights = {name: source.weight for name, source in config.data.sources.items()}
    return Mixture({name: counts[name] for name in weights}, weights, config.seed).at


def facts_of(example: Example, taught: bool) -> tuple[Any, ...]:
    """What decides about training on a row, or validating with it; its reasoning only where it is taught."""
    media = [(ref.kind, ref.digest) for ref in example.media]
    shown = (example.name, media, example.subtitles, example.question)
    return (*shown, example.answer, example.answer_kind, example.category, example.reasoning if taught else None)


def media_of(examples: Sequence[Example]) -> list[VideoRef]:
    """All that these rows show, each once."""
    return list(dict.fromkeys(ref for example in examples for ref in example.media))


def longest_rows(team: Team, model: Model, source: VideoSource, examples: Sequence[Example], count: int) -> tuple[int, ...]:
    """Indices of the `count` rows with the most tokens of media, subtitles and question; each rank probes its share of the videos."""
    refs = list(enumerate(media_of(examples)))
    told = team.tell({number: source.num_tokens(ref) for number, ref in refs[team.rank :: team.world.size]})
    tokens = {refs[int(number)][1]: num for one in told for number, num in one.items()}
    of_video = [sum(tokens[ref] for ref in example.media) for example in examples]
    sizes = [num + len(model.text_ids(user_text(example, PromptConfig()))) for num, example in zip(of_video, examples, strict=True)]
    return tuple(longest_first(sizes)[:count])


def teachable(item: Example | Failure) -> Example | Failure:
    """A row whose response cannot be written down, or has no reasoning to teach, is a Failure now, and not in the middle of training."""
    if isinstance(item, Failure):
        return item
    try:
        if not item.reasoning.strip():
            raise RowError(
                f"problem {item.problem_id}: no reasoning",
                rule="SFT teaches the reasoning that leads to the answer; an empty one would be taught as the right response",
                remedy="leave such rows to RL, which needs none, or write their reasoning",
            )
        response_text(item)
    except RowError as error:
        return Failure(item.problem_id, "rows", type(error).__name__, str(error), item.category, item.source)
    return item


def validation_items(config: SftConfig | RlConfig, index: DigestIndex) -> list[Example | Failure]:
    """The first rows of the validation set, of each source of a mixture in turn; a row that fails to read stays, as a wrong answer."""
    if config.validation is None:
        return []
    return in_turn(read_examples(config.validation.data, index))[: config.validation.num_rows]
