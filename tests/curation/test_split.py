"""Whole videos shared out to evaluation, SFT and RL."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.config.curate import SplitConfig
from longtake.curation.records import Draft, RatedRow
from longtake.curation.split import SURPLUS, SplitOutcome, split_rows
from longtake.errors import CurationError

CATEGORIES = ("temporal", "goal", "plot")


def row(video: str, number: int, category: str = "plot") -> RatedRow:
    draft = Draft(f"{video}.mp4", video, category, f"What is {number}?", ("a", "b"), "a", "", (), key=f"{video}-{number}")
    return RatedRow(draft, 5, 10)


def rows_of(sizes: dict[str, int], category: str = "plot") -> list[RatedRow]:
    return [row(video, number, category) for video, size in sizes.items() for number in range(size)]


def split(rows: list[RatedRow], seed: int = 0, **config: object) -> SplitOutcome:
    return split_rows(rows, SplitConfig.model_validate(config), seed)


def counts(outcome: SplitOutcome) -> dict[str, int]:
    return dict(Counter(one.split for one in outcome.kept))


def videos_of(outcome: SplitOutcome) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for one in outcome.kept:
        found[one.split].add(one.row.draft.digest)
    for drop in outcome.dropped:
        assert drop.draft is not None
        found["eval"].add(drop.draft.digest)
    return found


worlds = st.lists(st.lists(st.sampled_from(CATEGORIES), min_size=1, max_size=9), max_size=9).map(
    lambda videos: [row(f"v{place}", number, category) for place, own in enumerate(videos) for number, category in enumerate(own)]
)
quotas = st.dictionaries(st.sampled_from(CATEGORIES), st.integers(0, 12))
shares = st.one_of(st.sampled_from([0.0, 1 / 3, 0.5, 1.0]), st.floats(0, 1))


@given(worlds, quotas, shares, st.integers(0, 5))
def test_every_row_is_placed_once_and_no_video_is_in_two_splits(rows: list[RatedRow], eval_rows: dict[str, int], share: float, seed: int):
    outcome = split(rows, seed, eval_rows=eval_rows, sft_share=share)
    placed = [one.row.draft.key for one in outcome.kept] + [drop.key for drop in outcome.dropped]
    assert sorted(placed) == sorted(one.draft.key for one in rows)
    own = videos_of(outcome)
    assert not own["sft"] & own["rl"] and not own["eval"] & (own["sft"] | own["rl"])


@given(worlds, quotas, st.integers(0, 5))
def test_quotas_are_filled_exactly_as_far_as_there_are_rows(rows: list[RatedRow], eval_rows: dict[str, int], seed: int):
    outcome = split(rows, seed, eval_rows=eval_rows, max_eval_videos=1.0)
    there = Counter(one.draft.category for one in rows)
    got = Counter(one.row.draft.category for one in outcome.kept if one.split == "eval")
    for category in CATEGORIES:
        wanted = eval_rows.get(category, 0)
        assert got[category] == min(wanted, there[category])
        told = f"only {there[category]} rows of {category} for the evaluation split, where split.eval_rows asks for {wanted}: "
        assert any(warning.startswith(told) for warning in outcome.warnings) == (there[category] < wanted)
    assert all(drop.reason == SURPLUS and drop.stage == "split" for drop in outcome.dropped)


@given(worlds, quotas, shares, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows: list[RatedRow], eval_rows: dict[str, int], share: float, draw: random.Random):
    shuffled = list(rows)
    draw.shuffle(shuffled)
    first, second = (split(own, eval_rows=eval_rows, sft_share=share) for own in (rows, shuffled))
    assert (first.kept, first.dropped, first.warnings) == (second.kept, second.dropped, second.warnings)


@given(st.lists(st.integers(1, 12), max_size=8), shares)
def test_sft_has_its_share_as_nearly_as_whole_videos_allow(sizes: list[int], share: float):
    """Against all subsets."""
    outcome = split(rows_of({f"v{place}": size for place, size in enumerate(sizes)}), sft_share=share)
    wanted = share * sum(sizes)
    got = counts(outcome).get("sft", 0)
    best = min(
        abs(sum(size * take for size, take in zip(sizes, taken, strict=True)) - wanted) for taken in product((0, 1), repeat=len(sizes))
    )
    assert abs(got - wanted) == pytest.approx(best, abs=1e-9)


def test_one_video_with_most_of_the_rows():
    """500 + 100 x 1 rows: a third is 200. The singles together are 100 away from it, the large video alone 300."""
    outcome = split(rows_of({"large": 500} | {f"v{number}": 1 for number in range(100)}), sft_share=1 / 3)
    assert counts(outcome) == {"sft": 100, "rl": 500}


def test_a_long_tail_is_met_exactly_and_shared_out_evenly():
    """Rows per video 1 to 40, most of them few: SFT gets exactly a third, and of the videos of each size about a third."""
    draw = random.Random(3)
    sizes = {f"v{number}": min(40, int(draw.paretovariate(1.1))) for number in range(600)}
    outcome = split(rows_of(sizes), sft_share=1 / 3)
    total = sum(sizes.values())
    assert counts(outcome)["sft"] == round(total / 3)
    in_sft = videos_of(outcome)["sft"]
    for low, high in ((1, 1), (2, 4), (5, 40)):
        of_size = [video for video, size in sizes.items() if low <= size <= high]
        assert len(of_size) >= 40
        assert sum(video in in_sft for video in of_size) / len(of_size) == pytest.approx(1 / 3, abs=0.05)


def test_evaluation_takes_the_videos_that_lose_least():
    """Two rows of goal are wanted. `both` gives them and loses nothing; of the others each would lose its plot rows."""
    rows: list[RatedRow] = []
    for video, categories in {"both": ["goal", "goal"], "one": ["goal", "plot"], "much": ["goal"] + ["plot"] * 8}.items():
        rows += [row(video, number, category) for number, category in enumerate(categories)]
    for seed in range(6):
        outcome = split(rows, seed, eval_rows={"goal": 2})
        assert [one.row.draft.digest for one in outcome.kept if one.split == "eval"] == ["both", "both"]
        assert outcome.dropped == ()
    three = split(rows, eval_rows={"goal": 3}, max_eval_videos=0.7)
    assert videos_of(three)["eval"] == {"both", "one"}
    assert [(drop.key, drop.reason, drop.category) for drop in three.dropped] == [("one-1", "eval_surplus", "plot")]
    assert "has its 0 rows of plot" in three.dropped[0].message


def test_the_seed_draws_other_evaluation_videos():
    rows = rows_of({f"v{number}": 2 for number in range(30)})
    drawn = {frozenset(videos_of(split(rows, seed, eval_rows={"plot": 8}))["eval"]) for seed in range(5)}
    assert len(drawn) == 5
    assert {len(one) for one in drawn} == {4}


def test_sft_and_rl_videos_are_drawn_too():
    rows = rows_of({f"v{number:02}": 2 for number in range(30)})
    drawn = {frozenset(videos_of(split(rows, seed))["sft"]) for seed in range(5)}
    assert len(drawn) == 5
    assert {len(one) for one in drawn} == {10}


@pytest.mark.parametrize(("share", "told"), [(1 / 3, ["sft"]), (0.9, ["rl"]), (0.0, []), (1.0, [])])
def test_an_empty_split_is_told(share: float, told: list[str]):
    outcome = split(rows_of({"only": 4}), sft_share=share)
    assert list(outcome.warnings) == [
        f"the {split} split is empty, too few videos are left: curate more, or lower split.eval_rows" for split in told
    ]


@given(worlds, quotas, st.sampled_from([0.1, 0.5, 0.9]))
def test_evaluation_leaves_videos_to_train_on(rows: list[RatedRow], eval_rows: dict[str, int], share: float):
    """Where quotas ask for more than a folder can give, training is not what pays for it."""
    outcome = split(rows, 0, eval_rows=eval_rows, max_eval_videos=share)
    videos = {one.draft.digest for one in rows}
    assert len(videos_of(outcome)["eval"]) <= share * len(videos)


def test_rows_come_by_split_and_key():
    outcome = split(rows_of({"b": 2, "a": 2, "c": 2}), sft_share=2 / 3)
    assert [one.split for one in outcome.kept] == ["sft"] * 4 + ["rl"] * 2
    for name in ("sft", "rl"):
        keys = [one.row.draft.key for one in outcome.kept if one.split == name]
        assert keys == sorted(keys)


def test_two_rows_of_one_key_are_refused():
    with pytest.raises(CurationError, match="'v-0'"):
        split([row("v", 0), row("v", 0)])


def test_no_rows():
    assert split([]).kept == ()


def test_a_hundred_thousand_rows_take_seconds():
    """Measured: 1.0 s for 127,317 rows of 12,000 videos on one core."""
    draw = random.Random(0)
    rows = [
        row(f"v{video}", number, draw.choice(CATEGORIES))
        for video in range(12_000)
        for number in range(min(200, int(draw.paretovariate(0.9)) + 3))
    ]
    started = time.perf_counter()
    outcome = split(rows, eval_rows={"temporal": 300, "goal": 300, "plot": 300})
    assert time.perf_counter() - started < 60
    training = counts(outcome)["sft"] + counts(outcome)["rl"]
    assert counts(outcome)["sft"] == round(training / 3)
