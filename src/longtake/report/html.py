"""The report: ONE html file with everything in it. No script, no request to anywhere; light, dark, narrow and printed."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from longtake import __version__
from longtake.report import samples, sections
from longtake.report.markup import Html, el, join
from longtake.report.read import Run, read_run

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Content-Security-Policy: even markup that slipped through could not run a script or ask another machine for anything."""

Section = tuple[str, str, Html | None]
"""Anchor, heading, content; a section without content is left out."""


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder (a pipeline's, one training's, or one evaluation's) and return its path.

    Raises RowError when the folder holds nothing to report on. What is absent or unreadable is listed in the report.
    """
    page = render_report(read_run(run_dir))
    path = run_dir / "report.html"
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def render_report(run: Run) -> str:
    """The whole page."""
    name = run.folder.resolve().name
    shown = [section for section in _sections(run) if section[2]]
    style = Html(files("longtake.report").joinpath("style.css").read_text(encoding="utf-8"))
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("title", f"longtake: {name}"),
        el("style", style),
    )
    nav = el("nav", join(el("a", heading, href=f"#{anchor}") for anchor, heading, _ in shown), aria_label="Sections")
    top = el("header", el("div", el("h1", f"longtake: {name}"), el("p", _lead(run), class_="lead"), nav))
    body = join(el("section", el("h2", heading), content, id=anchor) for anchor, heading, content in shown)
    foot = el("footer", f"Written by longtake {__version__}. One file: no script, no connection, nothing outside of it.")
    page = el("html", head, el("body", top, el("main", sections.headline(run), body, foot)), lang="en")
    return f"<!doctype html>\n{page}\n"


def _lead(run: Run) -> str:
    day = datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = []
    if run.evaluations:
        parts.append(f"{len(run.evaluations)} evaluations")
    if run.trainings:
        parts.append("training of " + ", ".join(sections.title_of(name) for name in run.trainings))
    return f"{'; '.join(parts)}. Report of {day}."


def _sections(run: Run) -> Iterable[Section]:
    yield "results", "Results", sections.results(run) if run.evaluations else None
    yield "parts", "By category, frames and letter", sections.breakdowns(run) if run.evaluations else None
    yield "blind", "Without the video", sections.blind(run)
    yield "curves", "Learning curves", sections.curves(run)
    yield "questions", "Sample questions", _questions(run)
    yield "takes", "Takes of one group", _takes(run)
    yield "time", "Where the time went", sections.time_spent(run)
    yield "failures", "Failures and what is absent", sections.failures(run)
    yield "configuration", "Configuration", sections.configuration(run)


def _questions(run: Run) -> Html | None:
    """Sample questions of the last stage that has records, against the stage before it."""
    asked = [evaluation for evaluation in run.evaluations.values() if evaluation.records]
    ranked = [name for name in ("rl", "sft", "base") if any(evaluation.name == name for evaluation in asked)] or [
        own.name for own in asked[:1]
    ]
    if not ranked:
        return None
    last, before = ranked[0], ranked[1] if len(ranked) > 1 else None
    answers = samples.by_problem(asked)
    chosen = samples.choose(answers, last, before)
    source = samples.evaluation_rows(run)
    compared = f"{sections.title_of(last)}" + (f" and, before it, {sections.title_of(before)}" if before else "")
    told = (
        f"Chosen by rule, not by hand, by the outcome of {compared}: two wrong before and right now, one right before and wrong now, two "
        "right, one wrong, as far as there are such, and others in their place; categories in turn, smallest problem id first. Frames are "
        "the middles of eight equal parts of the video, with their real times. Open a stage to read its reasoning."
    )
    shown = [samples.sample(problem_id, reason, answers[problem_id], source) for problem_id, reason in chosen]
    return join([el("p", told, class_="lead"), *shown])


def _takes(run: Run) -> Html | None:
    parts = []
    for training in run.trainings.values():
        if training.groups:
            source = samples.training_rows(training, run)
            parts += [samples.take_group(group, source) for group in training.groups]
    told = (
        "The first and the last group of training takes in the log whose rewards differ: the difference within a group is all that RL "
        "learns from."
    )
    return join([el("p", told, class_="lead"), *parts]) if parts else None
