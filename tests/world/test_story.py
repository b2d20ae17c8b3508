"""Stories are consistent, deterministic and give nothing away."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from longtake.errors import ConfigError
from longtake.world.descriptions import LAST, STRAY_WORDS, focused, focused_description, reading, walked, with_stray_words
from longtake.world.questions import CATEGORIES, LETTERS, describe, happening, make_rows, trace, what_happens
from longtake.world.render import render_frame
from longtake.world.story import PURPOSES, Event, Story, holders_at_end, make_story, purpose_of

STORIES = [make_story(seed, seconds=(40.0, 60.0), num_scenes=(5, 6)) for seed in range(400)]


def rows_of(story: Story, open_ended: float = 0.0, brief: float = 0.0):
    return make_rows(story, first_id=0, video="v.mp4", subtitles=None, count=4, open_ended=open_ended, brief=brief)


def options_of(problem: str) -> dict[str, str]:
    return dict(line.split(". ", 1) for line in problem.split("\n")[1:])


def test_the_same_seed_gives_the_same_story_and_another_seed_another():
    again = make_story(7, seconds=(40.0, 60.0), num_scenes=(5, 6))
    assert again == STORIES[7]
    assert STORIES[7] != STORIES[8]


def test_things_are_only_handed_over_by_who_holds_them():
    for story in STORIES:
        holder: dict[str, str] = {}
        for event in story.events:
            if event.kind == "takes":
                assert event.thing not in holder
                holder[event.thing] = event.actor
            elif event.kind in ("gives", "hides", "uses"):
                assert holder[event.thing] == event.actor
                holder[event.thing] = event.other if event.kind == "gives" else event.kind
        assert holders_at_end(story.events) == {thing: who for thing, who in holder.items() if who not in ("hides", "uses")}


def test_purpose_by_hand():
    takes, meets = Event("takes", "a", thing="key"), Event("meets", "a", other="b")
    assert purpose_of((takes, meets), 0) == "keep"
    assert purpose_of((takes, meets, Event("gives", "a", other="b", thing="key"), Event("uses", "b", thing="key")), 0) == "give"
    assert purpose_of((takes, Event("hides", "a", thing="key")), 0) == "hide"
    assert purpose_of((takes, Event("uses", "a", thing="key")), 0) == "use"
    assert purpose_of((takes, Event("uses", "c", thing="cup")), 0) == "keep"


def test_scenes_cover_the_video_and_events_lie_inside_them():
    for story in STORIES:
        assert story.scenes[0].start_s == 0.0
        assert story.scenes[-1].stop_s == pytest.approx(story.duration_s)
        for scene, following in zip(story.scenes, story.scenes[1:], strict=False):
            assert scene.stop_s == following.start_s
        assert all(scene.start_s <= scene.event_start_s < scene.event_stop_s <= scene.stop_s + 1e-9 for scene in story.scenes)
        assert len({scene.place for scene in story.scenes}) == len(story.scenes)


def solve(story: Story, question: str) -> str:
    """Answer a question from the caption alone, by other means than the generator's."""
    sentences = [sentence.strip().split() for sentence in describe(story).split(".") if sentence.strip()]
    places = [words[0] for words in sentences]
    words = question.rstrip("?").split()
    if question.startswith("Which place"):
        return places[places.index(words[-1]) + 1]
    if question.startswith("Where does"):
        return places[{"begin": 0, "end": -1}[words[-1]]]
    if question.startswith("Where did"):
        colour, shape, verb, *rest = [word for word in words[2:] if word != "the"]
        return next(place for place, *happening, again in sentences if place == again and happening == [colour, shape, f"{verb}s", *rest])
    thing = words[-1]
    took = next(index for index, sentence in enumerate(sentences) if sentence[3:5] == ["takes", thing])
    assert sentences[took][1:3] == words[3:5]
    later = [sentence for sentence in sentences[took + 1 :] if thing in sentence]
    if not later:
        return "to keep it"
    return {"uses": "to use it", "hides": "to hide it", "gives": "to give it to " + " ".join(later[0][6:8])}[later[0][3]]


def test_every_answer_follows_from_the_log():
    for story in STORIES:
        for row in rows_of(story):
            question = row.problem.split("\n")[0]
            letter = row.answer.removeprefix("<answer>").removesuffix("</answer>")
            assert options_of(row.problem)[letter] == solve(story, question)
            assert row.reasoning.startswith(describe(story))
            assert row.reasoning.endswith(f"{letter} {options_of(row.problem)[letter]} yes")
        for row in rows_of(story, open_ended=1.0):
            assert row.answer == f"<answer>{solve(story, row.problem)}</answer>"


def test_brief_reasoning_begins_with_the_fact_and_changes_nothing_else():
    """A share of the rows leaves the log out; questions, options and answers are those of the full rows."""
    stories = [make_story(seed, seconds=(56.0, 72.0), num_scenes=(5, 5)) for seed in range(100)]
    full = [row for story in stories for row in rows_of(story)]
    mixed = [row for story in stories for row in rows_of(story, brief=0.6)]
    logs = [describe(story) for story in stories for _ in range(4)]
    assert [replace(row, reasoning="") for row in mixed] == [replace(row, reasoning="") for row in full]
    brief = [row.reasoning == whole.reasoning.removeprefix(f"{log} ") for row, whole, log in zip(mixed, full, logs, strict=True)]
    assert all(row.reasoning == whole.reasoning or short for row, whole, short in zip(mixed, full, brief, strict=True))
    assert 0.52 < np.mean(brief) < 0.68  # 400 rows: more than three standard errors
    assert not any(row.reasoning.startswith(describe(story)) for story in stories for row in rows_of(story, brief=1.0))


def test_options_are_distinct_and_come_from_the_same_video():
    for story in STORIES:
        vocabulary = set(story.cast) | {scene.place for scene in story.scenes} | {"to use it", "to hide it", "to keep it"}
        vocabulary |= {f"to give it to {name}" for name in story.cast}
        for row in rows_of(story):
            options = options_of(row.problem)
            assert list(options) == list(LETTERS)
            assert len(set(options.values())) == 4
            assert set(options.values()) <= vocabulary


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_letters_categories_and_purposes_are_balanced():
    rows = [row for story in STORIES for row in rows_of(story)]
    letters = Counter(row.answer[len("<answer>")] for row in rows)
    assert chi_square([letters[letter] for letter in LETTERS]) < 16.3, letters  # 99.9 % of chi-square with 3 degrees of freedom
    assert Counter(row.problem_type for row in rows) == dict.fromkeys(CATEGORIES, len(STORIES))
    purposes = Counter(story.purpose for story in STORIES)
    assert chi_square([purposes[purpose] for purpose in PURPOSES]) < 16.3, purposes


def option_text(question: str, option: str) -> str:
    return " ".join(option.split()[:4])


def question_and_option(question: str, option: str) -> str:
    return f"{question} {option}"


@pytest.mark.parametrize("feature", [option_text, question_and_option])
def test_a_question_without_its_video_gives_nothing_away(feature):
    """The best guess from question and options alone, learned on half of the rows, stays at chance on the other half."""
    rows = [row for story in STORIES for row in rows_of(story)]
    wins: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    correct = 0
    for index, row in enumerate(rows):
        options, letter = options_of(row.problem), row.answer[len("<answer>")]
        question = row.problem.split("\n")[0]
        keys = {name: feature(question, text) for name, text in options.items()}
        if index < len(rows) // 2:
            shown.update(keys.values())
            wins[keys[letter]] += 1
        else:
            guess = max(options, key=lambda name: wins[keys[name]] / max(1, shown[keys[name]]))
            correct += guess == letter
    half = len(rows) - len(rows) // 2
    assert abs(correct / half - 0.25) < 3.3 * (0.25 * 0.75 / half) ** 0.5


def test_too_few_scenes_are_refused():
    with pytest.raises(ConfigError, match="num_scenes is"):
        make_story(0, seconds=(10.0, 20.0), num_scenes=(4, 6))


def test_frames_are_deterministic_and_show_the_event():
    story = STORIES[0]
    scene = story.scenes[0]
    during = render_frame(story, (scene.event_start_s + scene.event_stop_s) / 2, 64, 96)
    assert during.shape == (64, 96, 3)
    assert np.array_equal(during, render_frame(story, (scene.event_start_s + scene.event_stop_s) / 2, 64, 96))
    quiet = render_frame(story, scene.event_stop_s, 64, 96)
    changed = (np.abs(during.astype(int) - quiet.astype(int)).max(-1) > 40).mean()
    assert changed > 0.03  # the smallest case, a triangle and a thing, covers 6.5 % of this frame; an empty one 0


def test_most_of_the_evidence_needs_many_frames():
    """With a quarter of 32 frames some events fall between two frames; with all 32 almost none does."""

    def seen(num_frames: int) -> float:
        hits = total = 0
        for story in STORIES:
            times = (np.arange(num_frames) + 0.5) * story.duration_s / num_frames
            for scene in story.scenes:
                hits += bool(((times >= scene.event_start_s) & (times < scene.event_stop_s)).any())
                total += 1
        return hits / total

    assert seen(32) > 0.99
    assert seen(8) < 0.95


def test_base_descriptions_are_no_questions_with_options():
    """No question mark, no tag of an answer, and no list from which anything but a given name is to be chosen."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        instruction, said = focused_description(STORIES[0], rng)
        assert not LIST.search(instruction + said)
        text, answer = reading(STORIES, rng)
        assert not LIST.search(text) or ": " in text.split("\n")[0]  # what is to be found in a list is given
        assert not re.search(r"[?<>]", instruction + said + text + answer)


LIST = re.compile(r"\n[A-Z]\. ")


def test_focused_descriptions_by_hand():
    story = STORIES[0]
    first, second, last = story.scenes[0], story.scenes[1], story.scenes[-1]
    rng = np.random.default_rng(0)
    found = dict(focused(story, rng) for _ in range(300))
    assert found[happening(first.event)] == f"{what_happens(first.event)} {first.place}"
    assert found[f"after {first.place}"] == f"after: {first.place} {first.place} yes {second.place}"
    assert (found["begin"], found["end"]) == (f"begin {first.place}", f"end {last.place}")
    taken = story.events[story.asked_take]
    assert found[f"{taken.actor} {taken.thing}"] == trace(story, story.asked_take)
    num_takes = sum(event.kind == "takes" for event in story.events)
    assert len(found) == len(story.scenes) + len(story.scenes) - 1 + 2 + num_takes


def test_stray_words_leave_the_focus_in_order():
    rng = np.random.default_rng(0)
    lengths = set()
    for _ in range(100):
        words = with_stray_words("red square key", rng).split()
        assert [word for word in words if word not in STRAY_WORDS] == ["red", "square", "key"]
        lengths.add(len(words))
    assert lengths == {3, 4, 5, 6, 7}


def test_lists_are_walked_to_each_name():
    rng = np.random.default_rng(0)
    counts = set()
    for story in STORIES[:100]:
        text, said = walked(story, rng, LAST.lists)
        head, *lines = text.split("\n")
        before, *names = head.split(": ")
        listed = dict(line.split(". ", 1) for line in lines)
        assert len(set(listed.values())) == len(lines) > 1
        wanted = before.removesuffix(":")
        for name in names:
            steps = list(listed.items())[: list(listed.values()).index(name) + 1]
            answers = " ".join(f"{label} {option} {'yes' if option == name else 'no'}" for label, option in steps)
            wanted += f": {name} {answers} {steps[-1][0]}"
        assert said == wanted
        counts.add(len(names))
    assert counts == {1, 2}


def test_happenings_by_hand():
    gives = Event("gives", "red square", other="blue circle", thing="key")
    assert happening(gives, article="the ") == "red square give the key to the blue circle"
    assert happening(gives) == "red square give key to blue circle"
    assert happening(Event("meets", "red square", other="blue circle"), article="the ") == "red square meet the blue circle"


def test_traces_by_hand():
    red, blue = "red square", "blue circle"
    take = Event("takes", red, thing="key")
    meeting = Event("meets", red, other=blue)
    ends = {
        Event("gives", red, other=blue, thing="key"): "red square takes key gives key to blue circle",
        Event("uses", red, thing="key"): "red square takes key uses key",
        Event("hides", red, thing="key"): "red square takes key hides key",
        Event("hides", red, thing="cup"): "red square takes key keeps key",
    }
    for after, said in ends.items():
        story = replace(STORIES[0], scenes=tuple(replace(STORIES[0].scenes[0], event=event) for event in (meeting, take, meeting, after)))
        assert trace(story, 1) == said
