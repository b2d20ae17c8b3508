"""Ask a model every row and record what came back: one record per row, in the order of the rows, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from longtake.answers import is_correct, parse_response, read_letter
from longtake.config.sections import PromptConfig, RolloutConfig
from longtake.data.render import render_prompt
from longtake.data.videos import VideoSource
from longtake.errors import LongtakeError, PathError, VideoError
from longtake.evaluation.letters import best_letter, letter_logprobs, option_tokens
from longtake.evaluation.records import AnswerRecord, refuse_repeated
from longtake.models.family import Model
from longtake.observe.digest import digest_of
from longtake.rollout.engine import Engine, RolloutRequest, SamplingParams
from longtake.types import Example, Failure, Prompt, RowName, Take

Item = Example | Failure
Asked = tuple[Example, Prompt]


def evaluate_examples(
    model: Model,
    engine: Engine,
    source: VideoSource,
    items: Sequence[Item],
    *,
    frames: int,
    prompt: PromptConfig,
    rollout: RolloutConfig,
    with_video: bool = True,
    seed: int = 0,
    step: int = 0,
    advance: Callable[[int], None] | None = None,
) -> list[AnswerRecord]:
    """Generate one answer per row and judge it. `records[i]` belongs to `items[i]`.

    A row, video or prompt that cannot be used is a record with its failure, wrong, never missing and never replaced.
    `frames` is the number written into the records (what `source` was set to); `advance(n)` is told of every n rows done.
    Raises RowError when two rows share a problem id.
    """
    params = SamplingParams(num_takes=1, temperature=rollout.temperature, max_new_tokens=rollout.max_new_tokens, seed=seed, step=step)

    def answer(asked: Sequence[Asked]) -> list[AnswerRecord]:
        requests = [RolloutRequest(key=request_key(example), prompt=own) for example, own in asked]
        takes = engine.generate(requests, params)
        return [judge(example, take, frames) for (example, _), (take,) in zip(asked, takes, strict=True)]

    def ask(example: Example) -> Prompt:
        return ask_prompt(model, source, example, prompt, with_video)

    return _evaluate(items, frames, rollout.max_rows, ask, answer, advance)


def evaluate_letters(
    model: Model,
    source: VideoSource,
    items: Sequence[Item],
    *,
    frames: int,
    prompt: PromptConfig,
    max_rows: int = 64,
    with_video: bool = True,
    advance: Callable[[int], None] | None = None,
) -> list[AnswerRecord]:
    """Like `evaluate_examples`, but the answer is the most probable of the row's own option letters; nothing is generated.

    An open-ended row becomes a record with failure RowError: it cannot be scored so, and does not leave the denominator.
    """

    def answer(asked: Sequence[Asked]) -> list[AnswerRecord]:
        scores = letter_logprobs(model, [own for _, own in asked], [_letters(example) for example, _ in asked])
        return [_letter_record(example, best_letter(score), frames) for (example, _), score in zip(asked, scores, strict=True)]

    def ask(example: Example) -> Prompt:
        option_tokens(model, _letters(example))  # refuses a row that cannot be scored, before its video is decoded
        return ask_prompt(model, source, example, prompt, with_video)

    return _evaluate(items, frames, max_rows, ask, answer, advance)


def ask_prompt(model: Model, source: VideoSource, example: Example, config: PromptConfig, with_video: bool) -> Prompt:
    """The row's prompt with its media encoded; blind, the same question with none in it. Raises VideoError, PromptTooLongError."""
    tokens = [source.tokens(ref) for ref in example.media] if with_video else ()
    return render_prompt(example, tokens, model, config)


def request_key(example: Example) -> int:
    """Chooses the random numbers of its answer: its problem_id, in a mixture with the source."""
    return example.problem_id if not example.source else int(digest_of("evaluation key 1", example.name)[:15], 16)


def judge(example: Example, take: Take, frames: int) -> AnswerRecord:
    """The record of one generated answer."""
    parsed = parse_response(take.text)
    predicted = read_letter(parsed.answer or "", example.options) if example.answer_kind == "letter" else parsed.answer
    return _record(
        example,
        frames,
        predicted=predicted,
        correct=is_correct(example, take.text),
        well_formed=parsed.well_formed,
        text=take.text,
        response_tokens=len(take.token_ids),
        finish_reason=take.finish_reason,
    )


def _letter_record(example: Example, letter: str, frames: int) -> AnswerRecord:
    return _record(example, frames, predicted=letter, correct=letter == example.answer, well_formed=None)


def _evaluate(
    items: Sequence[Item],
    frames: int,
    chunk: int,
    ask: Callable[[Example], Prompt],
    answer: Callable[[Sequence[Asked]], list[AnswerRecord]],
    advance: Callable[[int], None] | None,
) -> list[AnswerRecord]:
    """`chunk` rows at a time, so that only their videos are in memory. Each answer takes the place of its own row."""
    items = without_borrowed_ids(items)
    refuse_repeated((item.name, frames) for item in items)  # now, and not after hours of decoding
    records: list[AnswerRecord] = []
    for start in range(0, len(items), chunk):
        outcomes = [_ask_or_fail(item, ask, frames) for item in items[start : start + chunk]]
        asked = [outcome for outcome in outcomes if not isinstance(outcome, AnswerRecord)]
        answers = iter(answer(asked) if asked else [])
        records += [outcome if isinstance(outcome, AnswerRecord) else next(answers) for outcome in outcomes]
        if advance is not None:
            advance(len(outcomes))
    return records


def without_borrowed_ids(items: Sequence[Item]) -> list[Item]:
    """A row that failed because its id is another row's keeps its place in the denominator, but not that id."""
    own: set[RowName | None] = {item.name for item in items if isinstance(item, Example)}
    kept: list[Item] = []
    for item in items:
        borrowed = isinstance(item, Failure) and item.name in own
        kept.append(replace(item, problem_id=None) if isinstance(item, Failure) and borrowed else item)
        own.add(item.name)
    return kept


def _ask_or_fail(item: Item, ask: Callable[[Example], Prompt], frames: int) -> Asked | AnswerRecord:
    """The prompt, or the record of what prevented it."""
    if isinstance(item, Failure):
        return failure_record(item, frames)
    try:
        return item, ask(item)
    except LongtakeError as error:
        stage = "video" if isinstance(error, VideoError | PathError) else "prompt"
        return _record(item, frames, failure=type(error).__name__, failure_stage=stage, failure_message=str(error))


def failure_record(failure: Failure, frames: int) -> AnswerRecord:
    """A row that could not even be read: wrong, under its own id where it has one."""
    return AnswerRecord(
        problem_id=failure.problem_id,
        category=failure.category,
        frames=frames,
        answer="",
        letters=(),
        predicted=None,
        correct=False,
        well_formed=False,
        failure=failure.kind,
        failure_stage=failure.stage,
        failure_message=failure.message,
        source=failure.source,
    )


def _record(
    example: Example,
    frames: int,
    *,
    predicted: str | None = None,
    correct: bool = False,
    well_formed: bool | None = False,
    text: str = "",
    response_tokens: int = 0,
    finish_reason: str | None = None,
    failure: str | None = None,
    failure_stage: str | None = None,
    failure_message: str | None = None,
) -> AnswerRecord:
    return AnswerRecord(
        problem_id=example.problem_id,
        category=example.category,
        frames=frames,
        answer=example.answer,
        letters=_letters(example),
        predicted=predicted,
        correct=correct,
        well_formed=well_formed,
        text=text,
        response_tokens=response_tokens,
        finish_reason=finish_reason,
        failure=failure,
        failure_stage=failure_stage,
        failure_message=failure_message,
        video=example.media_digest,
        source=example.source,
    )


def _letters(example: Example) -> tuple[str, ...]:
    return tuple(option.letter for option in example.options)
