"""The card of a data set in Markdown, from its figures (`card.card_figures`). Its head tells the `datasets` library which file is which
split."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Figures = Mapping[str, Any]
Cell = str | int | float | None
BAR_CHARS = 30
"""Longest bar of a histogram."""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
"""Upper bounds of the hub's names for sizes."""
NUMBER = re.compile(r"[0-9.,]* ?%?(?: of [0-9.,]+)?")
COLUMNS = {
    "problem_id": "number of the row, the same in no other split: its place in the order of all keys",
    "problem": "the question; options on lines of their own, `A. text`",
    "data_type": "`video`",
    "problem_type": "category",
    "reasoning": "the chain of thought, with the times of the evidence",
    "videos": "the video",
    "answer": "`<answer>B</answer>`, or a short text between the tags",
    "duration_s": "of the video, in seconds",
    "key": "names the row in all outputs of its run",
    "pass_rate": "share of the policy's answers that were right; null: it was not asked",
    "num_takes": "how many answers that is",
    "ranges": "where the evidence is: `start` and `stop` in seconds",
    "licence": "of the video",
    "source": "of the video",
    "video_digest": "sha256 of the video's bytes",
    "split": "`sft`, `rl` or `eval`",
}


def card_text(figures: Figures) -> str:
    """The whole README.md."""
    sections = (
        _head(figures),
        _opening(figures),
        _columns(),
        _durations(figures),
        _letters(figures),
        _pass_rates(figures),
        _stages(figures),
        _checks(figures),
        _audit(figures),
        _models(figures),
        _origins(figures),
        _limits(figures),
    )
    return "\n".join(section for section in sections if section)


def _head(figures: Figures) -> str:
    """YAML; JSON strings are YAML too, whatever is in them."""
    size = next((name for bound, name in SIZES if figures["num_rows"] < bound), "n>1M")
    files = [line for split in figures["splits"] for line in (f"  - split: {split}", f"    path: {split}.parquet")]
    lines = [
        "---",
        f"pretty_name: {json.dumps(figures['name'])}",
        f"language:\n- {json.dumps(figures['language'])}",
        "license: other",
        "task_categories:\n- video-text-to-text",
        f"size_categories:\n- {size}",
        *(["configs:", "- config_name: default", "  data_files:", *files] if files else []),
        "---\n",
    ]
    return "\n".join(lines)


def _opening(figures: Figures) -> str:
    durations, splits = figures["durations"], figures["splits"]
    categories = sorted({category for own in splits.values() for category in own["categories"]})
    rows = [
        [split, own["rows"], own["videos"], _hours(own["hours"]), *(own["categories"].get(one, 0) for one in categories), own["open_ended"]]
        for split, own in splits.items()
    ]
    totals = [sum(row[column] for row in rows) for column in (1, 2)]
    by_category = [sum(own["categories"].get(one, 0) for own in splits.values()) for one in categories]
    open_ended = sum(own["open_ended"] for own in splits.values())
    rows.append(["all", *totals, _hours(durations["hours"]), *by_category, open_ended])
    loading = "\n".join(
        (
            "```python",
            "from datasets import load_dataset",
            'rows = load_dataset("FOLDER")  # this folder',
            "```",
            "```",
            *(f"longtake {split} CONFIG --data.rows FOLDER/{split}.jsonl" for split in splits if split != "eval"),
            *("longtake evaluate CONFIG --data.rows FOLDER/eval.jsonl" for split in splits if split == "eval"),
            "```",
        )
    )
    parts = [
        f"# {_line(figures['name'])}\n",
        f"{_count(figures['num_rows'], 'question')} about {_count(durations['videos'], 'video')} ({_hours(durations['hours'])} h), "
        "with reasoning, made from the videos by language models and checked (`longtake curate`). No video is in two splits.\n",
        table(["split", "rows", "videos", "hours", *categories, "open-ended"], rows),
        loading + "\n",
    ]
    if figures["settings"]["videos"] == "none":
        parts.append("The videos are not in this folder: `--data.root` is the folder that holds them.\n")
    return "\n".join(parts)


def _columns() -> str:
    return "## Columns\n\n" + table(["column", "content"], [[f"`{name}`", text] for name, text in COLUMNS.items()], escape=False)


def _durations(figures: Figures) -> str:
    durations = figures["durations"]
    spread, per_video = durations["spread_s"], figures["rows_per_video"]
    if spread is None:
        return ""
    edges = [_minutes(edge) for edge in durations["below_s"][:-1]]
    labels = [f"under {edges[0]}", *(f"{low} to {high}" for low, high in pairwise(edges)), f"{edges[-1]} or more"]
    told = f"Durations: {_clock(spread['min'])} to {_clock(spread['max'])}, median {_clock(spread['median'])}. Rows per video: "
    told += f"{per_video['min']:g} to {per_video['max']:g}, median {per_video['median']:g}.\n\n"
    return "## Videos\n\n" + told + histogram("duration", labels, durations["counts"], "videos")


def _letters(figures: Figures) -> str:
    rows: list[list[Cell]] = []
    letters = sorted({letter for own in figures["letters"].values() for letter in own["counts"]})
    for split, own in figures["letters"].items():
        if own["rows"]:
            best = f"{own['best']}: {_percent(own['best_constant'])}"
            rows.append([split, own["rows"], *(own["counts"].get(letter, 0) for letter in letters), best, _p_value(own["p"])])
    if not rows:
        return ""
    told = (
        "Letters of the right options. `best constant` is what always answering the same letter gets, with its 95 % interval; `p` is the "
        "chi-square test of all letters being right equally often: a small one says that they are not.\n\n"
    )
    return "## Letters\n\n" + told + table(["split", "rows", *letters, "best constant", "p"], rows)


def _pass_rates(figures: Figures) -> str:
    rates, settings = figures["pass_rates"], figures["settings"]["difficulty"]
    if rates is None:
        return "## Difficulty\n\nNo policy was asked: there are no pass rates.\n"
    certain = "Rows that it always or never got right were kept."
    if not settings["keep_certain"]:
        certain = f"Left out are rows that it always ({rates['always_right']:,}) or never ({rates['never_right']:,}) got right: "
        certain += "a group of equal answers teaches nothing."
    told = f"{_line(settings['policy'])} answered every row {settings['takes']} times (temperature {settings['temperature']:g}, "
    told += f"up to {settings['max_frames']} frames). {certain} "
    told += f"Mean pass rate: {', '.join(f'{split} {_part(mean)}' for split, mean in rates['mean'].items()) or 'none'}.\n\n"
    if settings["judge"]:
        told += f"Open-ended answers were judged by {_line(settings['judge'])}.\n\n"
    return "## Difficulty\n\n" + told + histogram("pass rate", [f"{10 * tenth} %" for tenth in range(11)], rates["tenths"], "rows")


def _stages(figures: Figures) -> str:
    rows: list[list[Cell]] = [[one["stage"], one["kept"], one["dropped"]] for one in figures["stages"]]
    reasons: list[list[Cell]] = [[stage, reason, count] for stage, own in figures["drops"].items() for reason, count in own.items()]
    text = "## How it came about\n\n" + table(["stage", "kept", "left out"], rows)
    if reasons:
        text += "\nEverything that was left out is in `drops.jsonl`, with its reason in words.\n\n" + table(
            ["stage", "reason", "left out"], reasons
        )
    return text


def _checks(figures: Figures) -> str:
    if not figures["checks"]:
        return ""
    told = "A row is left out at the first check that it fails; those after it are not made.\n\n"
    rows: list[list[Cell]] = [
        [one["check"], one["reached"], one["failed"], _part(one["failed"] / one["reached"])] for one in figures["checks"]
    ]
    return "## Checks\n\n" + told + table(["check", "rows checked", "failed", "share"], rows)


def _audit(figures: Figures) -> str:
    audit = figures["audit"]
    if audit is None:
        return ""
    labelled = audit["wrong_before"]["total"]
    told = f"{labelled:,} of {audit['num_drafts']:,} drafts have a label that says whether the row is right"
    told += f" ({audit['unknown']:,} further labels are of rows that were never drafted)" if audit["unknown"] else ""
    shares: list[list[Cell]] = [
        ["wrong rows among the drafts", *_measured(audit["wrong_before"])],
        ["wrong rows among those that failed no check", *_measured(audit["wrong_after"])],
        ["wrong rows among the published", *_measured(audit["wrong_published"])],
        ["wrong rows that a check removed", *_measured(audit["wrong_removed"])],
        ["right rows that a check removed", *_measured(audit["right_lost"])],
    ]
    fates: list[list[Cell]] = [[fate, *counts] for fate, counts in audit["fates"].items() if any(counts)]
    checks: list[list[Cell]] = [
        [one["name"], *(_measured(one[name])[0] for name in ("precision", "recall", "recall_overall", "right_lost"))]
        for one in audit["checks"]
    ]
    faults: list[list[Cell]] = [
        [one["fault"], *_measured(one["removed"]), ", ".join(f"{name} {count}" for name, count in one["by"].items()), one["published"]]
        for one in audit["faults"]
    ]
    parts = [
        f"## Checks against judged rows\n\n{told}. Shares come with 95 % intervals (Wilson).\n",
        table(["", "share", "rows"], shares),
        table(["what became of them", "wrong rows", "right rows"], fates),
        "Precision: wrong ones among the rows that the check failed. A check sees only what those before it let through, so its recall is "
        "told of the wrong rows that reached it, and of all. `quota` judges no row, and is left out.\n",
        table(["check", "precision", "recall of what reached it", "recall of all", "right rows lost"], checks),
    ]
    if faults:
        parts.append(table(["fault", "removed by a check", "rows", "by", "published"], faults))
    return "\n".join(parts)


def _models(figures: Figures) -> str:
    calls: list[list[Cell]] = [
        [
            one["model"],
            one["purpose"],
            one["answers"],
            one["input_tokens"],
            one["output_tokens"],
            f"{one['cost']:.2f}",
            sum(one["bad"].values()),
        ]
        for one in figures["calls"]
    ]
    text = "## Models and prompts\n\n"
    if calls:
        totals = [sum(one[name] for one in figures["calls"]) for name in ("answers", "input_tokens", "output_tokens")]
        cost = sum(one["cost"] for one in figures["calls"])
        calls.append(["all", "", *totals, f"{cost:.2f}", sum(sum(one["bad"].values()) for one in figures["calls"])])
        head = ["model", "purpose", "answers", "tokens of questions", "tokens of answers", "cost", "unusable"]
        text += "Every answer that was paid, those that could not be used included.\n\n" + table(head, calls)
        estimated = sum(one["estimated"] for one in figures["calls"])
        text += f"\nOf {estimated:,} answers the server did not tell the tokens: they are estimated.\n" if estimated else ""
    if figures["prompts"]:
        rows: list[list[Cell]] = [[f"[{name}](prompts/{name}.txt)", f"`{digest}`"] for name, digest in figures["prompts"].items()]
        text += "\nThe words that were sent, as templates:\n\n" + table(["prompt", "digest"], rows, escape=False)
    if figures["versions"]:
        text += "\nMade with " + ", ".join(f"{_line(name)} {_line(str(version))}" for name, version in figures["versions"].items()) + ".\n"
    return text if calls or figures["prompts"] or figures["versions"] else ""


def _origins(figures: Figures) -> str:
    rows: list[list[Cell]] = [[one["licence"], one["source"], one["videos"], one["rows"]] for one in figures["origins"]]
    told = "The licence of a video holds for the rows about it as far as they show it; see `licence` and `source` of each row.\n\n"
    return "## Licences and sources\n\n" + told + table(["licence", "source", "videos", "rows"], rows) if rows else ""


def _limits(figures: Figures) -> str:
    settings = figures["settings"]
    limits = [
        "Questions, answers and reasoning were written by language models from captions of short clips: what no caption says cannot be "
        "asked, and what a caption gets wrong can be a key.",
        "A row that passes all checks can still be wrong" + ("." if figures["audit"] else "; how often was not measured here."),
    ]
    if any("unknown" in (one["licence"], one["source"]) for one in figures["origins"]):
        limits.append("Of some videos licence or source is unknown.")
    if settings["checks_off"]:
        limits.append(f"Checks that were not made: {', '.join(settings['checks_off'])}.")
    if settings["difficulty"]:
        limits.append("Pass rates are those of one policy; another one finds other rows hard.")
    if any(own["open_ended"] for own in figures["splits"].values()) and not (settings["difficulty"] or {}).get("judge"):
        limits.append("Open-ended answers count as right only when their words are those of the key.")
    limits += [f"{_line(one[:1].upper() + one[1:])}." for one in figures["warnings"]]
    return "## Known limits\n\n" + "".join(f"* {limit}\n" for limit in limits)


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]], *, escape: bool = True) -> str:
    """A Markdown table; columns of numbers are aligned right. `escape` False: the texts are Markdown already."""
    body = [list(row) for row in rows]
    numbers = [all(NUMBER.fullmatch(_cell(row[column], escape)) for row in body) for column in range(len(head))]
    lines = [[_cell(one, escape) for one in head], ["---:" if is_number else "---" for is_number in numbers]]
    lines += [[_cell(one, escape) for one in row] for row in body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def histogram(what: str, labels: Sequence[str], counts: Sequence[int], unit: str) -> str:
    """A table with a bar for each count, from the first to the last that is not 0."""
    some = [place for place, count in enumerate(counts) if count] or [0]
    shown = slice(some[0], some[-1] + 1)
    labels, counts = labels[shown], counts[shown]
    most = max(counts, default=0)
    bars = ["\u2588" * max(1, round(BAR_CHARS * count / most)) if count else "" for count in counts]
    return table([what, unit, ""], list(zip(labels, counts, bars, strict=True)))


def _cell(value: Cell, escape: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, int | float):
        return f"{value:,}"
    return _line(value) if escape else value


def _line(text: str) -> str:
    """On one line, and none of it Markdown or HTML."""
    flat = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return re.sub(r"([\\|`*_\[\]<>#~&])", r"\\\1", flat)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:g} h"


def _clock(seconds: float) -> str:
    """h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def _percent(share: Mapping[str, Any]) -> str:
    """`31.2 % (24.0 - 39.4)`."""
    if share["share"] is None:
        return "none"
    return f"{_part(share['share'])} ({100 * share['low']:.1f} - {100 * share['high']:.1f})"


def _part(share: float) -> str:
    return f"{100 * share:.1f} %"


def _measured(share: Mapping[str, Any]) -> list[Cell]:
    """Share with its interval, and of how many."""
    return [_percent(share), f"{share['count']:,} of {share['total']:,}"]


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
