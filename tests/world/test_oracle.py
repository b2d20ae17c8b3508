"""The oracle tells the truth, says what it cannot know, and lies at the rates it was given."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from longtake.config.world_serve import LieRates
from longtake.errors import VideoMissingError
from longtake.testing.oracle_calls import (
    asked_of,
    caption_requests,
    captions_of,
    clips_of,
    question_request,
    support_request,
    text_of,
    watch_request,
)
from longtake.world.oracle import Oracle
from longtake.world.oracle_captions import read_caption
from longtake.world.oracle_request import OracleRequest, OracleRequestError
from longtake.world.questions import CATEGORIES
from longtake.world.render import COLOUR_RGB, render_frame
from longtake.world.truth import is_true

CAVE_HALL = "[0.0 s - 9.7 s] In the cave the red square takes the key.\n[9.7 s - 19.0 s] The hall is empty."
OPTIONS = "A. street\nB. hall\nC. snow\nD. beach"


@pytest.fixture(scope="module")
def lines(honest: Oracle) -> list[list[str]]:
    """Captions of all videos."""
    return [captions_of(honest, video) for video in range(20)]


def with_rates(oracle: Oracle, seed: int = 0, **rates: float) -> Oracle:
    """The same videos, known by somebody less honest."""
    other = Oracle.__new__(Oracle)
    other.__dict__.update(oracle.__dict__, rates=LieRates(**rates), seed=seed, counts=Counter())
    return other


def key_text(question: dict) -> str:
    return question["options"]["ABCD".index(question["answer"])] if "options" in question else question["answer"]


@pytest.mark.parametrize("kind", ["question", "open"])
def test_drafts_are_true_supported_and_confirmed_by_watching(honest: Oracle, lines: list[list[str]], kind: str):
    counts: Counter[str] = Counter()
    yes = "yes" if kind == "open" else None
    for video in range(0, 20, 3):
        for category in CATEGORIES:
            drafted = honest.answer(question_request(honest, video, lines[video], f"{kind}_{category}", count=4))["questions"]
            assert len({one["question"] for one in drafted}) == len(drafted)
            for one in drafted:
                counts["drafted"] += 1
                counts["true"] += is_true(honest.frames.videos[video].story, one["question"], key_text(one))
                supported = honest.answer(support_request(lines[video], one))
                watched = honest.answer(watch_request(honest, video, one))
                counts["supported"] += supported.get("verdict", supported.get("answer")) == (yes or one["answer"])
                counts["watched"] += watched.get("verdict", watched.get("answer")) == (yes or one["answer"])
                if kind == "question":
                    assert len(set(one["options"])) == 4
    assert counts["true"] == counts["supported"] == counts["drafted"] > 70
    assert counts["watched"] >= 0.97 * counts["drafted"]  # that a thing is kept needs its taking among 8 frames up to the end


def test_cited_ranges_are_clips_and_nothing_more_than_needed(honest: Oracle, lines: list[list[str]]):
    """Without one of the cited captions the answer cannot be told, or is another one (a stay may be seen in two clips)."""
    borders = {float(part) for line in lines[0] for part in line[1 : line.index("]")].replace(" s", "").split(" - ")}
    plot = honest.answer(question_request(honest, 0, lines[0], "question_plot"))["questions"]
    assert {one["question"]: [tuple(span.values()) for span in one["ranges"]] for one in plot} == {
        "Where does the story begin?": [(0.0, sorted(borders)[1])],
        "Where does the story end?": [(sorted(borders)[-2], sorted(borders)[-1])],
    }
    for category in CATEGORIES:
        for one in honest.answer(question_request(honest, 0, lines[0], f"question_{category}"))["questions"]:
            assert {time for span in one["ranges"] for time in span.values()} <= borders
    temporal = honest.answer(question_request(honest, 0, lines[0], "question_temporal"))["questions"]
    for one in temporal:
        first = replace(support_request(lines[0], {**one, "ranges": [{"start": 0.0, "stop": one["ranges"][0]["start"]}]}))
        assert honest.answer(first)["answer"] != one["answer"]


def test_the_reasoner_believes_its_captions(honest: Oracle):
    told = "[0.0 s - 9.0 s] In the cave the red square takes the key.\n[9.0 s - 19.0 s] In the snow the red square hides the key."
    request = OracleRequest("question_goal", text_of(video="duration 19.0 s", captions=told, count=5))
    (one,) = honest.answer(request)["questions"]
    assert (one["question"], key_text(one)) == ("Why did the red square want the key?", "to hide it")
    assert one["ranges"] == [{"start": 0.0, "stop": 19.0}]
    assert honest.answer(OracleRequest("question_goal", text_of(captions="[0.0 s - 9.0 s] A man walks.", count=5))) == {"questions": []}


def test_the_reasoning_is_retold_by_a_viewer(honest: Oracle):
    told = "[0.0 s - 9.0 s] In the cave the red square takes the key.\n[9.0 s - 19.0 s] The snow is empty."
    (one,) = honest.answer(OracleRequest("open_goal", text_of(video="duration 19.0 s", captions=told, count=1)))["questions"]
    assert one["reasoning"] == (
        "The captions at 0.0 s - 9.0 s say: In the cave the red square takes the key. The captions at 9.0 s - 19.0 s say: The snow is "
        "empty. No later caption speaks of the key. So the red square wanted the key to keep it."
    )
    assert honest.answer(OracleRequest("rewrite", text_of(reasoning=one["reasoning"]))) == {
        "reasoning": "What I see from 0.0 s to 9.0 s: In the cave the red square takes the key. What I see from 9.0 s to 19.0 s: The snow "
        "is empty. From then on I do not see anybody do anything with the key. So the red square wanted the key to keep it."
    }


@pytest.mark.parametrize(
    ("captions", "question", "answer"),
    [
        (CAVE_HALL, "Which place came right after the cave?", "B"),
        (CAVE_HALL, "Which place came right after the hall?", "cannot tell"),
        (CAVE_HALL.replace("9.7 s - 19", "15.0 s - 19"), "Which place came right after the cave?", "cannot tell"),
        (CAVE_HALL, "Where did the red square take the key?", "cannot tell"),  # the cave is no option
        (CAVE_HALL, "Who is it?", "cannot tell"),
        (CAVE_HALL, "Welcher Ort kam unmittelbar nach der Höhle?", "B"),
        ("", "Which place came right after the cave?", "cannot tell"),
    ],
)
def test_support_by_hand(honest: Oracle, captions: str, question: str, answer: str):
    request = OracleRequest("support", text_of(captions=captions, question=question, options=OPTIONS))
    assert honest.answer(request) == {"answer": answer}


def test_open_ended_votes_by_hand(honest: Oracle):
    def verdict(answer: str, question: str = "Which place came right after the cave?") -> str:
        return honest.answer(OracleRequest("support", text_of(captions=CAVE_HALL, question=question, answer=answer)))["verdict"]

    assert [verdict("the hall"), verdict("in the hall"), verdict("the snow"), verdict("hall", "Where is it?")] == ["yes", "yes", "no", "no"]


def test_watching_tells_what_is_visible_and_no_more(honest: Oracle):
    video, story = honest.frames.videos[4], honest.frames.videos[4].story
    scene, later = story.scenes[1], story.scenes[2]
    question = {"question": f"Which place came right after the {scene.place}?", "options": [later.place, "x", "y", "z"], "answer": "A"}
    both = [{"start": scene.start_s, "stop": later.stop_s}]
    assert honest.answer(watch_request(honest, 4, {**question, "ranges": both})) == {"answer": "A"}
    one = [{"start": scene.start_s, "stop": scene.stop_s - 0.6}]
    assert honest.answer(watch_request(honest, 4, {**question, "ranges": one})) == {"answer": "cannot tell"}
    far = [one[0], {"start": story.scenes[3].start_s + 0.6, "stop": video.duration_s}]
    assert honest.answer(watch_request(honest, 4, {**question, "ranges": far})) == {"answer": "cannot tell"}
    assert honest.answer(OracleRequest("watch", text_of(times="", **asked_of(question)))) == {"answer": "cannot tell"}


def test_without_the_video_one_can_only_guess(honest: Oracle):
    text = text_of(question="Which place came right after the cave?", options=OPTIONS)
    letters = Counter(honest.answer(OracleRequest("blind", text, seed=seed))["answer"] for seed in range(800))
    assert set(letters) == set("ABCD") and all(160 <= number <= 240 for number in letters.values())  # 200 +- 3 sigma
    text = text_of(question="Where does the story begin?")
    places = Counter(honest.answer(OracleRequest("blind", text, seed=seed))["answer"] for seed in range(800))
    assert len(places) == 8 and max(places.values()) < 140  # 100 + 4 sigma
    text = text_of(question="Why did the red square want the key?")
    assert all(honest.answer(OracleRequest("blind", text, seed=seed))["answer"].startswith("to ") for seed in range(20))


def test_a_guess_is_no_lie(honest: Oracle):
    lying = with_rates(honest, answers=1.0)
    requests = [OracleRequest("blind", text_of(question="Where does the story begin?", options=OPTIONS), seed=seed) for seed in range(30)]
    assert [lying.answer(request) for request in requests] == [honest.answer(request) for request in requests]


def test_open_ended_questions_come_from_the_other_end(honest: Oracle, lines: list[list[str]]):
    """Two of each kind of at least four places: none in both forms."""
    for video in range(5):
        asked = [honest.answer(question_request(honest, video, lines[video], f"{kind}_temporal", count=2)) for kind in ("question", "open")]
        choice, is_open = ({one["question"] for one in answer["questions"]} for answer in asked)
        assert len(choice) == len(is_open) == 2 and not choice & is_open


def test_the_judge_by_hand(honest: Oracle):
    def verdict(reference: str, response: str) -> str:
        return honest.answer(OracleRequest("judge", text_of(question="Where?", reference=reference, response=response)))["verdict"]

    assert [
        verdict("cave", "The cave."),
        verdict("to use it", "it is used"),
        verdict("cave", "hall"),
        verdict("cave", "cave and hall"),
    ] == [*("yes", "yes", "no", "no")]


def test_boxes_hold_what_is_drawn(honest: Oracle):
    """All pixels of a figure's colour are inside its box, and fill it."""
    for video in (0, 1, 2):
        known = honest.frames.videos[video]
        for request in caption_requests(honest, video, clips_of(honest, video)):
            (*_, frame) = honest.answer(OracleRequest("ground", request.text, request.images))["frames"]
            assert frame["time"] == request.times_s[-1]
            sighting = honest.frames.find(request.images, request.times_s)
            drawn = render_frame(known.story, sighting.times_s[-1], 200, 200).astype(int)
            for item in frame["objects"]:
                colour = COLOUR_RGB.get(item["label"].split(" ")[0])
                if colour is None:
                    continue
                ys, xs = np.nonzero(np.abs(drawn - colour).sum(2) < 12)
                left, top, right, bottom = item["box"]
                assert left <= xs.min() * 5 + 25 and right >= xs.max() * 5 - 25 and top <= ys.min() * 5 + 25 and bottom >= ys.max() * 5 - 25
                assert right - left < (xs.max() - xs.min() + 1) * 5 + 120 and bottom - top < (ys.max() - ys.min() + 1) * 5 + 120


def test_votes_and_verdicts_lie_at_their_rate_and_each_sample_for_itself(honest: Oracle):
    lying = with_rates(honest, answers=0.1)
    votes = [lying.answer(OracleRequest("support", support_text(), seed=seed))["answer"] for seed in range(2000)]
    wrong = Counter(vote for vote in votes if vote != "B")
    assert set(wrong) == set("ACD") and 150 <= sum(wrong.values()) <= 250  # 200 +- 3.7 sigma
    assert lying.counts == {"support": 2000, "lie/support": sum(wrong.values())}
    assert votes == [lying.answer(OracleRequest("support", support_text(), seed=seed))["answer"] for seed in range(2000)]
    other = with_rates(honest, seed=1, answers=0.1)
    assert votes != [other.answer(OracleRequest("support", support_text(), seed=seed))["answer"] for seed in range(2000)]
    judged = text_of(question="Where?", reference="cave", response="cave")
    verdicts = Counter(lying.answer(OracleRequest("judge", judged, seed=seed))["verdict"] for seed in range(2000))
    assert 150 <= verdicts["no"] <= 250


def support_text() -> str:
    return text_of(captions=CAVE_HALL, question="Which place came right after the cave?", options=OPTIONS)


def test_captions_lie_at_their_rate(honest: Oracle):
    lying = with_rates(honest, captions=0.25)
    request = caption_requests(honest, 0, clips_of(honest, 0))[0]
    truth = honest.answer(request)["caption"]
    told = [lying.answer(replace(request, seed=seed))["caption"] for seed in range(400)]
    lies = [text for text in told if text != truth]
    assert 65 <= len(lies) <= 135  # 100 +- 4 sigma
    assert all(len(read_caption(text)) == len(read_caption(truth)) for text in lies)
    assert len(set(lies)) > 10


def test_keys_lie_at_their_rate_and_the_reasoning_with_them(honest: Oracle, lines: list[list[str]]):
    lying = with_rates(honest, answers=0.1)
    right = wrong = 0
    for seed in range(40):
        for video in (1, 2, 3, 4):
            story = honest.frames.videos[video].story
            for one in lying.answer(question_request(lying, video, lines[video], "question_temporal", seed=seed))["questions"]:
                assert f"is the {key_text(one)}." in one["reasoning"].rpartition(" So ")[2]
                true = is_true(story, one["question"], key_text(one))
                right, wrong = right + true, wrong + (not true)
    assert 0.06 <= wrong / (right + wrong) <= 0.14  # of about 700: 0.1 +- 3.5 sigma


def test_what_cannot_be_answered_is_told(honest: Oracle):
    with pytest.raises(OracleRequestError, match=r"purpose 'poem'.*caption, ground"):
        honest.answer(OracleRequest("poem", "Write one."))
    with pytest.raises(OracleRequestError, match="without a block <captions>"):
        honest.answer(OracleRequest("question_goal", "Ask something."))
    with pytest.raises(OracleRequestError, match="question_rhymes"):
        honest.answer(OracleRequest("question_rhymes", ""))


def test_a_video_may_not_be_missing(world_folder: Path, tmp_path: Path):
    (tmp_path / "world.json").write_text((world_folder / "world.json").read_text())
    (tmp_path / "events.jsonl").write_text((world_folder / "events.jsonl").read_text())
    with pytest.raises(VideoMissingError, match=r"000000\.mp4"):
        Oracle([tmp_path])
