"""What is in a file of rows, in figures: what can be used, what cannot and why, and what a guess would be worth."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longtake.config.rows import RowsConfig
from longtake.config.sections import RowFormat
from longtake.data.row_formats import read_rows_file
from longtake.data.rows import check_row, media_paths
from longtake.errors import LongtakeError, PathError, RowError, VideoError, VideoMissingError, one_line
from longtake.types import Example, Failure, MediaKind, Row
from longtake.video.image import probe_image
from longtake.video.paths import resolve_inside
from longtake.video.probe import probe

MAX_EXAMPLES = 3
"""Shown of each reason."""
MAX_SHOWN = 12
"""Most values that a line of counts lists."""
PLACE = re.compile(r"^(?:.{0,300}? row \d+(?: turn \d+)?|row with problem_id \d+): ")
VARYING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+")
"""What differs between two messages of one reason: quoted values and numbers."""


@dataclass(frozen=True)
class Problem:
    """Why one row cannot be used."""

    reason: str
    """The message without its place, values and numbers: what is counted together."""
    message: str


@dataclass(frozen=True)
class RowReport:
    """A rows file as `longtake rows` tells it; all lists in the order of the file."""

    format: RowFormat
    num_records: int
    num_items: int
    """Rows read; more than records where conversations have several turns."""
    usable: tuple[Row, ...]
    examples: tuple[Example, ...]
    """Of `usable`, without media."""
    problems: tuple[Problem, ...]
    num_duplicates: int
    """Rows whose problem_id stands before them too."""
    num_media: int | None
    """Files that were looked for; None: none were."""
    missing_media: tuple[Path, ...]

    @property
    def failed_fraction(self) -> float:
        return len(self.problems) / self.num_items


def report_of(config: RowsConfig) -> RowReport:
    """Read and check a file. Raises RowError when it cannot be read as a whole, or holds no row."""
    root = config.rows.parent if config.root is None else config.root
    read = read_rows_file(config.rows, config.format)
    ids = Counter(item.problem_id for item in read.items if item.problem_id is not None)
    checker = Checker(root, config)
    usable, examples, problems = [], [], []
    for item in read.items:
        if isinstance(item, Failure):
            problems.append(Problem(reason_of(item.message), item.message))
            continue
        checked = checker.example_or_problem(item)
        if isinstance(checked, Problem):
            problems.append(checked)
        else:
            usable.append(item)
            examples.append(checked)
    missing = tuple(path for (path, _), error in checker.opened.items() if isinstance(error, VideoMissingError))
    return RowReport(
        format=read.format,
        num_records=read.num_records,
        num_items=len(read.items),
        usable=tuple(usable),
        examples=tuple(examples),
        problems=tuple(problems),
        num_duplicates=sum(ids.values()) - len(ids),
        num_media=len(checker.opened) if config.media else None,
        missing_media=missing,
    )


class Checker:
    """Checks rows as a run does; each media file is opened once, if at all."""

    def __init__(self, root: Path, config: RowsConfig) -> None:
        self._root, self._config = root, config
        self.opened: dict[tuple[Path, MediaKind], VideoError | None] = {}
        """What was opened, and how that failed."""

    def example_or_problem(self, row: Row) -> Example | Problem:
        try:
            example = check_row(row, self._root, None)
            if row.subtitles is not None:
                resolve_inside(self._root, row.subtitles)
            for path, kind in media_paths(row, self._root):
                self._check_media(path, kind)
        except (RowError, PathError) as error:
            return Problem(reason_of(str(error)), placed(error, row))
        except VideoError as error:
            return Problem(type(error).__name__, placed(error, row))
        return example

    def _check_media(self, path: Path, kind: MediaKind) -> None:
        """Raises VideoError, for every row that names the file."""
        if not self._config.media:
            return
        if (path, kind) not in self.opened:
            self.opened[path, kind] = fault_of(path, kind, self._config)
        if (error := self.opened[path, kind]) is not None:
            raise error


def fault_of(path: Path, kind: MediaKind, config: RowsConfig) -> VideoError | None:
    try:
        (probe if kind == "video" else probe_image)(path, config.limits)
    except VideoError as error:
        return error
    return None


def placed(error: LongtakeError, row: Row) -> str:
    """The message, with the row in front where it names none."""
    return str(error) if PLACE.match(str(error)) else f"row with problem_id {row.problem_id}: {error}"


def reason_of(message: str) -> str:
    given = PLACE.sub("", message).partition(". Rule: ")[0]
    return VARYING.sub("...", given)


def lines_of(report: RowReport) -> Iterator[str]:
    """The report as text, one line a figure."""
    records = f" of {report.num_records} conversations" if report.format == "llava_video" else ""
    yield f"format        {report.format}"
    yield f"rows          {report.num_items}{records}"
    yield f"usable        {len(report.usable)} ({len(report.usable) / report.num_items:.1%})"
    yield f"malformed     {len(report.problems)} ({report.failed_fraction:.1%})"
    by_reason: dict[str, list[Problem]] = {}
    for problem in report.problems:
        by_reason.setdefault(problem.reason, []).append(problem)
    for reason, problems in sorted(by_reason.items(), key=lambda one: (-len(one[1]), one[0])):
        yield f"  {len(problems)} x {reason}"
        yield from (f"      {problem.message}" for problem in problems[:MAX_EXAMPLES])
    yield f"duplicate ids {report.num_duplicates}"
    if report.num_media is not None:
        shown = "".join(f"\n      {one_line(str(path))}" for path in report.missing_media[:MAX_EXAMPLES])
        yield f"media         {report.num_media} files named, {len(report.missing_media)} missing{shown}"
    if report.usable:
        yield from content_lines(report)


def content_lines(report: RowReport) -> Iterator[str]:
    """What the usable rows hold."""
    yield f"categories    {counted(Counter(row.problem_type for row in report.usable))}"
    yield f"data types    {counted(Counter(row.data_type for row in report.usable))}"
    yield f"answers       {counted(Counter(example.answer_kind for example in report.examples))}"
    yield f"reasoning     {sum(bool(row.reasoning.strip()) for row in report.usable)} rows have some (SFT teaches only these)"
    letters = Counter(example.answer for example in report.examples if example.answer_kind == "letter")
    if not letters:
        return
    best, count = max(sorted(letters.items()), key=lambda one: one[1])
    in_order = "".join(f"{letter} {letters[letter]}  " for letter in sorted(letters)).strip()
    yield f"letters       {in_order}: the best constant, {best}, is right in {count / sum(letters.values()):.1%}"
    choices = [example for example in report.examples if example.options]
    sizes = Counter(len(example.options) for example in choices)
    yield f"options       {', '.join(f'{count} rows have {size}' for size, count in sorted(sizes.items()))}"
    orders = Counter(" ".join(option.letter for option in example.options) for example in choices)
    moved = {order: count for order, count in orders.items() if order != " ".join(sorted(order.split()))}
    if moved:
        yield f"  {sum(moved.values())} rows list them in another order: {counted(Counter(moved))}"


def counted(counts: Counter[str]) -> str:
    """`plot 3, goal 1`, the most frequent first, at most MAX_SHOWN of them."""
    ranked = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    shown = ", ".join(f"{name} {count}" for name, count in ranked[:MAX_SHOWN])
    return shown + (f" and {len(ranked) - MAX_SHOWN} more" if len(ranked) > MAX_SHOWN else "")
