"""The policy answers questions about videos: each video is decoded and encoded once, many takes are sampled together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from longtake.answers import parse_response
from longtake.config.curate import DifficultyConfig
from longtake.curation.published import published_row
from longtake.curation.records import Draft
from longtake.data.embedding_cache import EmbeddingCache
from longtake.data.render import longest_prompt, render_prompt
from longtake.data.rows import check_row
from longtake.data.videos import VideoSource
from longtake.errors import LongtakeError, VideoMissingError
from longtake.models import load_model
from longtake.models.loading import model_folder
from longtake.observe.digest import digest_of, file_digest
from longtake.observe.timing import Phases
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.engines import make_engine
from longtake.types import Example, Prompt, VideoRef, VideoTokens
from longtake.video.index import DigestIndex

MODEL_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Of a checkpoint directory: weights, configurations, tokenizer and chat template."""

Answers = list[str | None]
"""Of the takes of one row: the text between the answer tags, None where there is none or more than one."""
Log = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True, eq=False)
class Question:
    """A row on its way to the policy."""

    draft: Draft
    example: Example
    """As training will read it, without its video. The problem id chooses the random numbers."""
    key: str
    """Of its answers in a store."""


@dataclass(frozen=True)
class Refused:
    """Why a row could not be asked."""

    error: LongtakeError
    lasts: bool
    """It is the row's own, or the video's: under the same settings it will be the same the next time."""


def weights_digest(folder: Path, out: Path) -> str:
    """Of the bytes of a checkpoint's files, which are not read again while size and time are the same (kept in `out`)."""
    index = DigestIndex(out / "model_digests.json", max_bytes=1 << 62)
    files = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES and path.is_file())
    digest = digest_of("weights files 1", *((path.name, index.ref(path).digest) for path in files))
    index.save()
    return digest


def ask_policy(
    questions: Sequence[Question], config: DifficultyConfig, *, root: Path, seed: int, out: Path, index: DigestIndex, log: Log | None = None
) -> Iterator[list[tuple[Question, Answers | Refused]]]:
    """Load the policy and ask everything, rows of one video together; what comes is as many rows at a time as are sampled together.

    `root`: folder of the videos. `index`: of their digests: a video whose bytes are not those of the draft is refused. `log` is told the
    metrics of it all at the end. Raises ModelError or RolloutError.
    """
    rollout = config.rollout
    params = SamplingParams(rollout.num_takes, rollout.temperature, rollout.max_new_tokens, seed, step=0)
    num_prompts = max(1, rollout.max_rows // rollout.num_takes)
    model = load_model(config.model)
    model.hf.requires_grad_(False)
    longest = longest_prompt([one.example for one in questions], model, config.video, config.prompt)
    engine = make_engine(model, model_folder(config.model), rollout, longest, num_prompts, out=out)
    source = VideoSource(model, config.video, Phases(), EmbeddingCache(config.cache), prefetch_bytes=config.cache.prefetch_bytes)

    def prompt_of(one: Question, tokens: VideoTokens | Refused) -> Prompt | Refused:
        if isinstance(tokens, Refused):
            return tokens
        try:
            return render_prompt(one.example, (tokens,), model, config.prompt)
        except LongtakeError as error:
            return Refused(error, lasts=True)

    with closing(engine), closing(source), engine.at_weights():
        for batch in _batches(_Videos(source, root, index), questions, num_prompts):
            prompts = [prompt_of(one, tokens) for one, tokens in batch]
            requests = [
                RolloutRequest(one.example.problem_id, prompt)
                for (one, _), prompt in zip(batch, prompts, strict=True)
                if isinstance(prompt, Prompt)
            ]
            takes = iter(engine.generate(requests, params) if requests else [])
            answers = (
                prompt if isinstance(prompt, Refused) else [parse_response(take.text).answer for take in next(takes)] for prompt in prompts
            )
            yield [(one, own) for (one, _), own in zip(batch, answers, strict=True)]
        if log is not None:
            log(source.metrics() | engine.metrics())


def _batches(videos: _Videos, questions: Sequence[Question], size: int) -> Iterator[list[tuple[Question, VideoTokens | Refused]]]:
    """Up to `size` rows at a time with their videos; while they are dealt with, those of the next ones are decoded."""
    ordered = sorted(questions, key=lambda one: (one.draft.digest, one.draft.key))
    for start in range(0, len(ordered), size):
        batch = [(one, videos.tokens(one.draft)) for one in ordered[start : start + size]]
        videos.move_on([one.draft for one in ordered[start + size : start + 2 * size]])
        yield batch


class _Videos:
    """The videos of rows, each looked at and encoded once."""

    def __init__(self, source: VideoSource, root: Path, index: DigestIndex) -> None:
        self._source, self._root, self._index = source, root, index
        self._refs: dict[str, VideoRef | Refused] = {}
        self._tokens: dict[str, VideoTokens | Refused] = {}

    def tokens(self, draft: Draft) -> VideoTokens | Refused:
        if draft.digest not in self._tokens:
            self._tokens[draft.digest] = self._encoded(self._ref(draft))
        return self._tokens[draft.digest]

    def move_on(self, drafts: Sequence[Draft]) -> None:
        """Let go of all other videos, and decode ahead what these lack."""
        wanted = {draft.digest: draft for draft in drafts}
        self._tokens = {digest: tokens for digest, tokens in self._tokens.items() if digest in wanted}
        refs = [self._ref(draft) for digest, draft in wanted.items() if digest not in self._tokens]
        self._refs = {digest: ref for digest, ref in self._refs.items() if digest in wanted}
        self._source.prefetch([ref for ref in refs if isinstance(ref, VideoRef)])

    def _encoded(self, ref: VideoRef | Refused) -> VideoTokens | Refused:
        if isinstance(ref, Refused):
            return ref
        try:
            return self._source.tokens(ref)
        except LongtakeError as error:
            return Refused(error, lasts=_still_is(ref))

    def _ref(self, draft: Draft) -> VideoRef | Refused:
        if draft.digest not in self._refs:
            self._refs[draft.digest] = _found(draft, self._root, self._index)
        return self._refs[draft.digest]


def _found(draft: Draft, root: Path, index: DigestIndex) -> VideoRef | Refused:
    """The file, when its bytes are those that the question is about."""
    try:
        (ref,) = check_row(published_row(draft, 0), root, index).media
    except LongtakeError as error:
        return Refused(error, lasts=False)
    if ref.digest != draft.digest:
        rule = "videos do not change while they are used"
        return Refused(VideoMissingError(f"{ref.path}: other bytes than were taken in", rule=rule, remedy="put it back"), lasts=False)
    return ref


def _still_is(ref: VideoRef) -> bool:
    """Whether the file can be read and is what it was: then it is its bytes that cannot be decoded, and not a disk that failed."""
    try:
        return file_digest(ref.path) == ref.digest
    except OSError:
        return False
