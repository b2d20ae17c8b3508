"""The page of `curate view`: complete, self-contained, escaped, honest about what is absent. Its looks are checked by eye, not here."""

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from longtake.cli import main
from longtake.config.curate_view import CurateViewConfig
from longtake.curation.outputs import read_stage, write_stage
from longtake.curation.records import Box, Draft, Drop, Finding, Outcome, TimeRange, named
from longtake.errors import RowError
from longtake.report import curated_frames
from longtake.report.curated import write_curated_page
from longtake.report.curated_cards import _vote, moment_of, names_key, outside
from longtake.report.curated_frames import Piece, evidence, gather, jpeg, moment, whole
from longtake.report.curated_read import choose, even_shares, read_curated
from longtake.report.markup import VOID
from longtake.testing.curated_run import GONE, make_world, write_curated_run
from longtake.video.encode import VideoWriter

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&amp;\u202e\N{HEBREW LETTER SHIN}\x00 \n" + "W" * 300
FILTERS = ("state", "category", "split", "stage", "reason")


class Parsed(HTMLParser):
    """Elements in balance; cards with their attributes and words, and all attributes and names."""

    def __init__(self, page):
        super().__init__()
        self.open, self.names, self.attributes, self.cards, self.words, self.scripts = [], [], [], [], [], []
        self.options: dict[str, list[str]] = {}
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))
        if tag == "article":
            self.cards.append((dict(attrs), []))
        if tag == "option":
            select = next(own for name, own in reversed(self.open) if name == "select")
            self.options.setdefault(select["name"], []).append(dict(attrs)["value"])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] in ("script", "style"):
            self.scripts += [data] if self.open[-1][0] == "script" else []
            return
        self.words.append(data)
        if any(name == "article" for name, _ in self.open):
            self.cards[-1][1].append(data)

    @property
    def text(self):
        return _folded(" ".join(self.words))

    def card(self, number):
        return next((own, _folded(" ".join(words))) for own, words in self.cards if own["id"] == f"row-{number}")


def _folded(text):
    return " ".join(text.split())


def view(run, **more):
    return write_curated_page(CurateViewConfig(run=run, **more)).path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "world", num_videos=2)


@pytest.fixture(scope="module")
def run_dir(world, tmp_path_factory):
    return write_curated_run(tmp_path_factory.mktemp("curated") / "run", world)


@pytest.fixture(scope="module")
def page(run_dir):
    return view(run_dir)


@pytest.fixture(scope="module")
def hostile_page(world, tmp_path_factory):
    return view(write_curated_run(tmp_path_factory.mktemp("hostile") / "run", world, mark=HOSTILE))


def test_every_row_and_every_drop_has_a_card_with_its_texts(page, run_dir):
    parsed = Parsed(page)
    run = read_curated(run_dir)
    drops = [drop for outcome in run.outcomes.values() for drop in outcome.dropped]
    placed = run.kept("split")
    assert len(parsed.cards) == len(placed) + len(drops) == len(run.entries) == 19
    assert {drop.reason for drop in drops} == {"duplicate_video", "bad_answer", "blind", "support", "options", "always_right"}
    for entry in run.entries:
        attributes, words = parsed.card(entry.number)
        assert entry.state == attributes["data-state"]
        if entry.drop is not None:
            assert f"{entry.drop.reason} {entry.drop.message}" in words and f"dropped by {entry.drop.stage}" in words
        if entry.draft is not None:
            for told in (entry.draft.question, *entry.draft.options, entry.draft.reasoning, entry.draft.category, entry.draft.key):
                assert told in words
        if entry.state == "kept":
            assert f"{entry.rated.num_right} of 10 answers of the policy are right" in words
            assert "CC BY 4.0" in words and "https://example.org/world" in words


def test_a_card_tells_checks_votes_and_what_it_was_before_rewriting(page, run_dir):
    run = read_curated(run_dir)
    blind = next(one for one in run.entries if one.reason == "blind")
    attributes, words = Parsed(page).card(blind.number)
    letter = blind.draft.letter
    assert f"blind failed {' '.join(letter * 6)} 6 of 6 votes name the key" in words
    assert words.index("blind failed") < words.index("support passed") < words.index("letters")
    assert "Reasoning before it was rewritten" in words and blind.first.reasoning in words
    assert attributes["class"] == "card row dropped"
    lacking = next(one for one in run.entries if one.reason == "options")
    assert "No findings are written for it." in Parsed(page).card(lacking.number)[1]


def test_the_captions_of_the_clips_that_a_range_touches_stand_under_it(page, run_dir):
    run = read_curated(run_dir)
    entry = next(one for one in run.entries if one.state == "kept" and one.video != GONE)
    cited = entry.draft.ranges[0]
    touched = [one for one in run.captions[entry.video] if one.start_s < cited.stop_s and one.stop_s > cited.start_s]
    others = [one for one in run.captions[entry.video] if one not in touched]
    words = Parsed(page).card(entry.number)[1]
    assert touched and all(one.text in words for one in touched)
    assert any(one.text not in words for one in others)


def test_filters_offer_what_the_cards_have(page, run_dir):
    parsed = Parsed(page)
    for name in FILTERS:
        assert set(parsed.options[name]) == {own[f"data-{name}"] for own, _ in parsed.cards} | {""}
    by_hand = {one.number: one for one in read_curated(run_dir).entries}
    for own, _ in parsed.cards:
        entry = by_hand[int(own["id"].removeprefix("row-"))]
        wanted = (entry.state, entry.category, entry.split, entry.stage if entry.drop else None, entry.reason)
        assert [own[f"data-{name}"] for name in FILTERS] == [value or "" for value in wanted]
    splits = [own["data-split"] for own, _ in parsed.cards if own["data-state"] == "kept"]
    assert sorted(splits) == sorted(["sft", "rl", "rl", "eval"] * 2)
    assert re.search(r'href="#stage=check&amp;reason=blind"', page)


def test_fields_have_labels_and_pictures_have_texts(page):
    assert len(re.findall(r"<label>[^<]+<(?:select|input)\b", page)) == len(re.findall(r"<(?:select|input)\b", page)) == 6
    images = re.findall(r'<div class="frames [^"]+"[^>]*>', page)
    assert images and all('role="img"' in one and 'aria-label="' in one for one in images)
    assert re.search(r'<html lang="en">', page) and page.count("<h1>") == 1


def test_nothing_is_fetched_and_only_our_script_may_run(page):
    parsed = Parsed(page)
    assert not {"link", "iframe", "object", "embed", "base", "form", "img"} & set(parsed.names)
    assert parsed.names.count("script") == 1 and parsed.scripts == [files("longtake.report").joinpath("curated.js").read_text()]
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[0].encode()).digest()).decode()
    policy = next(value for name, value in parsed.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy and policy.endswith(f"script-src 'sha256-{digest}'")
    links = [value for name, value in parsed.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert links and all(value.startswith("#") for value in links)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    urls = re.findall(r"url\(([^)]{0,30})", page)
    assert urls and all(url.startswith('"data:image/jpeg;base64,') for url in urls)
    assert not re.search(r"@import|fetch\(|XMLHttpRequest|WebSocket|innerHTML|eval\(|import\(", page)


def test_hostile_text_stays_text_everywhere(page, hostile_page):
    quiet, loud = Parsed(page), Parsed(hostile_page)
    assert sorted(loud.names) == sorted(quiet.names)  # no element more, none less
    assert {name for name, _ in loud.attributes} == {name for name, _ in quiet.attributes}
    shown = _folded(HOSTILE.replace("\x00", "\N{REPLACEMENT CHARACTER}"))
    kept = next(own["id"] for own, _ in loud.cards if own["data-state"] == "kept")
    words = loud.card(int(kept.removeprefix("row-")))[1]
    # question, 4 options, reasoning before and after, 3 findings, licence, source, and a caption at least
    assert words.count(shown) >= 13
    assert loud.text.count(shown) > 100 and quiet.text.count("<script>") == 0
    reasons = {own["data-reason"] for own, _ in loud.cards}
    assert "options" + HOSTILE.replace("\x00", "\N{REPLACEMENT CHARACTER}") in reasons and reasons | {""} == set(loud.options["reason"])


def test_pictures_are_held_once_whatever_the_number_of_cards(page, run_dir):
    payloads = re.findall(r'\.(strip\d+)\{background-image:url\("data:image/jpeg;base64,([^"]+)"\)', page)
    used = re.findall(r'class="frames (strip\d+)"', page)
    assert len({name for name, _ in payloads}) == len(payloads) == len(set(used)) and set(used) == {name for name, _ in payloads}
    assert len({picture for _, picture in payloads}) == len(payloads)
    wholes = {own for own in used if used.count(own) > 4}
    assert len(wholes) == 2  # the two videos that are there, each on the cards of all its rows
    sizes = [Image.open(io.BytesIO(base64.b64decode(picture))).size for _, picture in payloads]
    assert max(sizes) == (12 * 112, 112)
    assert len(page) < 1_000_000


def test_bars_stand_where_the_evidence_is(tmp_path, world):
    """A file of 68 s; 17 to 34 s is its second quarter. What leaves the video is cut, and told."""
    run = write_curated_run(tmp_path / "run", world, until="question")
    old = read_stage(run, "question").kept[1]
    ranges = (TimeRange(17.0, 34.0), TimeRange(60.0, 90.0), TimeRange(30.0, 20.0), TimeRange(70.0, 80.0), TimeRange(-5.0, 6.8))
    write_stage(run, "question", Outcome((named(replace(old, ranges=ranges)),), ()))
    text = view(run)
    bars = re.findall(r'<span class="bar" style="left:([\d.]+)%;width:([\d.]+)%" title="([^"]+)"><b>(\d)', text)
    assert bars == [
        ("25.00", "25.00", "0:17.0 to 0:34.0", "1"),
        ("88.24", "11.76", "1:00.0 to 1:30.0", "2"),
        ("0.00", "10.00", "\N{MINUS SIGN}0:05.0 to 0:06.8", "5"),
    ]
    words = Parsed(text).text
    assert words.count("Not inside the video: it leaves the video, which is 1:08.0 long.") == 3
    assert words.count("Not inside the video: it ends before it begins.") == 1


def test_frames_are_those_of_the_times_that_are_written_under_them(tmp_path):
    """A video of grey 20 k in second k: the middles of four parts of 2 to 6 s show seconds 2, 3, 4, 5."""
    with VideoWriter(tmp_path / "steps.mp4", 64, 48, gop=5, fps=2.0) as writer:
        for index in range(20):
            writer.write(np.full((48, 64, 3), 20 * (index // 2), dtype=np.uint8), index / 2)
    pieces = (whole(5), Piece(2.0, 6.0, 4), moment(7.5), Piece(20.0, 30.0, 2), Piece(9.0, 99.0, 2))
    gallery = gather(tmp_path, {"steps.mp4": pieces, "none.mp4": (whole(5),)}, "")
    seen = gallery.seen["steps.mp4"]
    assert seen.duration_s == 10.0 and set(seen.strips) == {*pieces} - {Piece(20.0, 30.0, 2)}
    assert seen.strips[whole(5)].times_s == (1.0, 3.0, 5.0, 7.0, 9.0)
    assert seen.strips[Piece(2.0, 6.0, 4)].times_s == (2.5, 3.5, 4.5, 5.5)
    assert seen.strips[moment(7.5)].times_s == (7.5,)
    assert seen.strips[Piece(9.0, 99.0, 2)].times_s == (9.0, 9.5)  # cut at the end of the video
    strip = seen.strips[Piece(2.0, 6.0, 4)]
    encoded = re.search(rf'\.{strip.name}\{{background-image:url\("data:image/jpeg;base64,([^"]+)"', gallery.css)[1]
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("L")
    assert image.size == (4 * 64, 48)
    shades = [image.getpixel((64 * index + 32, 24)) for index in range(4)]
    assert shades == pytest.approx([40, 60, 80, 100], abs=4)  # H.264 and JPEG: measured 1
    assert "No frames" in gallery.seen["none.mp4"] and "none.mp4" in gallery.seen["none.mp4"]


def test_a_range_gives_frames_by_its_length_and_nonsense_gives_none():
    assert evidence(TimeRange(10.0, 20.0)) == Piece(10.0, 20.0, 4)
    assert evidence(TimeRange(10.0, 11.0)) == Piece(10.0, 11.0, 2)
    assert evidence(TimeRange(-4.0, 400.0)) == Piece(0.0, 400.0, 5)
    assert evidence(TimeRange(20.0, 10.0)) is evidence(TimeRange(-9.0, -2.0)) is evidence(TimeRange(float("nan"), 3.0)) is None
    assert outside(TimeRange(1.0, 2.0), 2.0) is None
    assert "no time range" in outside(TimeRange(1.0, float("inf")), 2.0)
    assert (moment_of(83.25), moment_of(-2.0), moment_of(float("nan"))) == ("1:23.2", "\N{MINUS SIGN}0:02.0", "no time")


def test_pictures_keep_to_their_bytes_even_when_they_are_noise(tmp_path, monkeypatch):
    """The worst case: every row cites another part of a video of pure noise."""
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "noise.mp4", 128, 96, gop=10, crf=10) as writer:
        for index in range(80):
            writer.write(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8), index / 2)
    pieces = [Piece(float(start), start + 5.0, 2) for start in range(30)]
    monkeypatch.setattr(curated_frames, "IMAGE_BYTES", 360_000)
    held = re.findall(r"base64,([^\"]+)", gather(tmp_path, {"noise.mp4": pieces}, "").css)
    sizes = [len(base64.b64decode(one)) for one in held]
    assert len(sizes) == 30 and sum(sizes) <= 360_000
    monkeypatch.setattr(curated_frames, "IMAGE_BYTES", 10_000_000)
    free = re.findall(r"base64,([^\"]+)", gather(tmp_path, {"noise.mp4": pieces}, "").css)
    assert sum(len(base64.b64decode(one)) for one in free) > 360_000  # control: without the limit it is passed
    assert len(jpeg(rng.integers(0, 256, (96, 256, 3), dtype=np.uint8), 1)) > 1  # nothing fits: the smallest


def test_a_run_in_the_middle_is_shown_as_such(world, tmp_path):
    for until, missing in (("ingest", "segment"), ("question", "rewrite"), ("check", "difficulty")):
        run = write_curated_run(tmp_path / until, world, until=until)
        parsed = Parsed(view(run))
        assert re.search(rf"Not done yet: {missing}, [a-z, ]*split\.", parsed.text)
        assert re.search(rf"\b{missing} not done yet", parsed.text)
    kept = [own for own, _ in Parsed(view(tmp_path / "check")).cards if own["data-state"] == "kept"]
    assert len(kept) == 10 and {own["data-split"] for own in kept} == {""}
    assert not [own for own, _ in Parsed(view(tmp_path / "ingest")).cards if own["data-state"] == "kept"]


def test_what_is_damaged_or_gone_is_told_and_the_rest_is_shown(world, tmp_path):
    run = write_curated_run(tmp_path / "run", world)
    (run / "caption.jsonl").write_text('{"video": 3}\n')
    (run / "ground.dropped.jsonl").unlink()
    (run / "config.json").unlink()
    parsed = Parsed(view(run))
    for told in (
        "caption could not be read, and counts as not done",
        "ground: ground.jsonl is there without its other half, and counts as not done",
        "The configuration of the run is unknown",
        "The folder of videos is unknown",
        "No caption of a clip in this range.",
    ):
        assert told in parsed.text
    assert len(parsed.cards) == 18  # the drop of caption is unread
    assert "data:image" not in view(run)
    assert "data:image" in view(run, videos=world.folder)
    with pytest.raises(RowError, match="no output of a stage"):
        read_curated(tmp_path)


def test_a_video_that_cannot_be_opened_is_told_on_its_card(page, run_dir):
    entry = next(one for one in read_curated(run_dir).entries if one.video == GONE)
    words = Parsed(page).card(entry.number)[1]
    assert "No frames: " in words and "No such file" in words and "Is the video there?" in words
    assert page.count("No such file") == 2  # that card, and the copy that ingest dropped


def test_rows_that_no_stage_accounts_for_are_shown_as_lost(world, tmp_path):
    run = write_curated_run(tmp_path / "run", world)
    rated = read_stage(run, "difficulty")
    write_stage(run, "difficulty", Outcome(rated.kept[1:], rated.dropped))
    write_stage(run, "split", Outcome(read_stage(run, "split").kept[1:], ()))
    parsed = Parsed(view(run))
    lost = [own for own, _ in parsed.cards if own["data-state"] == "lost"]
    assert len(lost) == 1 and lost[0]["data-stage"] == "check"
    assert "1 rows of check are neither in the stages after it nor dropped by any" in parsed.text
    assert rated.kept[0].draft.key in parsed.card(int(lost[0]["id"].removeprefix("row-")))[1]


def test_a_row_that_check_drops_before_it_is_rewritten_is_not_lost(world, tmp_path):
    run = write_curated_run(tmp_path / "run", world)
    dropped = read_stage(run, "check").dropped[0].key
    rewritten = read_stage(run, "rewrite")
    write_stage(run, "rewrite", Outcome(tuple(one for one in rewritten.kept if one.key != dropped), rewritten.dropped))
    states = [(one.state, one.stage) for one in read_curated(run).entries if one.key == dropped]
    assert states == [("dropped", "check")]


def test_figures_count_the_whole_run_and_the_choice_is_even_and_told(run_dir):
    parsed = Parsed(view(run_dir, max_rows=7))
    assert len(parsed.cards) == 7
    assert {own["data-reason"] for own, _ in parsed.cards} == {
        "", "duplicate_video", "bad_answer", "blind", "support", "options", "always_right"
    }  # fmt: skip
    assert "7 of 19, drawn evenly" in parsed.text
    assert "Rows kept 8 of 17 drafted" in parsed.text and "Dropped 11" in parsed.text
    assert re.search(r"check blind 2\b", parsed.text)
    few = Parsed(view(run_dir, max_rows=2))
    assert len(few.cards) == 2 and "No room for 5 reasons" in few.text
    entries = read_curated(run_dir).entries
    assert choose(entries, 7, 0) == choose(entries, 7, 0)
    assert any(choose(entries, 7, 0) != choose(entries, 7, seed) for seed in range(1, 5))


def test_even_shares_by_hand():
    assert even_shares({"kept": 100, "blind": 3, "support": 50}, 23) == {"kept": 10, "blind": 3, "support": 10}
    assert even_shares({"a": 5, "b": 5}, 100) == {"a": 5, "b": 5}
    assert even_shares({"a": 9, "b": 9, "c": 9}, 8) == {"a": 2, "b": 3, "c": 3}
    assert even_shares({"a": 9, "b": 9, "c": 9}, 2) == {"a": 0, "b": 1, "c": 1}
    assert even_shares({}, 5) == {}


def test_votes_for_the_key():
    draft = Draft("v", "d", "goal", "why?", ("to use it", "yes"), "to use it", "", ())
    assert names_key("A", draft) and names_key(" to use it ", draft)
    assert not names_key("B", draft) and not names_key("yes", draft) and not names_key("", draft)
    shown = [re.search(r"<bdi>(.*)</bdi>", _vote(vote, draft))[1] for vote in ("to use it", "yes", "B", "cannot tell")]
    assert shown == ["A", "B", "B", "cannot tell"]
    assert "no answer came" in _vote("failed: timeout", draft) and 'class="vote failure"' in _vote("failed: timeout", draft)
    free = Draft("v", "d", "goal", "why?", (), "to use it", "", ())
    assert names_key("yes", free) and names_key("To use it.", free) and not names_key("no", free)


def test_boxes_are_drawn_on_spatial_rows_alone(page, run_dir):
    run = read_curated(run_dir)
    spatial = {one.number for one in run.entries if one.category == "spatial"}
    located = {number for number in (one.number for one in run.entries) if "located at" in Parsed(page).card(number)[1]}
    assert located and located <= spatial
    assert 'style="left:10.0%;top:35.0%;width:32.0%;height:45.0%"' in page
    assert isinstance(run.boxes["videos/000000.mp4"][0], Box)


def test_a_key_that_is_none_of_the_options_is_told(world, tmp_path):
    run = write_curated_run(tmp_path / "run", world, until="question")
    old = read_stage(run, "question").kept[0]
    broken = named(replace(old, answer="the moon"))
    drop = Drop(
        "check",
        "complete",
        "the answer is none of the options",
        broken.video,
        broken.key,
        broken.category,
        broken,
        (Finding("complete", False),),
    )
    write_stage(run, "question", Outcome((broken,), ()))
    write_stage(run, "rewrite", Outcome((broken,), ()))
    write_stage(run, "check", Outcome((), (drop,)))
    words = Parsed(view(run)).text
    assert "The answer is none of the options: the moon" in words and "complete failed" in words
    assert " key" not in words.split("The answer is none")[0].split(old.question)[1]


def _luminance(colour):
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_texts_stand_out_from_what_is_behind_them(page, theme):
    """4.5 to 1, as WCAG 2 AA asks for text of this size. Themes: light, then dark; the page's own colours come after the report's."""
    style = re.sub(
        r"@media print.*?\n(?=:root|@media|\S)", "", re.search(r"<style>(.*?)</style>", page, flags=re.DOTALL)[1], flags=re.DOTALL
    )
    blocks = re.findall(r"(@media \(prefers-color-scheme: dark\) \{\s*)?:root \{([^}]*)\}", style)
    colours = {}
    for dark, block in blocks:
        if theme or not dark:
            colours |= dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", block))
    pairs = [("ink", "bg"), ("ink", "surface"), ("ink", "tint"), ("quiet", "bg"), ("quiet", "surface"), ("quiet", "tint")]
    pairs += [("bad", "tint"), ("bad", "surface"), ("good", "tint"), ("surface", "blue"), ("blue", "surface")]
    for front, back in pairs:
        light, dark = sorted((_luminance(colours[front]), _luminance(colours[back])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back)
    on_orange = sorted((_luminance("#1a2230"), _luminance(colours["orange"])), reverse=True)
    assert (on_orange[0] + 0.05) / (on_orange[1] + 0.05) >= 4.5


def test_the_command_writes_the_page(run_dir, tmp_path, capsys):
    out = tmp_path / "deep" / "page.html"
    assert main(["curate", "view", str(run_dir), "--out", str(out), "--strip-frames", "4"]) == 0
    told = capsys.readouterr().err
    assert "19 of 19 rows and drops" in told and "no frames of 2 videos" in told and str(out) in told
    assert "4 frames from" in out.read_text(encoding="utf-8")
    assert main(["curate", "view", str(tmp_path)]) == 2
    assert "no output of a stage" in capsys.readouterr().err
    assert json.loads((run_dir / "config.json").read_text())["seed"] == 0
