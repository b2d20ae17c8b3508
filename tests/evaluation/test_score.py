"""One record per row, in its place, whatever happens. The engine is scripted, the rendering and the model are real."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from longtake.config.sections import PromptConfig, RolloutConfig
from longtake.errors import RowError, VideoDamagedError
from longtake.evaluation.score import evaluate_examples, evaluate_letters
from longtake.evaluation.summary import summarise
from longtake.testing.takes import random_prompt
from longtake.types import Example, Failure, Option, Take, VideoRef

OPTIONS = tuple(Option(letter, text) for letter, text in zip("ABCD", ("red circle", "blue square", "green star", "cave"), strict=True))
BROKEN = VideoRef(Path("broken.mp4"), "broken")


def example(problem_id, answer="A", video="v1", options=OPTIONS, kind="letter", question="Who has the key at the end?"):
    ref = BROKEN if video == "broken" else VideoRef(Path(f"{video}.mp4"), video) if video else None
    return Example(problem_id, question, options, answer, kind, "plot", "", () if ref is None else (ref,), None, None)


@dataclass
class Source:
    """Serves the same small video for every file but the broken one."""

    model: object
    asked: list = field(default_factory=list)

    def tokens(self, ref):
        self.asked.append(ref.digest)
        if ref == BROKEN:
            raise VideoDamagedError("broken.mp4 is cut off", rule="a whole file", remedy="fetch it again")
        return random_prompt(self.model, 4, [(2, 4, 4)], seed=len(ref.digest)).spans[0].tokens


@dataclass
class Engine:
    """Answers by problem id."""

    texts: dict
    batches: list = field(default_factory=list)
    params: object = None

    def generate(self, requests, params):
        self.batches.append([request.key for request in requests])
        self.params = params
        return [(self.take(self.texts[request.key]),) for request in requests]

    def take(self, text):
        return Take(torch.arange(len(text.split())), torch.zeros(len(text.split())), "stop", text, 0)


def said(answer):
    return f"<think>because</think><answer>{answer}</answer>"


def evaluate(model, items, texts, **changes):
    rollout = RolloutConfig(num_takes=8, temperature=0.0, max_new_tokens=9)
    settings = {"frames": 8, "prompt": PromptConfig(), "rollout": rollout} | changes
    engine, source = Engine(texts), Source(model)
    return evaluate_examples(model, engine, source, items, **settings), engine, source


def test_two_questions_on_one_video_get_their_own_answers(model):
    """FACTS fault 9: keyed by video, the second question gets the first one's answer."""
    items = [example(1, "A"), example(2, "B"), example(3, "C", video="v2")]
    records, engine, _ = evaluate(model, items, {1: said("A"), 2: said("C"), 3: said("C")})
    assert [(record.problem_id, record.predicted, record.correct, record.video) for record in records] == [
        (1, "A", True, "v1"),
        (2, "C", False, "v1"),
        (3, "C", True, "v2"),
    ]
    assert engine.params.num_takes == 1 and engine.params.temperature == 0.0 and engine.params.max_new_tokens == 9


def test_whatever_fails_keeps_its_place_as_a_wrong_answer(model):
    """FACTS faults 4 and 9: no black frames, no other row's answer, no smaller denominator."""
    items = [
        Failure(7, "rows", "RowError", "no answer", "plot"),
        example(1),
        example(2, video="broken"),
        example(3, question="long " * 400),
        example(4, "B"),
    ]
    prompt = PromptConfig(max_prompt_tokens=300)
    records, engine, _ = evaluate(model, items, {1: said("A"), 4: said("B")}, prompt=prompt)
    assert [(record.problem_id, record.failure, record.failure_stage, record.correct) for record in records] == [
        (7, "RowError", "rows", False),
        (1, None, None, True),
        (2, "VideoDamagedError", "video", False),
        (3, "PromptTooLongError", "prompt", False),
        (4, None, None, True),
    ]
    assert engine.batches == [[1, 4]]  # the engine never saw the failed ones
    assert "broken.mp4 is cut off" in records[2].failure_message and records[2].video == "broken"
    assert summarise(records)["accuracy"] == pytest.approx(2 / 5)


def test_chunks_change_nothing_but_the_batches(model):
    items = [example(number, video="broken" if number == 2 else "v1") for number in range(5)]
    texts = {number: said("ABCDA"[number]) for number in range(5)}
    whole, _, _ = evaluate(model, items, texts)
    done = []
    parts, engine, _ = evaluate(model, items, texts, rollout=RolloutConfig(max_rows=2), advance=done.append)
    assert parts == whole and engine.batches == [[0, 1], [3], [4]] and done == [2, 2, 1]


def test_a_repeated_problem_id_is_refused_before_anything_is_decoded(model):
    source = Source(model)
    with pytest.raises(RowError, match="problem id 1 occurs twice"):
        evaluate_examples(model, Engine({}), source, [example(1), example(1)], frames=8, prompt=PromptConfig(), rollout=RolloutConfig())
    assert source.asked == []


def test_a_row_that_failed_for_another_rows_id_keeps_its_place_without_the_id(model):
    items = [example(1), Failure(1, "rows", "RowError", "problem_id 1 is that of row 1 too", "plot"), Failure(5, "rows", "RowError", "x")]
    records, _, _ = evaluate(model, items, {1: said("A")})
    assert [record.problem_id for record in records] == [1, None, 5]
    assert summarise(records)["accuracy"] == pytest.approx(1 / 3)


def test_blind_asks_without_touching_a_video(model):
    records, _, source = evaluate(model, [example(1, video="broken")], {1: said("A")}, with_video=False, frames=0)
    assert source.asked == [] and records[0].correct and records[0].failure is None


@pytest.mark.parametrize(
    ("text", "predicted", "correct", "well_formed"),
    [
        (said("(B) blue square."), "B", True, True),
        (said("blue  Square"), "B", True, True),
        ("B", None, False, False),
        (said("A or B"), None, False, True),
        ("<think>B</think>", None, False, False),
    ],
)
def test_answers_are_read_one_way(model, text, predicted, correct, well_formed):
    records, _, _ = evaluate(model, [example(1, "B")], {1: text})
    assert (records[0].predicted, records[0].correct, records[0].well_formed) == (predicted, correct, well_formed)


def test_open_ended_rows_are_judged_as_text(model):
    """FACTS fault 10: spaces are not stripped from one side only."""
    items = [example(1, "the red circle", options=(), kind="text")]
    records, _, _ = evaluate(model, items, {1: said(" The red circle. ")})
    assert records[0].correct and records[0].letters == () and records[0].predicted == "The red circle."


def test_letters_scoring_keeps_failures_and_refuses_open_rows_before_decoding(model):
    items = [example(1), example(2, "cave", options=(), kind="text", video="v2"), example(3, video="broken"), example(4, video="v4")]
    source = Source(model)
    records = evaluate_letters(model, source, items, frames=8, prompt=PromptConfig(), max_rows=2)
    assert [record.failure for record in records] == [None, "RowError", "VideoDamagedError", None]
    assert source.asked == ["v1", "broken", "v4"]
    assert all(record.predicted in tuple("ABCD") and record.well_formed is None for record in (records[0], records[3]))
    assert [record.correct for record in records] == [record.predicted == "A" for record in records]
    assert summarise(records)["format_rate"] is None and summarise(records)["n"] == 4
