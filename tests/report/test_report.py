"""The page: complete, self-contained, escaped, and honest about what is absent. Its looks are checked by eye, not here."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from longtake.errors import RowError
from longtake.evaluation.records import read_records, write_records
from longtake.report.html import render_report, write_report
from longtake.report.markup import VOID, text
from longtake.report.read import read_run
from longtake.report.strips import strip, strips
from longtake.testing.synthetic_run import MARK, write_synthetic_run
from longtake.types import Row

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&\u202e\x00 $x^2$"


class Checker(HTMLParser):
    """Elements in balance; collects names, attributes and text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.names, self.attributes, self.text = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_synthetic_run(tmp_path_factory.mktemp("run") / "SYNTHETIC", num_rows=120, num_steps=45)


@pytest.fixture(scope="module")
def page(run_dir):
    return write_report(run_dir).read_text(encoding="utf-8")


def test_everything_the_run_holds_is_on_the_page(page, run_dir):
    words = Checker(page).words
    summary = json.loads((run_dir / "summary.json").read_text())
    for figures in summary["stages"].values():
        low, high = figures["ci95"]
        assert f"{100 * figures['accuracy']:.1f} %" in words and f"{100 * low:.1f} to {100 * high:.1f}" in words
    for part in (
        "Accuracy by category",
        "Accuracy by number of frames",
        "Which letters are answered",
        "Rewards in training",
        "Phases of training",
    ):
        assert part in words
    for told in (f"[{MARK} eval] Where did", f"{MARK} reasoning: red square", f"{MARK} take 3", "VideoDamagedError", '"lr": 0.0001'):
        assert told in words
    assert f"p = {summary['paired']['rl_vs_sft']['p']:.0e}".replace("e-0", "e-") in words
    assert page.count("<svg ") == 1 + 4 + 4 + 9 + 1  # stages; category, frames, letters; SFT; RL; time
    assert "Not logged: KL to the reference" in words  # the synthetic RL logs none
    assert "nan" not in words.lower().split()


def test_nothing_is_fetched_and_nothing_runs(page):
    checker = Checker(page)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(checker.names)
    links = [value for name, value in checker.attributes if name in ("src", "href", "xlink:href", "srcset", "action", "data")]
    assert links and all(value.startswith(("#", "data:image/jpeg;base64,")) for value in links)
    assert not [name for name, _ in checker.attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", page)
    assert "default-src 'none'" in dict(checker.attributes)["content"] or "default-src &#x27;none&#x27;" in page


def test_strips_show_the_frames_of_the_rows_own_video_with_their_times(page):
    """Frame 0 of video v is the ground colour v; the middles of eight parts of 24 s are 1.5, 4.5, ... s."""
    grounds = ((120, 200, 250), (35, 32, 40), (20, 70, 35))
    samples = re.findall(r"<h3>Question (\d+)</h3>.*?</article>", page, flags=re.DOTALL)
    articles = re.findall(r'<article class="card sample"><header><h3>Question (\d+)</h3>(.*?)</article>', page, flags=re.DOTALL)
    assert 4 <= len(samples) == len(articles) <= 6
    for number, article in articles:
        images = re.findall(r"data:image/jpeg;base64,([^\"]+)", article)
        first = Image.open(io.BytesIO(base64.b64decode(images[0])))
        assert len(images) == 8 and first.getpixel((100, 5)) == pytest.approx(
            grounds[int(number) % 3], abs=12
        )  # H.264 and JPEG: measured 4
        assert re.findall(r"<figcaption>([\d:.]+)</figcaption>", article)[:2] == ["0:01.5", "0:04.5"]


def test_hostile_text_from_data_stays_text(run_dir, tmp_path):
    """Every place that shows data: question, option, category, reasoning, answer, failure, take, path, configuration."""
    hurt = tmp_path / "hurt"
    shutil.copytree(run_dir, hurt)
    (hurt / "summary.json").unlink()
    rows = [json.loads(line) for line in (hurt / "data/eval/rows.jsonl").read_text().splitlines()]
    rows = [row | {"problem": HOSTILE + row["problem"] + HOSTILE} for row in rows]
    (hurt / "data/eval/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for stage in ("sft", "rl"):
        path = hurt / "eval" / stage / "answers.jsonl"
        records = read_records(path)
        changed = {
            "category": HOSTILE,
            "text": f"<think>{HOSTILE}</think><answer>{HOSTILE}</answer>",
            "failure_message": HOSTILE,
            "answer": HOSTILE,
        }
        write_records(path, [type(record)(**{**vars(record), **changed, "predicted": HOSTILE}) for record in records])
    takes = [json.loads(line) for line in (hurt / "rl/takes.jsonl").read_text().splitlines()]
    takes = [take | {"text": HOSTILE, "finish_reason": HOSTILE, "rewards": {HOSTILE: 1.0}} for take in takes]
    (hurt / "rl/takes.jsonl").write_text("".join(json.dumps(take) + "\n" for take in takes))
    (hurt / "rl/config.json").write_text(json.dumps({HOSTILE: HOSTILE, "data": {"rows": HOSTILE}}))
    page = write_report(hurt).read_text(encoding="utf-8")
    checker = Checker(page)
    assert "script" not in checker.names and not [name for name, _ in checker.attributes if name.startswith("on")]
    assert "alert('x')" in checker.words and "\x00" not in page
    assert page.count("&lt;script&gt;alert(") > 20
    assert {value for name, value in checker.attributes if name == "src" and not value.startswith("data:")} == set()


def test_rows_whose_video_is_missing_damaged_or_outside_say_so(tmp_path):
    (tmp_path / "damaged.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42 cut off")
    (tmp_path.parent / "secret.mp4").write_bytes(b"x")
    for name in ("../secret.mp4", "none.mp4", "damaged.mp4", "<b>.mp4"):
        told = strip(tmp_path, name)
        assert told.startswith('<p class="note">No frames: ') and text(name) in told and "<img" not in told
    none = Row(1, "?", "text", "plot", "", (), "<answer>1</answer>")
    assert strips(tmp_path, none) == '<p class="note">This row has no video.</p>'
    two = strips(tmp_path, replace(none, data_type="video", videos=("none.mp4", "damaged.mp4")))
    assert two.count('<p class="note">No frames: ') == 2 and two.index("none.mp4") < two.index("damaged.mp4")


def test_a_single_training_folder_is_enough(run_dir, tmp_path):
    for name in ("rl", "sft"):
        alone = tmp_path / name
        shutil.copytree(run_dir / name, alone)
        words = Checker(write_report(alone).read_text(encoding="utf-8")).words
        assert ("Takes of one group" in words) == (name == "rl")
        assert "45 steps" in words and "Results" not in words.split("Learning curves")[0]
        assert "Absent from this run folder" in words
    assert "rows.jsonl is not there" in Checker(render_report(read_run(tmp_path / "rl"))).words


def test_a_single_evaluation_folder_is_enough(run_dir):
    words = Checker(render_report(read_run(run_dir / "eval" / "rl"))).words
    assert "Accuracy by category" in words and "Sample questions" in words


def test_what_is_absent_is_named_and_the_rest_is_shown(run_dir, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(run_dir, part)
    for gone in ("eval/base", "sft_control", "eval/sft_control", "eval/blind", "data"):
        shutil.rmtree(part / gone)
    (part / "summary.json").unlink()
    words = Checker(write_report(part).read_text(encoding="utf-8")).words
    for note in (
        "No evaluation of Base was found",
        "No evaluation of Blind",
        "sft_control/metrics.jsonl is not there",
        "rows.jsonl is not there",
    ):
        assert note in words
    assert "SFT + RL: accuracy" in words and "Without the video" not in words
    assert "SFT + RL against SFT" in words  # the paired test is made from the records


def test_damaged_logs_are_counted_not_fatal(run_dir, tmp_path):
    hurt = tmp_path / "logs"
    shutil.copytree(run_dir, hurt)
    for name in ("rl/metrics.jsonl", "rl/takes.jsonl", "eval/base/answers.jsonl"):
        with (hurt / name).open("ab") as file:
            file.write(b'{"step": 9, "cut of\n\xff\xfe\n[1]\n')
    (hurt / "rl/config.json").write_text("{")
    run = read_run(hurt)
    assert "rl/metrics.jsonl: 3 lines could not be read and are left out." in run.notes and any(
        "config.json could not" in note for note in run.notes
    )
    assert any(note.startswith("base/answers.jsonl could not be read") for note in run.notes)
    assert len(run.trainings["rl"].metrics) == 45 and len(run.trainings["rl"].groups) == 2
    assert run.evaluations["base"].figures["n"] == 120  # summary.json still has them


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(RowError, match="holds neither"):
        write_report(tmp_path)


def test_figures_without_records_are_enough(tmp_path):
    """A summary.json with only the keys that every run has."""
    share = {"accuracy": 0.5, "n": 10, "ci95": [0.24, 0.76]}
    parts = {"by_category": {"plot": share}, "by_frames": {"8": share, "32": share}, "by_letter": {"A": share}, "format_rate": 1.0}
    (tmp_path / "summary.json").write_text(json.dumps({"stages": {"rl": {**share, **parts}}, "blind": share, "seconds": {"rl": 3}}))
    words = Checker(write_report(tmp_path).read_text(encoding="utf-8")).words
    assert "SFT + RL: accuracy 50.0 %" in words and "24.0 to 76.0" in words and "Without the video" in words
