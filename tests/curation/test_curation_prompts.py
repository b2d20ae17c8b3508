"""Prompts: each placeholder has its value, a folder's files stand in for the shipped ones, and data cannot close its block."""

from __future__ import annotations

from pathlib import Path
from string import Template

import pytest

from longtake.curation.prompts import (
    Prompts,
    block,
    caption_lines,
    object_lines,
    option_lines,
    range_lines,
    time_list,
    video_line,
)
from longtake.curation.records import Box, Caption, TimeRange
from longtake.errors import CurationError

GROUND = "At $times up to $max_objects things; a price of $$5."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ground.txt").write_text(GROUND)
    return tmp_path


def test_render_fills_every_placeholder():
    text = Prompts().render("ground", times="<times>\n1.00 s\n</times>", max_objects=3)
    assert "<times>\n1.00 s\n</times>" in text and "at most 3 objects" in text and "$" not in text


def test_render_tells_what_lacks_and_what_is_too_much():
    with pytest.raises(CurationError, match=r"no value for \$times, no place for \$frames, no place for \$time"):
        Prompts().render("ground", time="1", frames="2", max_objects=3)


def test_a_purpose_without_a_prompt():
    with pytest.raises(CurationError, match=r"dream\.txt: there is none"):
        Prompts().render("dream")


def test_a_folder_stands_in_for_what_it_holds(folder: Path):
    shipped, own = Prompts(), Prompts(folder)
    assert own.render("ground", times="1.00 s", max_objects=2) == "At 1.00 s up to 2 things; a price of $5."
    assert own.text("caption") == shipped.text("caption")
    assert own.digest != shipped.digest and Prompts().digest == shipped.digest


def test_all_problems_of_a_folder_are_told_at_once(folder: Path):
    (folder / "ground.txt").write_text("At $time up to $max_objects")
    (folder / "captions.txt").write_text("Say it.")
    (folder / "caption.txt").write_text("$times $ranges $max_chars for 5 $ each")
    (folder / "judge.txt").write_text("used elsewhere")
    (folder / "notes.md").write_text("not a prompt")
    with pytest.raises(CurationError) as error:
        Prompts(folder)
    told = str(error.value)
    assert "ground.txt lacks $times; ground.txt has $time, which nothing fills" in told
    assert "captions.txt is none of" in told and "judge.txt is none of" in told
    assert "caption.txt has a $ that begins no placeholder" in told and "notes" not in told


def test_a_folder_that_is_none_and_a_file_that_is_no_text(tmp_path: Path):
    with pytest.raises(CurationError, match="is not a folder"):
        Prompts(tmp_path / "absent")
    (tmp_path / "caption.txt").write_bytes(b"\xff\xfe$times")
    with pytest.raises(CurationError, match="cannot be read"):
        Prompts(tmp_path)


def test_shipped_prompts_are_sound():
    prompts = Prompts()
    assert {"caption", "ground"} <= set(prompts.purposes) and "judge" not in prompts.purposes
    for purpose in prompts.purposes:
        assert Template(prompts.text(purpose)).is_valid(), purpose


def test_what_replaces_a_prompt_is_not_replaced_itself(folder: Path):
    """A caption may hold a dollar sign."""
    assert Prompts(folder).render("ground", times="$max_objects", max_objects=1).startswith("At $max_objects up to 1")


@pytest.mark.parametrize("hostile", ["</captions>", "< /Captions >", "<captions>", "<\n/options\n>", "<answer>"])
def test_data_cannot_close_its_block(hostile: str):
    lines = block("captions", f"before {hostile} after").split("\n")
    assert lines[0] == "<captions>" and lines[-1] == "</captions>"
    assert "<" not in "".join(lines[1:-1])


def test_other_text_stays_as_it_is():
    assert block("question", "Is 3 < 4, <b>bold</b>, <answers>?") == "<question>\nIs 3 < 4, <b>bold</b>, <answers>?\n</question>"
    with pytest.raises(ValueError, match="tag 'secret'"):
        block("secret", "x")


def test_lines_of_data():
    caption = Caption("a.mp4", "d", 12.0, 22.04, (13.0,), "A man\n  waves.")
    assert caption_lines([caption, caption]) == "[12.0 s - 22.0 s] A man waves.\n[12.0 s - 22.0 s] A man waves."
    assert range_lines([TimeRange(0.0, 9.96), TimeRange(20.0, 30.0)]) == "0.0 s - 10.0 s\n20.0 s - 30.0 s"
    assert option_lines(["red", "a\nblue"]) == "A. red\nB. a blue"
    assert time_list([3.25, 5.754]) == "3.25 s, 5.75 s"
    assert video_line(61.27) == "duration 61.3 s"
    box = Box("a.mp4", "d", 12.5, "red cup", (1, 2, 300, 1000))
    assert object_lines([box]) == "[12.50 s] red cup: left 1, top 2, right 300, bottom 1000"
