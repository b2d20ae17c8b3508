"""The card's figures by hand, and its Markdown as a reader of Markdown takes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from longtake.config.curate import CurateConfig
from longtake.curation.audit import Label, audit_checks, row_verdicts
from longtake.curation.card import CardFacts, card_figures, write_card
from longtake.curation.card_text import card_text, histogram, table
from longtake.curation.records import CheckedRow, Draft, Drop, Finding, PlacedRow, RatedRow, SourceVideo
from longtake.evaluation.intervals import chi_square_p, wilson
from longtake.llm.counts import Paid

OPTIONS = ("red", "blue", "green", "grey")
LENGTHS_S = {"short": 45.0, "hour": 3700.0, "medium": 600.0}


def video(name: str, licence: str = "CC BY 4.0", source: str = "somewhere") -> SourceVideo:
    return SourceVideo(f"{name}.mp4", name, LENGTHS_S[name], 64, 64, 9, ("0",), licence, source)


def row(number: int, name: str, split: str, letter: str, category: str = "plot", right: int | None = 5) -> PlacedRow:
    options = OPTIONS if letter else ()
    answer = OPTIONS["ABCD".index(letter)] if letter else "a short text"
    draft = Draft(f"{name}.mp4", name, category, f"What? {number}", options, answer, "", (), key=f"key {number}")
    return PlacedRow(RatedRow(draft, right, None if right is None else 10), split)


VIDEOS = (video("short"), video("hour", source="elsewhere"), video("medium"))
ROWS = (
    row(0, "short", "sft", "A", right=1),
    row(1, "short", "sft", "A", "goal", right=3),
    row(2, "hour", "rl", "A", right=9),
    row(3, "hour", "rl", "B", right=9),
    row(4, "hour", "rl", "A", right=5),
    row(5, "hour", "rl", "A", "goal", right=2),
    row(6, "hour", "rl", "", "goal", right=5),
)
DIFFICULTY = {"model": {"path": "/secret/place/my-policy"}, "rollout": {"num_takes": 10, "temperature": 1.0}}


def facts(**changes: Any) -> CardFacts:
    config = {"videos": "/secret/videos", "out": "/secret/out", "difficulty": DIFFICULTY} | changes.pop("config", {})
    return CardFacts(CurateConfig.model_validate(config), **changes)


def figures(rows: Sequence[PlacedRow] = ROWS, videos: Sequence[SourceVideo] = VIDEOS, **changes: Any) -> dict[str, Any]:
    return card_figures(rows, videos, facts(**changes))


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text as they are read: rows of plain cells."""
    found: list[list[list[str]]] = []
    inside = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type in ("table_open", "table_close"):
            inside = token.type == "table_open"
            found += [[] for _ in range(inside)]
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and inside:
            found[-1][-1].append("".join(child.content for child in token.children or ()))
    return found


def of(text: str, head: str) -> list[list[str]]:
    """The table that begins with this cell."""
    return next(one for one in tables(text) if one[0][0] == head)


def test_splits_by_hand():
    assert figures()["splits"] == {
        "sft": {"rows": 2, "videos": 1, "hours": 0.0125, "open_ended": 0, "categories": {"goal": 1, "plot": 1}},
        "rl": {"rows": 5, "videos": 1, "hours": 3700 / 3600, "open_ended": 1, "categories": {"goal": 2, "plot": 3}},
    }
    text = card_text(figures())
    assert of(text, "split") == [
        ["split", "rows", "videos", "hours", "goal", "plot", "open-ended"],
        ["sft", "2", "1", "0.0", "1", "1", "0"],
        ["rl", "5", "1", "1.0", "2", "3", "1"],
        ["all", "7", "2", "1.0", "3", "4", "1"],
    ]


def test_durations_by_hand():
    """Of the two videos that rows are about; the third is not published."""
    durations = figures()["durations"]
    assert durations["spread_s"] == {"min": 45.0, "median": 1872.5, "max": 3700.0}
    assert dict(zip(durations["below_s"], durations["counts"], strict=True)) == {
        60: 1, 120: 0, 300: 0, 600: 0, 1200: 0, 1800: 0, 3600: 0, 7200: 1, None: 0
    }  # fmt: skip
    at_edge = figures([*ROWS, row(7, "medium", "rl", "A")])["durations"]
    assert at_edge["counts"] == [1, 0, 0, 0, 1, 0, 0, 1, 0], "600 s is in the bin from 10 minutes on"
    text = card_text(figures())
    assert "Durations: 0:00:45 to 1:01:40, median 0:31:12. Rows per video: 2 to 5, median 3.5." in text
    shown = of(text, "duration")
    assert [(label, count) for label, count, _ in shown[1:3]] == [("under 1 min", "1"), ("1 min to 2 min", "0")]
    assert [label for label, _, _ in shown[3:]] == [
        "2 min to 5 min",
        "5 min to 10 min",
        "10 min to 20 min",
        "20 min to 30 min",
        "30 min to 1 h",
        "1 h to 2 h",
    ]


def test_letters_by_hand():
    """RL: A 3, B 1 of four rows; one expected of each letter, so chi-square = 4 + 0 + 1 + 1 = 6 with 3 degrees of freedom."""
    letters = figures()["letters"]["rl"]
    assert letters["rows"] == 4 and letters["counts"] == {"A": 3, "B": 1, "C": 0, "D": 0}
    assert letters["chi_square"] == pytest.approx(6.0)
    assert letters["p"] == pytest.approx(chi_square_p(6.0, 3)) and letters["p"] == pytest.approx(0.1116, abs=1e-4)
    low, high = wilson(3, 4)
    assert letters["best"] == "A" and letters["best_constant"] == {"count": 3, "total": 4, "share": 0.75, "low": low, "high": high}
    shown = next(one for one in tables(card_text(figures())) if "best constant" in one[0])
    assert shown[2] == ["rl", "4", "3", "1", "0", "0", "A: 75.0 % (30.1 - 95.4)", "0.112"]


def test_letters_of_rows_with_fewer_options():
    """Two options: 1/2 expected of A and of B; with the four-option row 3/4, 3/4, 1/4, 1/4."""
    two = row(0, "short", "sft", "A")
    two = replace(two, row=replace(two.row, draft=replace(two.row.draft, options=OPTIONS[:2])))
    letters = figures([two, row(1, "short", "sft", "C")])["letters"]["sft"]
    expected = (1 - 0.75) ** 2 / 0.75 + 0.75**2 / 0.75 + (1 - 0.25) ** 2 / 0.25 + 0.25**2 / 0.25
    assert letters["chi_square"] == pytest.approx(expected)


def test_skewed_letters_are_seen_and_balanced_ones_are_not():
    skewed = figures([row(number, "short", "sft", "AAAB"[number % 4]) for number in range(60)])["letters"]["sft"]
    balanced = figures([row(number, "short", "sft", "ABCD"[number % 4]) for number in range(60)])["letters"]["sft"]
    assert skewed["p"] < 1e-6 and balanced["p"] == 1.0
    assert "< 0.001" in card_text(figures([row(number, "short", "sft", "AAAB"[number % 4]) for number in range(60)]))


def test_pass_rates_by_hand():
    drops = [Drop("difficulty", reason, "") for reason in ("always_right", "never_right", "never_right", "VideoDamagedError")]
    rates = figures(drops=drops)["pass_rates"]
    assert rates["tenths"] == [0, 1, 1, 1, 0, 2, 0, 0, 0, 2, 0]
    assert rates["mean"] == {"sft": pytest.approx(0.2), "rl": pytest.approx(0.6)}
    assert (rates["always_right"], rates["never_right"]) == (1, 2)
    text = card_text(figures(drops=drops))
    assert "my-policy answered every row 10 times" in text
    assert "always (1) or never (2) got right" in text
    assert [cells[:2] for cells in of(text, "pass rate")[1:]] == [
        [f"{10 * n} %", str(c)] for n, c in enumerate(rates["tenths"]) if 1 <= n <= 9
    ]
    without = figures(config={"difficulty": None})
    assert without["pass_rates"] is None and "No policy was asked" in card_text(without)


def test_what_was_left_out_and_the_checks_by_hand():
    def checked(*names: str) -> tuple[Finding, ...]:
        return tuple(Finding(name, passed=True) for name in names)

    drops = [
        Drop("ingest", "too_short", "", "x.mp4"),
        Drop("check", "options", "", key="a", findings=(Finding("options", passed=False),)),
        Drop("check", "blind", "", key="b", findings=(*checked("options"), Finding("blind", passed=False))),
        Drop("check", "blind", "", key="c", findings=checked("options")),
        Drop("check", "http_500", "", key="d", findings=checked("options", "blind")),
    ]
    passed = [CheckedRow(one.row.draft, checked("options", "blind", "own_check")) for one in ROWS[:4]]
    found = figures(drops=drops, checked=passed, kept={"ingest": 3, "check": 4})
    assert found["drops"] == {"ingest": {"too_short": 1}, "check": {"blind": 2, "http_500": 1, "options": 1}}
    assert found["stages"] == [{"stage": "ingest", "kept": 3, "dropped": 1}, {"stage": "check", "kept": 4, "dropped": 4}]
    assert found["checks"] == [
        {"check": "options", "reached": 8, "failed": 1},
        {"check": "blind", "reached": 7, "failed": 2},
        {"check": "own_check", "reached": 4, "failed": 0},
    ]
    text = card_text(found)
    assert of(text, "check")[1:3] == [["options", "8", "1", "12.5 %"], ["blind", "7", "2", "28.6 %"]]
    assert of(text, "stage")[1:] == [["ingest", "3", "1"], ["check", "4", "4"]]


def test_models_prompts_and_versions(tmp_path: Path):
    paid = [Paid("a-vlm", "caption", 1200, 1_000_000, 30_000, 5, 1.25), Paid("a-llm", "rewrite", 10, 2_000, 300, 0, 0.5)]
    paid[0].bad["schema"] = 7
    prompts = {"caption": "What is seen in $times?", "rewrite": "Say it."}
    found = figures(paid=paid, prompts=prompts, versions={"longtake": "1.2", "torch": "2.13"})
    text = card_text(found)
    assert of(text, "model")[1:] == [
        ["a-vlm", "caption", "1,200", "1,000,000", "30,000", "1.25", "7"],
        ["a-llm", "rewrite", "10", "2,000", "300", "0.50", "0"],
        ["all", "", "1,210", "1,002,000", "30,300", "1.75", "7"],
    ]
    assert "Of 5 answers the server did not tell the tokens" in text
    assert "Made with longtake 1.2, torch 2.13." in text
    assert "[caption](prompts/caption.txt)" in text and f"`{found['prompts']['caption']}`" in text
    assert found["prompts"]["caption"] != figures(prompts={"caption": "What is seen?"})["prompts"]["caption"]
    write_card(tmp_path, found, prompts)
    assert (tmp_path / "prompts" / "caption.txt").read_text() == "What is seen in $times?"
    assert json.loads((tmp_path / "card.json").read_text()) == json.loads(json.dumps(found))
    assert (tmp_path / "README.md").read_text() == text


def test_the_checks_against_labels():
    drafts = [one.row.draft for one in ROWS]
    drops = [Drop("check", "blind", "", key="key 0"), Drop("check", "blind", "", key="key 1")]
    passed = [CheckedRow(draft, (Finding("blind", passed=True),)) for draft in drafts[2:]]
    labels = {
        "key 0": Label("key 0", False, "guess"),
        "key 1": Label("key 1", True),
        "key 2": Label("key 2", False, "guess"),
        "key 3": Label("key 3", True),
    }
    labels["nowhere"] = Label("nowhere", True)
    audit = audit_checks(row_verdicts(drafts, drops, passed, {draft.key for draft in drafts[2:]}), labels)
    found = figures(audit=audit)
    text = card_text(found)
    assert "4 of 7 drafts have a label" in text and "1 further labels are of rows that were never drafted" in text
    shares = of(text, "")
    assert shares[1] == ["wrong rows among the drafts", "50.0 % (15.0 - 85.0)", "2 of 4"]
    assert [cells[2] for cells in shares[2:]] == ["1 of 2", "1 of 2", "1 of 2", "1 of 2"]
    half = "50.0 % (9.5 - 90.5)"
    assert next(one for one in tables(text) if "precision" in one[0])[1] == ["blind", half, half, half, half]
    assert of(text, "fault")[1] == ["guess", half, "1 of 2", "blind 1", "1"]
    assert of(text, "what became of them")[1:] == [["published", "1", "1"], ["failed a check", "1", "1"]]
    assert found["audit"]["checks"][0]["precision"]["total"] == 2
    assert json.loads(json.dumps(found["audit"]))["fates"]["published"] == [1, 1]
    assert "how often was not measured" not in text and "how often was not measured" in card_text(figures())


def test_licences_and_known_limits():
    found = figures(
        videos=[video("short", licence="unknown"), *VIDEOS[1:]], warnings=["the eval split is short"], config={"check": {"off": ["blind"]}}
    )
    assert found["origins"] == [
        {"licence": "CC BY 4.0", "source": "elsewhere", "videos": 1, "rows": 5},
        {"licence": "unknown", "source": "somewhere", "videos": 1, "rows": 2},
    ]
    text = card_text(found)
    for told in (
        "licence or source is unknown",
        "The eval split is short.",
        "Checks that were not made: blind.",
        "only when their words are those",
    ):
        assert told in text
    plain = card_text(figures(ROWS[:6]))
    for told in ("licence or source is unknown", "eval split", "Checks that were not made", "only when their words are those"):
        assert told not in plain


def test_nothing_of_this_machine_is_told():
    """No path of videos, model or output, and no date."""
    text = card_text(figures()) + json.dumps(figures())
    assert "my-policy" in text and "secret" not in text and "/" not in json.dumps(figures()["settings"])


HOSTILE = "<script>alert(1)</script> | `x` [a](http://b) ~~no~~ \n# head *bold* \x1b[31m & \ud800"


def test_texts_from_outside_are_text():
    """Whatever stands in a licence, a name or a reason changes neither the tables nor becomes Markdown or HTML."""
    odd = [replace(one, licence=HOSTILE, source=HOSTILE) for one in VIDEOS]
    rows = [row(9, "short", "sft", "A", category=HOSTILE)]
    config = {"publish": {"name": HOSTILE}, "difficulty": DIFFICULTY | {"model": {"path": f"/x/{HOSTILE.replace('/', '')}"}}}
    text = card_text(
        figures(
            rows,
            odd,
            config=config,
            drops=[Drop("check", HOSTILE, HOSTILE)],
            paid=[Paid(HOSTILE, HOSTILE)],
            warnings=[HOSTILE],
            versions={HOSTILE: HOSTILE},
        )
    )
    assert of(text, "licence")[1][2:] == ["1", "1"] and of(text, "stage")[1] == ["check", "", "1"]
    kinds: set[str] = set()
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text.partition("---\n\n")[2]):
        kinds.add(token.type)
        kinds |= {child.type for child in token.children or ()}
    assert not kinds & {"html_block", "html_inline", "em_open", "strong_open", "s_open", "link_open"}
    assert text.count("<script>") == 1, "in the head alone, as a quoted string"
    assert "\x1b" not in text.partition("---\n\n")[2]


def test_the_head_is_yaml():
    name = 'cats: "and" dogs\n--- # {x}'
    text = card_text(figures(config={"publish": {"name": name}}))
    head = yaml.safe_load(text.partition("---\n")[2].partition("\n---\n")[0])
    assert head["pretty_name"] == name
    assert head["size_categories"] == ["n<1K"] and head["language"] == ["en"]
    assert head["configs"] == [
        {"config_name": "default", "data_files": [{"split": "sft", "path": "sft.parquet"}, {"split": "rl", "path": "rl.parquet"}]}
    ]


def test_tables_and_bars():
    assert table(["a", "b"], [["x", 1], ["y", 12_345]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n| y | 12,345 |\n"
    assert histogram("n", ["0", "1", "2", "3"], [0, 60, 1, 0], "rows") == (
        f"| n | rows |  |\n| ---: | ---: | --- |\n| 1 | 60 | {chr(0x2588) * 30} |\n| 2 | 1 | {chr(0x2588)} |\n"
    )


def test_an_empty_card():
    """Before anything is published it says so much."""
    text = card_text(figures(()))
    assert "0 questions about 0 videos" in text and "configs:" not in text
