"""The page of `longtake curate view`: ONE html file to look at curated rows. Its only script, written here, filters; nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from longtake import __version__
from longtake.config.curate_view import CurateViewConfig
from longtake.report.curated_cards import card, pieces_of
from longtake.report.curated_frames import Gallery, Piece, gather
from longtake.report.curated_head import figures, panels
from longtake.report.curated_read import CuratedRun, Entry, choose, read_curated
from longtake.report.html import POLICY
from longtake.report.markup import Html, el, join
from longtake.report.samples import cut


@dataclass(frozen=True)
class CuratedPage:
    """What was written."""

    path: Path
    num_shown: int
    num_entries: int
    unseen: tuple[str, ...]
    """Videos without frames on the page."""


def write_curated_page(config: CurateViewConfig) -> CuratedPage:
    """Write the page about the run in `config.run`. Raises RowError when the folder holds no output of any stage.

    What is absent or unreadable is told on the page; a video that cannot be opened, on the cards of its rows.
    """
    run = read_curated(config.run, config.videos)
    shown = choose(run.entries, config.max_rows, config.seed)
    wanted: dict[str, list[Piece]] = {}
    for entry in shown:
        if entry.video:
            wanted.setdefault(entry.video, []).extend(pieces_of(entry, run, config.strip_frames))
    gallery = gather(run.videos_root, wanted, "No frames: the folder of videos was not found.")
    path = config.out or config.run / "view.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(render(run, shown, gallery, config.strip_frames), encoding="utf-8")
    temporary.replace(path)
    return CuratedPage(path, len(shown), len(run.entries), tuple(video for video, seen in gallery.seen.items() if isinstance(seen, str)))


def render(run: CuratedRun, shown: Sequence[Entry], gallery: Gallery, strip_frames: int) -> str:
    """The whole page."""
    name = run.folder.resolve().name
    style, more, script = (_asset(part) for part in ("style.css", "curated.css", "curated.js"))
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=f"{POLICY}; script-src 'sha256-{_digest(script)}'"),
        el("title", f"longtake curate: {name}"),
        el("style", style, more, gallery.css),
    )
    told = "Look at the rows: where their evidence is, what the checks found, and why others were dropped."
    top = el("header", el("div", el("h1", f"Curated: {name}"), el("p", told, class_="lead")))
    cards = join(card(entry, run, gallery, strip_frames) for entry in shown)
    main = el("main", figures(run), panels(run), _notes(run), el("h2", "Rows"), _how(run, shown), _filters(shown), cards)
    foot = el("footer", f"Written by longtake {__version__}. One file: no connection, nothing outside of it.")
    page = el("html", head, el("body", top, main, foot, el("script", script)), lang="en")
    return f"<!doctype html>\n{page}\n"


def _asset(name: str) -> Html:
    return Html(files("longtake.report").joinpath(name).read_text(encoding="utf-8"))


def _digest(script: str) -> str:
    """What the page's policy names the one script with that may run."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _notes(run: CuratedRun) -> Html | None:
    if not run.notes:
        return None
    listed = el("ul", join(el("li", el("bdi", cut(note, 1000))) for note in run.notes), class_="notes")
    return el("div", el("h3", "Absent from this run"), listed, class_="panel absent-parts")


def _how(run: CuratedRun, shown: Sequence[Entry]) -> Html:
    """How the cards were chosen, and how to get around."""
    told = f"All {len(shown)}."
    if len(shown) < len(run.entries):
        drawn = "drawn evenly from what was kept and from every reason for dropping; the figures above are of all."
        told = f"{len(shown)} of {len(run.entries)}, {drawn}"
        missing = {one.reason for one in run.entries} - {one.reason for one in shown}
        if missing:
            told += f" No room for {len(missing)} reasons: raise --max-rows."
    moves = (" ", el("kbd", "j"), " and ", el("kbd", "k"), " go to the next and the previous, ", el("kbd", "/"), " to the search.")
    keys = el("span", *moves, class_="keys", hidden=True, data_scripted=True)
    votes = join([" Votes: ", el("span", "B", class_="vote right-one"), " names the key, ", el("span", "C", class_="vote"), " does not."])
    return el("p", told, keys, votes, class_="lead")


def _filters(shown: Sequence[Entry]) -> Html:
    """Hidden until the script runs: without it every card is shown."""
    parts: tuple[tuple[str, str, Callable[[Entry], str | None]], ...] = (
        ("state", "State", lambda one: one.state),
        ("category", "Category", lambda one: one.category),
        ("split", "Split", lambda one: one.split),
        ("stage", "Dropped by", lambda one: one.stage if one.state != "kept" else None),
        ("reason", "Reason", lambda one: one.reason),
    )
    choices = [_choice(name, label, Counter(value for one in shown if (value := read(one)))) for name, label, read in parts]
    search = el("label", "Text", el("input", name="text", type="search", placeholder="on the card", autocomplete="off"))
    reset = el("button", "Show all", id="reset", type="button")
    status = el("p", id="shown", role="status", aria_live="polite")
    return el(
        "div", *choices, search, reset, status, id="filters", role="search", aria_label="Filter the rows", hidden=True, data_scripted=True
    )


def _choice(name: str, label: str, counts: Counter[str]) -> Html:
    options = [el("option", "all", value="")]
    options += [el("option", f"{cut(value, 60)} ({count})", value=value) for value, count in sorted(counts.items())]
    return el("label", label, el("select", join(options), name=name, autocomplete="off"))
