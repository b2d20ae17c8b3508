"""Captions say what is visible, are read back without loss, and lie in one thing when they lie."""

import numpy as np
import pytest

from longtake.testing.oracle_calls import caption_requests, clips_of
from longtake.world.oracle import Oracle
from longtake.world.oracle_captions import Sight, caption_of, lie, moments_of, read_caption, read_lines, sentence, sights_of
from longtake.world.oracle_drafts import merged
from longtake.world.story import CHARACTERS, PLACES, THINGS, Event, EventKind
from longtake.world.truth import Moment

TAKES = Event("takes", "red square", thing="key")
MEETS = Event("meets", "red square", other="blue circle")


def all_sights() -> list[Sight]:
    alone: tuple[EventKind, ...] = ("takes", "hides", "uses")
    events = [Event(kind, actor, thing=thing) for kind in alone for actor in CHARACTERS for thing in THINGS]
    events += [Event("gives", actor, other=other, thing="key") for actor in CHARACTERS for other in CHARACTERS if actor != other]
    events += [Event("meets", actor, other=other) for actor in CHARACTERS for other in CHARACTERS if actor != other]
    return [Sight(place, event) for place in PLACES for event in (None, *events)]


def test_sentences_by_hand():
    assert sentence(Sight("cave", TAKES)) == "In the cave the red square takes the key."
    assert sentence(Sight("beach", MEETS)) == "On the beach the red square meets the blue circle."
    assert sentence(Sight("hall", None)) == "The hall is empty."
    gives = Event("gives", "red square", other="blue circle", thing="key")
    assert caption_of([Sight("hall", None), Sight("snow", gives)]) == (
        "The hall is empty. In the snow the red square gives the key to the blue circle."
    )


def test_every_sentence_is_read_back():
    sights = all_sights()
    assert len(sights) == 8 * (1 + 90 + 30 + 30)
    assert read_caption(caption_of(sights)) == tuple(sights)


def test_what_is_not_ours_says_nothing():
    assert read_caption("A man takes the key in the cave. The garage is empty. In the cave the red square eats the key.") == ()


def test_lines_are_read_in_order_of_time():
    lines = read_lines("[10.0 s - 20.5 s] The hall is empty.\nnoise\n[0.0 s - 10.0 s] The cave is empty. The hall is empty.")
    assert [(line.start_s, line.stop_s) for line in lines] == [(0.0, 10.0), (10.0, 20.5)]
    assert [(moment.place, moment.start_s) for moment in moments_of(lines)] == [("cave", 0.0), ("hall", 0.0), ("hall", 10.0)]


def test_a_stay_is_told_once_with_what_happened():
    moments = [Moment(0, 0, "cave", None), Moment(1, 1, "cave", TAKES), Moment(2, 2, "cave", None), Moment(3, 3, "hall", None)]
    assert sights_of(moments) == [Sight("cave", TAKES), Sight("hall", None)]
    assert merged(moments) == [Moment(0, 2, "cave", TAKES), Moment(3, 3, "hall", None)]
    two = [Moment(0, 0, "cave", TAKES), Moment(1, 1, "cave", MEETS)]
    assert sights_of(two) == [Sight("cave", TAKES), Sight("cave", MEETS)] and merged(two) == two


def test_a_lie_is_wrong_in_one_thing(honest: Oracle):
    story = honest.frames.videos[0].story
    seen = [Sight(scene.place, scene.event) for scene in story.scenes] + [Sight("snow", None)]
    aspects = set()
    for seed in range(300):
        lied = lie(seen, story, np.random.default_rng(seed))
        changed = [(old, new) for old, new in zip(seen, lied, strict=True) if old != new]
        assert len(changed) == 1
        old, new = changed[0]
        if old.place != new.place:
            assert old.event == new.event
            aspects.add("place")
        else:
            assert old.event is not None and new.event is not None
            aspects |= {name for name in ("kind", "actor", "thing") if getattr(old.event, name) != getattr(new.event, name)}
            assert new.event.actor != new.event.other
        assert read_caption(caption_of(lied)) == tuple(lied)
    assert aspects == {"place", "kind", "actor", "thing"}


def test_captions_of_frames_are_the_log_at_these_times(honest: Oracle):
    for video in range(0, 20, 4):
        story = honest.frames.videos[video].story
        for request in caption_requests(honest, video, clips_of(honest, video)):
            visible: list[Sight] = []
            for time_s in request.times_s:
                scene = next(scene for scene in story.scenes if time_s < scene.stop_s)
                visible.append(Sight(scene.place, scene.event if scene.event_start_s <= time_s < scene.event_stop_s else None))
            told = read_caption(honest.answer(request)["caption"])
            assert [sight.place for sight in told] == list(dict.fromkeys(sight.place for sight in visible))
            for sight in told:
                events = {one.event for one in visible if one.place == sight.place} - {None}
                assert events == ({sight.event} if sight.event else set())


@pytest.mark.parametrize("purpose", ["caption", "ground"])
def test_equal_requests_get_equal_answers(honest: Oracle, purpose: str):
    request = caption_requests(honest, 2, clips_of(honest, 2))[0]
    again = type(request)(purpose, request.text, tuple(bytes(image) for image in request.images))
    asked = type(request)(purpose, request.text, request.images)
    assert honest.answer(asked) == honest.answer(again)
