"""One card per row of a curated run: frames with the cited ranges, question, reasoning, checks and votes; or why it was dropped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from longtake.answers import same_text
from longtake.curation.records import LETTERS, Box, Caption, Draft, Finding, RatedRow, TimeRange
from longtake.report.curated_frames import Gallery, Piece, Seen, Strip, evidence, moment, whole
from longtake.report.curated_read import CuratedRun, Entry
from longtake.report.markup import Html, el, join
from longtake.report.samples import cut, pill
from longtake.report.strips import clock

MAX_RANGES = 6
MAX_CAPTIONS = 4
MAX_MOMENTS = 4
"""Located frames of a range."""
MAX_VOTES = 40
MAX_VOTE_CHARS = 24
SPATIAL = "spatial"


def moment_of(seconds: float) -> str:
    """A time from a record, which may be anything: `0:12.5`."""
    if not math.isfinite(seconds):
        return "no time"
    return clock(seconds) if seconds >= 0 else f"\N{MINUS SIGN}{clock(-seconds)}"


def span_of(start_s: float, stop_s: float) -> str:
    return f"{moment_of(start_s)} to {moment_of(stop_s)}"


def pieces_of(entry: Entry, run: CuratedRun, strip_frames: int) -> list[Piece]:
    """What of its video a card shows."""
    if entry.draft is None:
        return [whole(strip_frames)]
    cited = [piece for one in entry.draft.ranges[:MAX_RANGES] if (piece := evidence(one)) is not None]
    boxes = [piece for one in entry.draft.ranges[:MAX_RANGES] for piece, _ in _moments(entry, one, run)]
    return [whole(strip_frames), *cited, *boxes]


def _moments(entry: Entry, cited: TimeRange, run: CuratedRun) -> list[tuple[Piece, list[Box]]]:
    """Located frames inside a range of a spatial row, with what is on them."""
    if entry.category != SPATIAL:
        return []
    by_time: dict[float, list[Box]] = {}
    for box in run.boxes.get(entry.video or "", ()):
        if box.time_s >= 0 and cited.start_s <= box.time_s <= cited.stop_s:
            by_time.setdefault(box.time_s, []).append(box)
    return [(moment(time_s), by_time[time_s]) for time_s in sorted(by_time)[:MAX_MOMENTS]]


def card(entry: Entry, run: CuratedRun, gallery: Gallery, strip_frames: int) -> Html:
    """The card; its data attributes are what the page's filters look at."""
    draft = entry.draft
    seen = gallery.seen.get(entry.video or "", "This has no video.")
    body = [_why(entry), _film(entry, run, seen, whole(strip_frames))]
    if draft is not None:
        body += [_question(draft), _reasoning(entry), _evidence(entry, run, seen), _checks(entry, draft)]
    return el(
        "article",
        _head(entry),
        *body,
        _origin(entry, run),
        class_=f"card row {entry.state}",
        id=f"row-{entry.number}",
        tabindex="-1",
        data_state=entry.state,
        data_category=entry.category or "",
        data_split=entry.split or "",
        data_stage=entry.stage if entry.state != "kept" else "",
        data_reason=entry.reason or "",
    )


def _head(entry: Entry) -> Html:
    state = {"kept": "kept", "dropped": f"dropped by {entry.stage}", "lost": f"lost after {entry.stage}"}[entry.state]
    rate = None if entry.rated is None else entry.rated.pass_rate
    name = "Row" if entry.draft is not None else "Drop"
    return el(
        "header",
        el("h3", el("a", f"{name} {entry.number}", href=f"#row={entry.number}")),
        el("span", state, class_=f"pill state {entry.state}"),
        pill(entry.category) if entry.category else None,
        pill("open-ended") if entry.draft is not None and not entry.draft.options else None,
        pill(f"split: {entry.split}") if entry.split else None,
        pill(f"pass rate {rate:.2f}", "plain") if rate is not None else None,
    )


def _why(entry: Entry) -> Html | None:
    if entry.state == "lost":
        told = f"It is in the output of {entry.stage}, and no later stage kept or dropped it."
        return el("p", el("strong", "Lost"), " ", told, class_="why")
    if entry.drop is None:
        return None
    return el("p", el("strong", entry.drop.reason), " ", el("span", cut(entry.drop.message), dir="auto"), class_="why")


def _film(entry: Entry, run: CuratedRun, seen: Seen | str, piece: Piece) -> Html | None:
    """The whole video from left to right, with times; cited ranges as bars beneath it, on the same scale."""
    source = run.videos.get(entry.video or "")
    duration_s = seen.duration_s if isinstance(seen, Seen) else source.duration_s if source is not None else None
    strip = seen.strips.get(piece) if isinstance(seen, Seen) else None
    told = el("p", seen, class_="note") if isinstance(seen, str) else None
    ranges = () if entry.draft is None else entry.draft.ranges
    if not duration_s or not 0 < duration_s < math.inf or (strip is None and not ranges):
        return told
    bars = join(_bar(number, one, duration_s) for number, one in enumerate(ranges, 1))
    frames = None if strip is None else _frames(strip)
    marks = strip.times_s if strip is not None else [duration_s * part / 4 for part in range(5)]
    label = f"The whole video, {moment_of(duration_s)} long, and the cited ranges"
    track = el("div", frames, el("div", bars, class_="bars"), _ticks(marks, duration_s, strip), class_="track", style=f"--n:{len(marks)}")
    return el("div", told, el("div", track, class_="film", tabindex="0", role="group", aria_label=label))


def _frames(strip: Strip) -> Html:
    num = len(strip.times_s)
    label = f"{num} frames from {span_of(strip.times_s[0], strip.times_s[-1])}" if num > 1 else f"frame at {moment_of(strip.times_s[0])}"
    return el("div", class_=f"frames {strip.name}", role="img", aria_label=label, style=f"aspect-ratio:{num * strip.width}/{strip.height}")


def _ticks(marks: Sequence[float], duration_s: float, strip: Strip | None) -> Html:
    """Under each frame its real time; without frames, times of the axis."""
    if strip is not None:
        return el("div", join(el("span", moment_of(time_s)) for time_s in marks), class_="ticks")
    placed = (el("span", moment_of(time_s), style=f"left:{100 * time_s / duration_s:.2f}%") for time_s in marks)
    return el("div", join(placed), class_="ticks axis")


def _bar(number: int, cited: TimeRange, duration_s: float) -> Html | None:
    """A cited range on the scale of the video; None when no part of it is inside."""
    if not math.isfinite(cited.start_s + cited.stop_s) or not cited.stop_s >= 0 or not cited.start_s <= min(cited.stop_s, duration_s):
        return None
    left, right = (100 * min(max(end / duration_s, 0.0), 1.0) for end in (cited.start_s, cited.stop_s))
    style = f"left:{left:.2f}%;width:{right - left:.2f}%"
    return el("span", el("b", number), class_="bar", style=style, title=span_of(cited.start_s, cited.stop_s))


def outside(cited: TimeRange, duration_s: float) -> str | None:
    """What is wrong with a range, in words; None when it lies inside the video."""
    if not (math.isfinite(cited.start_s) and math.isfinite(cited.stop_s)):
        return "this is no time range"
    if cited.stop_s < cited.start_s:
        return "it ends before it begins"
    if cited.start_s < 0 or cited.stop_s > duration_s + 0.05:  # a clip's end, rounded to tenths
        return f"it leaves the video, which is {moment_of(duration_s)} long"
    return None


def _question(draft: Draft) -> Html:
    asked = el("p", cut(draft.question), class_="asked", dir="auto")
    if not draft.options:
        return join([asked, el("p", el("span", "Answer: ", class_="quiet"), el("bdi", cut(draft.answer)), class_="key open")])
    items = [_option(index, option, option == draft.answer) for index, option in enumerate(draft.options)]
    lost = None
    if draft.letter is None:
        lost = el("p", "The answer is none of the options: ", el("bdi", cut(draft.answer)), class_="why")
    return join([asked, el("ol", join(items), class_="choices"), lost])


def _option(index: int, option: str, is_key: bool) -> Html:
    letter = LETTERS[index] if index < len(LETTERS) else f"{index + 1}"
    mark = el("span", "key", class_="mark") if is_key else None
    return el("li", el("span", letter, class_="letter"), el("span", cut(option), dir="auto"), mark, class_="key" if is_key else None)


def _reasoning(entry: Entry) -> Html:
    draft, first = entry.draft, entry.first
    assert draft is not None
    before = None
    if first is not None and first.reasoning != draft.reasoning:
        before = el(
            "details", el("summary", "Reasoning before it was rewritten"), el("p", cut(first.reasoning), class_="reasoning", dir="auto")
        )
    return join([el("h4", "Reasoning"), el("p", cut(draft.reasoning), class_="reasoning", dir="auto"), before])


def _evidence(entry: Entry, run: CuratedRun, seen: Seen | str) -> Html:
    """Each cited range: frames from inside it, and the captions of the clips that it touches."""
    assert entry.draft is not None
    ranges = entry.draft.ranges
    shown = [_range(number, one, entry, run, seen) for number, one in enumerate(ranges[:MAX_RANGES], 1)]
    if not ranges:
        shown = [el("p", "It cites no time.", class_="note")]
    more = len(ranges) - MAX_RANGES
    return join(
        [
            el("h4", "Cited evidence"),
            *shown,
            el("p", f"{more} more ranges are not shown: the bars above have them.", class_="note") if more > 0 else None,
        ]
    )


def _range(number: int, cited: TimeRange, entry: Entry, run: CuratedRun, seen: Seen | str) -> Html:
    piece = evidence(cited)
    strip = seen.strips.get(piece) if isinstance(seen, Seen) and piece is not None else None
    source = run.videos.get(entry.video or "")
    duration_s = seen.duration_s if isinstance(seen, Seen) else source.duration_s if source is not None else math.inf
    wrong = outside(cited, duration_s)
    head = el("h5", el("b", number, class_="number"), " ", span_of(cited.start_s, cited.stop_s))
    told = el("p", f"Not inside the video: {wrong}.", class_="why") if wrong else None
    located = [
        _located(seen.strips[one], boxes) for one, boxes in _moments(entry, cited, run) if isinstance(seen, Seen) and one in seen.strips
    ]
    shots = el("div", _small(strip), el("div", join(located), class_="located") if located else None, class_="shots")
    return el("div", head, told, shots, _captions(cited, run.captions.get(entry.video or "", ())), class_="evidence")


def _small(strip: Strip | None) -> Html | None:
    if strip is None:
        return None
    num = len(strip.times_s)
    track = el("div", _frames(strip), _ticks(strip.times_s, 1.0, strip), class_="track", style=f"--n:{num};--w:{strip.width}px")
    return el("div", track, class_="film", tabindex="0", role="group", aria_label="Frames inside the cited range")


def _located(strip: Strip, boxes: Iterable[Box]) -> Html:
    """A frame with what was located on it."""
    drawn = []
    for one in boxes:
        left, top, right, bottom = (min(max(side, 0), 1000) / 10 for side in one.box)
        style = f"left:{left}%;top:{top}%;width:{max(0.0, right - left):.1f}%;height:{max(0.0, bottom - top):.1f}%"
        drawn.append(el("span", el("bdi", cut(one.label, 40)), class_="box", style=style))
    time = moment_of(strip.times_s[0])
    return el(
        "figure",
        el("div", _frames(strip), join(drawn), class_="canvas", style=f"width:{strip.width}px"),
        el("figcaption", f"located at {time}: ", el("bdi", ", ".join(cut(one.label, 40) for one in boxes))),
    )


def _captions(cited: TimeRange, captions: Sequence[Caption]) -> Html:
    touched = [one for one in captions if one.start_s < cited.stop_s and one.stop_s > cited.start_s]
    if not touched:
        return el("p", "No caption of a clip in this range.", class_="note")
    items = [
        el("li", el("span", span_of(one.start_s, one.stop_s), class_="quiet"), " ", el("bdi", cut(one.text, 1500)))
        for one in touched[:MAX_CAPTIONS]
    ]
    if len(touched) > MAX_CAPTIONS:
        items.append(el("li", f"and {len(touched) - MAX_CAPTIONS} more clips", class_="quiet"))
    return el("ul", join(items), class_="captions")


def _checks(entry: Entry, draft: Draft) -> Html:
    """Failed checks first, then those with something to tell, then all that just passed, in one line."""
    failed = [one for one in entry.findings if not one.passed]
    told = [one for one in entry.findings if one.passed and (one.votes or one.detail)]
    plain = [one for one in entry.findings if one.passed and not (one.votes or one.detail)]
    items = [_finding(one, draft) for one in (*failed, *told)]
    if plain:
        items.append(el("li", join(el("span", one.check, class_="passed") for one in plain), class_="plain"))
    if entry.rated is not None and entry.rated.num_takes:
        items.append(_rating(entry.rated, draft))
    if not items:
        return join([el("h4", "Checks"), el("p", "No findings are written for it.", class_="note")])
    return join([el("h4", "Checks"), el("ul", join(items), class_="checks")])


def _finding(finding: Finding, draft: Draft) -> Html:
    return el(
        "li",
        el("b", finding.check, class_="passed" if finding.passed else "failed", title="passed" if finding.passed else "failed"),
        el("span", " passed" if finding.passed else " failed", class_="sr"),
        _votes(finding.votes, draft),
        el("span", cut(finding.detail, 1500), class_="quiet", dir="auto") if finding.detail else None,
    )


def _rating(rated: RatedRow, draft: Draft) -> Html:
    told = f"{rated.num_right} of {rated.num_takes} answers of the policy are right"
    return el("li", el("b", "difficulty"), _votes(rated.answers, draft), el("span", told, class_="quiet"))


def _votes(votes: Sequence[str], draft: Draft) -> Html | None:
    """Small marks, filled for those that name the key."""
    if not votes:
        return None
    marks = [_vote(vote, draft) for vote in votes[:MAX_VOTES]]
    more = el("span", f"and {len(votes) - MAX_VOTES} more", class_="quiet") if len(votes) > MAX_VOTES else None
    return el("span", join(marks), more, class_="votes")


def _vote(vote: str, draft: Draft) -> Html:
    right, failed = names_key(vote, draft), vote.startswith("failed: ")
    hint = "no answer came" if failed else "names the key" if right else "does not name the key"
    kind = "vote right-one" if right else "vote failure" if failed else "vote"
    return el("span", el("bdi", cut(_short(vote, draft), MAX_VOTE_CHARS)), class_=kind, title=f"{cut(vote, 500)}: {hint}")


def _short(vote: str, draft: Draft) -> str:
    """The letter of the option that was named by its text, else the vote as it is."""
    named = [letter for letter, option in zip(LETTERS, draft.options, strict=False) if option == vote.strip()]
    return named[0] if named else vote


def names_key(vote: str, draft: Draft) -> bool:
    """A vote for the key: its letter, its text, or yes about an open-ended answer."""
    said = vote.strip()
    if draft.options:
        return bool(said) and said in (draft.letter, draft.answer)
    return said.lower() == "yes" or same_text(said, draft.answer)


def _origin(entry: Entry, run: CuratedRun) -> Html:
    source = run.videos.get(entry.video or "")
    parts: list[tuple[str, object]] = [("video", entry.video)]
    if source is not None:
        parts += [("length", moment_of(source.duration_s)), ("size", f"{source.width}\N{MULTIPLICATION SIGN}{source.height}")]
        parts += [("licence", source.licence), ("source", source.source)]
    parts.append(("key", entry.key))
    items = (el("span", f"{name} ", el("b", el("bdi", value))) for name, value in parts if value)
    return el("footer", join(items), class_="origin")
