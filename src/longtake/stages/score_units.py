"""What `longtake score` computes with: prompts that all ranks of a sequence agree on, batches of them, their log-probs in either layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from longtake.config.score import ScoreConfig
from longtake.data.embedding_cache import EmbeddingCache, digest_index
from longtake.data.render import render_prompt
from longtake.data.responses import Response, Scored, failure_of
from longtake.data.rows import SourcedRow, example_or_failure, read_sourced
from longtake.data.videos import VideoSource
from longtake.errors import MismatchError, PathError, PromptTooLongError, RowError, VideoError
from longtake.models.family import Model
from longtake.observe.timing import Phases
from longtake.parallel.collectives import gather_texts
from longtake.parallel.mesh import Axis, SequenceMesh
from longtake.parallel.packed import pack_rows
from longtake.training.packed_policy import ScoredTakes, packed_logprobs, score_groups
from longtake.types import Example, Failure, Prompt, RowName, row_name

T = TypeVar("T", Example, Prompt)


class Rows:
    """The rows that responses may answer, by name. Nothing is read of a video until its prompt is wanted."""

    def __init__(self, config: ScoreConfig) -> None:
        self._files = {name: part.rows.name for name, part in config.data.parts.items()}
        self._rows: dict[RowName, SourcedRow] = {}
        for row in read_sourced(config.data):
            # A failure wins: of two rows with one id nobody knows which was answered.
            if row.name is not None and not (row.name in self._rows and isinstance(self._rows[row.name].item, Failure)):
                self._rows[row.name] = row

    def name(self, response: Response) -> RowName:
        """Of the row that it answers. Without a mixture its field `source`, if it has one, is none of ours."""
        return row_name("" if "" in self._files else response.source, response.problem_id)

    def find(self, response: Response) -> SourcedRow | Failure:
        """The row as it stands in its file; a Failure for one that cannot be read or is not there."""
        found = self._rows.get(self.name(response))
        if found is not None:
            return found.item if isinstance(found.item, Failure) else found
        file = self._files.get("", self._files.get(response.source))
        if file is not None:
            error = RowError(
                f"problem_id {response.problem_id} is in no row of {file}",
                rule="a response answers one of the rows that data.categories and data.max_rows leave",
                remedy="correct the problem_id, or give the rows that were answered in data.rows",
            )
        else:
            error = RowError(
                f"source {response.source!r}" if response.source else f"problem_id {response.problem_id} without a source",
                rule=f"a response to a mixture names one of its sources: {', '.join(self._files)}",
                remedy="write its field source, or give the one file that was answered in data.rows",
            )
        return failure_of(error, response.problem_id)


class Prompts:
    """Makes the prompts of rows. All ranks that share a sequence ask for the same ones in order; what fails on one fails on all."""

    def __init__(self, config: ScoreConfig, model: Model, axis: Axis, phases: Phases) -> None:
        """`axis`: these ranks; they decode and encode each video together, once."""
        self._config, self._model, self._axis = config, model, axis
        self.index = digest_index(config.cache, None, config.video.limits)
        self._source = VideoSource(model, config.video, phases, EmbeddingCache(config.cache), axis=axis)

    def prompt(self, row: SourcedRow) -> Prompt | Failure:
        """The same on every rank."""
        own = example_or_failure(row, self.index if self._config.data.with_video else None)
        example = agreed(own, lambda example: " ".join(ref.digest for ref in example.media), row, self._axis)
        if isinstance(example, Failure):
            return example
        if example.media:
            self._source.prepare(example.media)
        return agreed(self._render(example), lambda prompt: prompt.digest, row, self._axis)

    def release(self) -> None:
        """Let go of the videos of prompts that were scored; the cache keeps what it has room for."""
        self._source.release()

    def _render(self, example: Example) -> Prompt | Failure:
        try:
            tokens = [self._source.tokens(ref) for ref in example.media]
            return render_prompt(example, tokens, self._model, self._config.prompt)
        except (PathError, VideoError, PromptTooLongError) as error:
            return failure_of(error, example.problem_id, "video" if isinstance(error, VideoError) else "prompt")


def agreed(own: T | Failure, digest: Callable[[T], str], row: SourcedRow, axis: Axis) -> T | Failure:
    """`own` where every rank of the axis found the same, else a Failure on all of them."""
    told = [json.loads(text) for text in gather_texts(json.dumps(asdict(own) if isinstance(own, Failure) else digest(own)), axis)]
    failures = [one for one in told if isinstance(one, dict)]
    if failures:
        return Failure(**failures[0])
    if len(set(told)) == 1:
        return own
    error = MismatchError(
        f"problem {row.name}: its video or prompt is not the same in all processes",
        rule="processes that share a sequence read the same rows, videos and weights with the same libraries",
        remedy="compare the files, and the versions of PyAV and transformers, on all machines",
    )
    return failure_of(error, row.item.problem_id, "prompt")


@dataclass(frozen=True, eq=False)
class Unit:
    """Responses behind one copy of their prompt."""

    prompt: Prompt
    responses: tuple[Tensor, ...]
    lines: tuple[int, ...]
    """The place of each response among all."""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt.token_ids) + sum(map(len, self.responses))

    def rows(self) -> Iterator[Unit]:
        """One per response."""
        for response, line in zip(self.responses, self.lines, strict=True):
            yield replace(self, responses=(response,), lines=(line,))


def batches(units: Iterable[Unit], max_tokens: int) -> Iterator[list[Unit]]:
    """Units of at most `max_tokens` together, in their order; a larger one is alone."""
    batch: list[Unit] = []
    for unit in units:
        if batch and sum(other.num_tokens for other in batch) + unit.num_tokens > max_tokens:
            yield batch
            batch = []
        batch.append(unit)
    if batch:
        yield batch


@torch.no_grad()
def score_batch(model: Model, batch: Sequence[Unit], config: ScoreConfig, mesh: SequenceMesh) -> dict[int, Scored]:
    """What each response's tokens are worth, by its place among all. Every rank of the sequence axis must call it with the same batch."""
    lines = [line for unit in batch for line in unit.lines]
    results: dict[int, Scored] = {}

    def note(takes: ScoredTakes) -> None:
        logprobs, entropy, mask = takes.logprobs.cpu(), takes.entropy.cpu(), takes.mask.cpu()
        for place, take in enumerate(takes.takes):
            tokens = mask[place]
            results[lines[take]] = Scored(logprobs[place, tokens].tolist(), entropy[place, tokens].tolist())

    prompts = [unit.prompt for unit in batch]
    if config.layout == "shared":
        responses = [unit.responses for unit in batch]
        score_groups(model, prompts, responses, config.temperature, note, max_tokens=config.max_tokens, mesh=mesh)
        return results
    packed = pack_rows(prompts, [unit.responses[0] for unit in batch], model.device)
    logprobs, entropy = packed_logprobs(model, packed, config.temperature, mesh=mesh)
    note(ScoredTakes(tuple(range(len(batch))), logprobs, entropy, packed.response_mask))
    return results
