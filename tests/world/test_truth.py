"""What is true of a story: all that the world asks and answers itself, nothing else."""

from dataclasses import replace

import pytest

from longtake.world.questions import make_rows
from longtake.world.story import Event, Scene, Story, make_story
from longtake.world.truth import Moment, Query, Seen, answer_from, is_true, meaning, parse_question, same_meaning, seen_of, true_answer

STORIES = [make_story(seed, seconds=(40.0, 60.0), num_scenes=(5, 6)) for seed in range(150)]
EVENTS = (
    Event("takes", "red square", thing="key"),
    Event("gives", "red square", other="blue circle", thing="key"),
    Event("takes", "blue circle", thing="cup"),
    Event("meets", "white circle", other="red square"),
    Event("takes", "white circle", thing="lamp"),
    Event("hides", "blue circle", thing="key"),
    Event("uses", "white circle", thing="lamp"),
)
PLACES = ("cave", "hall", "snow", "street", "beach", "garden", "kitchen")
SCENES = tuple(
    Scene(10.0 * n, 10.0 * (n + 1), 10.0 * n + 2, 10.0 * n + 8, place, event, False, None)
    for n, (place, event) in enumerate(zip(PLACES, EVENTS, strict=True))
)
STORY = Story(0, 70.0, ("red square", "blue circle", "white circle", "green triangle"), SCENES, 0, "give")


def asked(problem: str) -> tuple[str, dict[str, str]]:
    question, *options = problem.split("\n")
    return question, dict(option.split(". ", 1) for option in options)


def test_every_row_of_the_world_is_true_and_no_other_option_is():
    num = {"true": 0, "false": 0}
    for story in STORIES:
        for row in make_rows(story, first_id=0, video="v.mp4", subtitles=None, count=8, open_ended=0.0):
            question, options = asked(row.problem)
            key = row.answer.removeprefix("<answer>").removesuffix("</answer>")
            for letter, text in options.items():
                assert is_true(story, question, text) == (letter == key), (question, text)
                num["true" if letter == key else "false"] += 1
    assert num == {"true": 1200, "false": 3600}


def test_open_ended_rows_are_true_as_well():
    for story in STORIES[:50]:
        for row in make_rows(story, first_id=0, video="v.mp4", subtitles=None, count=4, open_ended=1.0):
            assert is_true(story, row.problem, row.answer.removeprefix("<answer>").removesuffix("</answer>"))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Which place came right after the hall?", "snow"),
        ("Which place then came directly after the hall?", "snow"),
        ("Which place came right after the kitchen?", None),  # the last one
        ("Which place came right after the forest?", None),  # never seen
        ("Why did the red square want the key?", "to give it to blue circle"),
        ("Why did the blue circle want the cup?", "to keep it"),
        ("Why did the white circle want the lamp?", "to use it"),
        ("Why did the blue circle want the key?", None),  # it was given to it
        ("Where does the story begin?", "cave"),
        ("In which place does the story end?", "kitchen"),
        ("Where did the red square take the key?", "cave"),
        ("Where exactly did the blue circle hide the key?", "garden"),
        ("Where did the red square give the key to the blue circle?", "hall"),
        ("Where did the white circle meet the red square?", "street"),
        ("Where did the red square meet the white circle?", "street"),  # meeting is mutual
        ("Where did the blue circle give the key to the red square?", None),  # giving is not
        ("Where did the red square take the cup?", None),
        ("In the snow it was. Where did the blue circle take the cup?", "snow"),
        ("Where did the red square take the key, and why?", None),
        ("What is the colour of the key?", None),
    ],
)
def test_answers_by_hand(question: str, answer: str | None):
    assert true_answer(STORY, question) == answer


def test_what_was_not_seen_cannot_be_told():
    whole = seen_of(STORY)
    moments = whole.moments
    keep, after = parse_question("Why did the blue circle want the cup?"), parse_question("Which place came right after the snow?")
    assert keep is not None and after is not None
    assert answer_from(whole, keep) == "to keep it"
    assert answer_from(replace(whole, moments=moments[:-1]), keep) is None  # the end is missing
    assert answer_from(replace(whole, moments=(*moments[:4], *moments[5:])), keep) is None  # a scene is missing
    assert answer_from(replace(whole, moments=moments[3:]), keep) is None  # the taking is missing
    assert answer_from(whole, after) == "street"
    assert answer_from(replace(whole, moments=(moments[2], moments[4])), after) is None  # something lies between
    assert answer_from(replace(whole, moments=moments[1:]), Query("begin")) is None
    assert answer_from(replace(whole, moments=moments[:-1]), Query("end")) is None
    assert answer_from(replace(whole, moments=moments[:-1], duration_s=None), Query("end")) == "garden"
    assert answer_from(Seen(()), Query("begin")) is None and answer_from(Seen(()), Query("end")) is None


def test_notes_that_contradict_each_other_tell_nothing():
    key = Event("takes", "red square", thing="key")
    seen = Seen((Moment(0, 5, "cave", key), Moment(5, 9, "hall", key), Moment(9, 12, "cave", None), Moment(12, 15, "snow", None)))
    assert answer_from(seen, Query("where", event=key)) is None
    assert answer_from(seen, Query("after", place="cave")) is None
    assert answer_from(seen, Query("after", place="hall")) == "cave"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("To use it.", "to use it"),
        ("in order to use it", "to use it"),
        ("it is used", "to use it"),
        ("because he wanted to use the key", "to use it"),
        ("It was hidden", "to hide it"),
        ("to give it to the blue circle", "to give it to blue circle"),
        ("it was given to the blue circle", "to give it to blue circle"),
        ("The Cave", "cave"),
        ("in the cave", "cave"),
        ("on the beach", "beach"),
    ],
)
def test_other_words_for_the_same(text: str, same: str):
    assert meaning(text) == same and same_meaning(text, same)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("to use it", "to hide it"),
        ("to give it to blue circle", "to give it to white circle"),
        ("cave", "hall"),
        ("cave or hall", "cave"),
        ("not in the cave", "cave"),
        ("it is not used", "to use it"),
        ("", ""),
        ("...", "..."),
    ],
)
def test_what_does_not_mean_the_same(one: str, other: str):
    assert not same_meaning(one, other)
