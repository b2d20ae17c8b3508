"""`longtake rows FILE`: a report of a file of rows on stdout, and with --out its usable rows in the published format."""

from __future__ import annotations

from pathlib import Path

from longtake.config.rows import RowsConfig
from longtake.data.row_files import write_rows
from longtake.data.row_report import RowReport, lines_of, report_of
from longtake.errors import PathError, RowError
from longtake.observe.progress import say


def run(config: RowsConfig) -> RowReport:
    """Print the report, then write. Raises RowError when more than the allowed share cannot be used, or nothing can."""
    if config.out is not None and config.out.resolve() == config.rows.resolve():
        raise PathError(f"out = {config.out} is the file that is read", rule="what is read is never replaced", remedy="name another file")
    report = report_of(config)
    for line in lines_of(report):
        print(line)
    if report.failed_fraction > config.max_failed_fraction or not report.usable:
        raise RowError(
            f"{len(report.problems)} of {report.num_items} rows of {config.rows} cannot be used",
            rule=f"at most {config.max_failed_fraction:.0%} fail (max_failed_fraction), and at least one is left",
            remedy="mend the rows listed above, or allow a larger share; nothing was written",
        )
    if config.out is not None:
        write(config, config.out, report)
    return report


def write(config: RowsConfig, out: Path, report: RowReport) -> None:
    """Raises PathError when the file cannot be written."""
    try:
        num_rows = write_rows(out, report.usable)
    except OSError as error:
        raise PathError(
            f"{out} cannot be written: {error.strerror or error}", rule="out is a file that can be written", remedy="name another"
        ) from error
    root = config.rows.parent if config.root is None else config.root
    say(f"rows: {num_rows} written to {out}; their paths are relative to {root} (data.root)")
