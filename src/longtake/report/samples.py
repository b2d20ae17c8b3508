"""Sample questions: chosen by a stated rule, shown with frames, every stage's reasoning, and the rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.answers import parse_response
from longtake.data.row_formats import named_format, read_rows
from longtake.errors import RowError
from longtake.evaluation.records import AnswerRecord
from longtake.evaluation.summary import headline_rows, is_right
from longtake.report.markup import Html, el, join, table
from longtake.report.read import TITLES, Evaluation, Run, TakeGroup, Training, as_dict, number
from longtake.report.strips import strips
from longtake.types import Row, RowName, row_name

NUM_SAMPLES = 6
MAX_TEXT_CHARS = 6000
Answers = dict[str, AnswerRecord]
"""Stage -> its record of one row."""


@dataclass(frozen=True)
class PlacedRow:
    """A row and the folder that its videos are in."""

    row: Row
    root: Path


Rows = dict[RowName, PlacedRow]


def evaluation_rows(run: Run) -> Rows:
    """The rows that were evaluated."""
    configs = [config for name, config in run.configs.items() if name.startswith("evaluation: ")]
    return _rows(run, configs[0] if configs else {}, "eval")


def training_rows(training: Training, run: Run) -> Rows:
    """The rows that a training saw."""
    return _rows(run, training.config or {}, "train")


def _rows(run: Run, config: dict[str, Any], split: str) -> Rows:
    """The rows that a configuration names, else data/SPLIT/rows.jsonl of the run folder; without a file, a note says what is missing."""
    data = as_dict(config.get("data"))
    sources = {name: as_dict(part) for name, part in as_dict(data.get("sources")).items()} or {"": data}
    found: Rows = {}
    for name, part in sources.items():
        path = find(run.folder, part.get("rows")) or run.folder / "data" / split / "rows.jsonl"
        if not path.is_file():
            run.notes.append(f"{path} is not there: questions are shown without text and frames.")
            continue
        try:
            rows = [row for row in read_rows(path, named_format(part.get("format"))) if isinstance(row, Row)]
        except RowError as error:
            run.notes.append(f"Rows could not be read: {error}")
            continue
        root = find(run.folder, part.get("root")) or path.parent
        found |= {row_name(name, row.problem_id): PlacedRow(row, root) for row in rows}
    return found


def find(folder: Path, named: object) -> Path | None:
    """A path of the configuration: the longest tail of it that is in the run folder (which may have been moved), else as it is."""
    if not isinstance(named, str) or "\0" in named:
        return None
    parts = [part for part in Path(named).parts if part not in ("..", "/")]
    tails = [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    return next((path for path in (*tails, Path(named)) if _exists(path)), None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system, say
        return False


def by_problem(evaluations: Sequence[Evaluation]) -> dict[RowName, Answers]:
    """Name of a row -> stage -> record at the headline's number of frames."""
    answers: dict[RowName, Answers] = {}
    for evaluation in evaluations:
        for record in headline_rows(evaluation.records):
            if record.name is not None:
                answers.setdefault(record.name, {})[evaluation.name] = record
    return answers


def choose(answers: dict[RowName, Answers], last: str, before: str | None) -> list[tuple[RowName, str]]:
    """Rows with the reason of each: two gained, one lost, two right, one wrong, as far as there are, then more right and wrong.

    No taste is involved: within a kind, the category shown least so far comes first, then the smallest problem id.
    """

    def outcome(record: Answers, stage: str | None) -> bool | None:
        return is_right(record[stage]) if stage is not None and stage in record else None

    def right(own: Answers) -> bool:
        return outcome(own, last) is True and outcome(own, before) is not False

    def wrong(own: Answers) -> bool:
        return outcome(own, last) is False and outcome(own, before) is not True

    kinds: list[tuple[str, int, Callable[[Answers], bool]]] = [
        ("wrong before, right now", 2, lambda own: outcome(own, last) is True and outcome(own, before) is False),
        ("right before, wrong now", 1, lambda own: outcome(own, last) is False and outcome(own, before) is True),
        ("right", 2, right),
        ("wrong", 1, wrong),
        ("right", NUM_SAMPLES // 2, right),
        ("wrong", NUM_SAMPLES, wrong),
    ]
    chosen: list[tuple[RowName, str]] = []
    shown: dict[str, int] = {}
    for reason, count, fits in kinds:
        for _ in range(count):
            taken = {name for name, _ in chosen}
            left = [name for name, own in answers.items() if name not in taken and last in own and fits(own)]
            if not left:
                break
            best = min(left, key=lambda name: (shown.get(answers[name][last].category, 0), *_rank(answers[name][last])))
            shown[answers[best][last].category] = shown.get(answers[best][last].category, 0) + 1
            chosen.append((best, reason))
    return chosen[:NUM_SAMPLES]


def _rank(record: AnswerRecord) -> tuple[str, int]:
    return record.source, record.problem_id or 0


def sample(name: RowName, reason: str, own: Answers, rows: Rows) -> Html:
    """One question with its frames and what each stage made of it."""
    placed = rows.get(name)
    record = next(iter(own.values()))
    head = el("header", el("h3", f"Question {name}"), pill(record.category), pill(reason, "plain"))
    question = (
        _question(placed.row.problem, record.answer)
        if placed is not None
        else el("p", "The text of this row is not in the run folder.", class_="note")
    )
    frames = strips(placed.root, placed.row) if placed is not None else None
    return el("article", head, frames, question, join(_stage_answer(name, answer) for name, answer in own.items()), class_="card sample")


def _question(problem: str, key: str) -> Html:
    """The question as it was asked; the option of the key is marked."""
    lines = problem.split("\n")
    marked = [
        el("li", line, el("span", " (key)"), class_="key") if _is_option(line, key) else el("li", line)
        for line in lines[1:]
        if line.strip()
    ]
    key_line = None if any(_is_option(line, key) for line in lines[1:]) else el("p", f"Key: {key}", class_="key")
    return el("div", el("p", lines[0], class_="asked", dir="auto"), el("ul", join(marked), class_="options") if marked else None, key_line)


def _is_option(line: str, letter: str) -> bool:
    return len(letter) == 1 and line.strip().startswith((f"{letter}.", f"{letter})", f"({letter})"))


def _stage_answer(name: str, record: AnswerRecord) -> Html:
    """One stage: verdict and answer in the open, reasoning folded away."""
    right = is_right(record)
    told = "no answer" if record.predicted is None else record.predicted
    line = [
        el("strong", TITLES.get(name, name), class_=f"stage {name}"),
        el("span", "right" if right else "wrong", class_="right" if right else "wrong"),
        el("span", "answer ", el("b", cut(told, 120), dir="auto")),
        el("span", _rewards(record), class_="quiet"),
    ]
    if record.failure is not None:
        return el(
            "div", el("p", *line, class_="verdict"), el("p", f"{record.failure}: {record.failure_message}", class_="note"), class_="answer"
        )
    if not record.text:
        return el("div", el("p", *line, class_="verdict"), class_="answer")
    return el("details", el("summary", *line, class_="verdict"), response(record.text), class_="answer")


def _rewards(record: AnswerRecord) -> str:
    if record.well_formed is None:
        return "scored by letter log-probs, nothing generated"
    judged = "" if record.verdict is None else f", judge: {record.verdict}"
    return f"accuracy {int(is_right(record))}, format {int(record.well_formed)}, {record.response_tokens} tokens{judged}"


def response(text: str) -> Html:
    """The reasoning as prose when the response has the asked format, else the response as it is."""
    parsed = parse_response(text)
    if parsed.think is not None and parsed.answer is not None:
        return el("p", cut(parsed.think), class_="reasoning", dir="auto")
    return el("pre", cut(text), class_="reasoning", dir="auto")


def take_group(group: TakeGroup, rows: Rows) -> Html:
    """The takes of one prompt: what RL compares within a step."""
    placed = rows.get(group.row) if group.row is not None else None
    head = el("header", el("h3", f"Step {group.step}, question {group.row}"), pill(f"{len(group.takes)} takes", "plain"))
    question = None if placed is None else join([strips(placed.root, placed.row), _question(placed.row.problem, _key(placed.row))])
    names = sorted({name for take in group.takes for name in _named(take)})
    lines = [_take_row(index, take, names) for index, take in enumerate(group.takes)]
    figures = table(("take", "reward", "advantage", *names, "tokens", "ended by", "largest |sampler - policy|"), lines)
    texts = [
        el("details", el("summary", f"Take {index}: {_earned(take)}"), response(str(take.get("text", ""))))
        for index, take in enumerate(group.takes)
    ]
    return el("article", head, question, figures, join(texts), class_="card sample")


def _earned(take: dict[str, Any]) -> str:
    why = take.get("unjudged")
    return f"reward {_figure(take.get('total_reward'))}" if why is None else f"not judged ({why}), left out"


def _key(row: Row) -> str:
    return row.answer.removeprefix("<answer>").removesuffix("</answer>").strip()


def _take_row(index: int, take: dict[str, Any], names: list[str]) -> list[object]:
    rewards = _named(take)
    tokens = take.get("token_ids")
    length = len(tokens) if isinstance(tokens, list) else None
    shown = [
        _figure(take.get("total_reward")),
        _figure(take.get("advantage"), signed=True),
        *(_figure(rewards.get(name)) for name in names),
    ]
    return [index, *shown, length, take.get("finish_reason"), _mismatch(take)]


def _mismatch(take: dict[str, Any]) -> str:
    """Largest difference of log-probs over the take's tokens."""
    sampler, policy = take.get("sampler_logprobs"), take.get("policy_logprobs")
    if not isinstance(sampler, list) or not isinstance(policy, list) or len(sampler) != len(policy) or not sampler:
        return "not logged"
    pairs = [(number(one), number(other)) for one, other in zip(sampler, policy, strict=True)]
    return f"{max((abs(one - other) for one, other in pairs if one is not None and other is not None), default=0.0):.1e}"


def _named(take: dict[str, Any]) -> dict[str, Any]:
    rewards = take.get("rewards")
    return rewards if isinstance(rewards, dict) else {}


def _figure(value: object, *, signed: bool = False) -> str:
    figure = number(value)
    return "" if figure is None else f"{figure:+.2f}" if signed else f"{figure:.2f}"


def pill(label: str, kind: str = "") -> Html:
    return el("span", label, class_=f"pill {kind}".strip())


def cut(text: str, limit: int = MAX_TEXT_CHARS) -> str:
    """A long text says how much of it is not shown."""
    return text if len(text) <= limit else f"{text[:limit]} ... ({len(text) - limit} more characters)"
