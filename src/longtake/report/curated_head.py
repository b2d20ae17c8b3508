"""The top of the page about a curated run: counts, funnel, letters, categories, pass rates, drop reasons. Of ALL rows, shown or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from urllib.parse import urlencode

from longtake.config.curate import StageName
from longtake.curation.outputs import KINDS
from longtake.curation.records import LETTERS
from longtake.report.curated_read import CuratedRun, Entry
from longtake.report.markup import Html, el, join, table
from longtake.report.samples import cut

UNITS: dict[StageName, str] = {"ingest": "videos", "segment": "videos", "caption": "clips", "ground": "boxes"}
"""What a stage's records are; those of the other stages are rows."""
PASS_RATE_STEPS = 10


def figures(run: CuratedRun) -> Html:
    """A handful of numbers."""
    states = Counter(one.state for one in run.entries)
    rows = [one for one in run.entries if one.draft is not None]
    kept = states["kept"]
    hours = sum(one.duration_s for one in run.videos.values()) / 3600
    last = max((stage for stage in run.outcomes), key=list(KINDS).index)
    rates = [rate for one in run.entries if one.state == "kept" and one.rated is not None and (rate := one.rated.pass_rate) is not None]
    cards = [
        _figure("Videos", f"{len(run.videos):,}", f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"),
        _figure(
            "Rows kept",
            f"{kept:,}",
            f"of {len(rows):,} that were drafted; so far up to {last}" if last != "split" else f"of {len(rows):,} drafted",
        ),
        _figure("Dropped", f"{states['dropped']:,}", "rows, clips and videos, each with its reason"),
    ]
    if states["lost"]:
        cards.append(_figure("Lost", f"{states['lost']:,}", "neither kept nor dropped: a fault"))
    if rates:
        cards.append(_figure("Pass rate", f"{sum(rates) / len(rates):.2f}", f"mean of {len(rates):,} kept rows the policy answered"))
    return el("div", join(cards), class_="figures")


def _figure(label: str, value: str, below: str) -> Html:
    return el("div", el("span", label, class_="label"), el("span", value, class_="value"), el("span", below, class_="below"), class_="card")


def panels(run: CuratedRun) -> Html:
    """Funnel and drop reasons, then letters, categories and pass rates."""
    kept = [one for one in run.entries if one.state == "kept" and one.draft is not None]
    first = [
        _panel("Stages", "What each kept, and what it dropped (striped). Checks without a model come before rewriting", _funnel(run)),
        _reasons(run),
    ]
    second = [
        _panel("Letters of the keys", "Of kept rows with options", _bars(_letters(kept))),
        _panel("Categories", "Kept, and dropped (striped), as far as there was a row", _bars(_categories(run.entries))),
        _panel(
            "Pass rates",
            "Of kept rows",
            _bars(_pass_rates(kept), "The policy was not asked." if "difficulty" in run.outcomes else "None yet."),
        ),
    ]
    return join([el("div", join(first), class_="panels two top"), el("div", join(second), class_="panels top")])


def _panel(heading: str, caption: str, content: Html) -> Html:
    return el("figure", el("figcaption", heading, el("small", caption)), content, class_="panel")


def _funnel(run: CuratedRun) -> Html:
    """One line per stage; bars of one unit share one scale."""
    counts = {stage: (len(own.kept), len(own.dropped)) for stage, own in run.outcomes.items()}
    largest: dict[str, int] = {}
    for stage, (kept, dropped) in counts.items():
        unit = UNITS.get(stage, "rows")
        largest[unit] = max(largest.get(unit, 1), kept + dropped)
    lines = []
    for stage in KINDS:
        if stage not in counts:
            lines.append(_bar_line(stage, 0, 0, 1, el("span", "not done yet", class_="quiet")))
            continue
        kept, dropped = counts[stage]
        unit = UNITS.get(stage, "rows")
        minus = el("span", f" \N{MINUS SIGN}{dropped:,}", class_="minus", title="dropped") if dropped else None
        lines.append(_bar_line(stage, kept, dropped, largest[unit], join([f"{kept:,} {unit}", minus])))
    return el("table", el("tbody", join(lines)), class_="bars funnel")


def _bars(lines: Sequence[tuple[str, int, int]], nothing: str = "None yet.") -> Html:
    """Lines of (label, kept, dropped) on one scale."""
    if not lines:
        return el("p", nothing, class_="note")
    largest = max(1, *(kept + dropped for _, kept, dropped in lines))
    shown = (
        _bar_line(
            label,
            kept,
            dropped,
            largest,
            join([f"{kept:,}", el("span", f" \N{MINUS SIGN}{dropped:,}", class_="minus") if dropped else None]),
        )
        for label, kept, dropped in lines
    )
    return el("table", el("tbody", join(shown)), class_="bars")


def _bar_line(label: str, kept: int, dropped: int, largest: int, told: Html) -> Html:
    parts = (("kept", kept), ("dropped", dropped))
    bar = el(
        "div", join(el("i", class_=name, style=f"width:{100 * count / largest:.2f}%") for name, count in parts if count), class_="bar-line"
    )
    return el("tr", el("th", el("bdi", cut(label, 60)), scope="row"), el("td", bar, class_="picture"), el("td", told, class_="num"))


def _letters(kept: Iterable[Entry]) -> list[tuple[str, int, int]]:
    found = Counter(one.draft.letter or "none" for one in kept if one.draft is not None and one.draft.options)
    used = [letter for letter in LETTERS if letter in found or (found and letter in "ABCD")]
    return [(letter, found[letter], 0) for letter in (*used, *(["none"] if found["none"] else []))]


def _categories(entries: Iterable[Entry]) -> list[tuple[str, int, int]]:
    found: dict[str, Counter[str]] = {}
    for one in entries:
        if one.draft is not None:
            found.setdefault(one.draft.category, Counter())["kept" if one.state == "kept" else "dropped"] += 1
    return [(name, own["kept"], own["dropped"]) for name, own in sorted(found.items())]


def _pass_rates(kept: Iterable[Entry]) -> list[tuple[str, int, int]]:
    """Counts by tenths; the first and the last bin are rows that were never and always right."""
    rates = [rate for one in kept if one.rated is not None and (rate := one.rated.pass_rate) is not None]
    if not rates:
        return []
    found = Counter(round(PASS_RATE_STEPS * rate) for rate in rates)
    return [(f"{step / PASS_RATE_STEPS:.1f}", found[step], 0) for step in range(PASS_RATE_STEPS + 1)]


def _reasons(run: CuratedRun) -> Html:
    """Every reason with its count; a link filters the cards."""
    found = Counter((one.stage, one.reason or "") for one in run.entries if one.state == "dropped")
    rows = [
        (stage, el("a", el("bdi", cut(reason, 60)), href="#" + urlencode({"stage": stage, "reason": reason})), f"{count:,}")
        for (stage, reason), count in sorted(found.items(), key=lambda item: (list(KINDS).index(item[0][0]), -item[1], item[0][1]))
    ]
    content = table(("stage", "reason", "dropped"), rows, numeric_from=2) if rows else el("p", "Nothing was dropped.", class_="note")
    return _panel("Why things were dropped", "A reason leads to what it dropped", content)
