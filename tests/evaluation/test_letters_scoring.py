"""Letters scoring against the obvious way: one unpadded row at a time, all logits."""

import pytest
import torch

from longtake.errors import RowError
from longtake.evaluation import letters
from longtake.evaluation.letters import FORM, best_letter, letter_logprobs, option_tokens
from longtake.testing.takes import distributions_slowly, random_prompt

GRIDS = {0: [], 1: [(2, 4, 4)], 2: [(1, 4, 4), (3, 2, 4)]}
TOLERANCE = 2e-5
"""float32; measured 3e-6 on log-probs between -14 and -2; a wrong position moves them by more than 0.1."""


def prompts(model):
    return [
        random_prompt(model, num_text, GRIDS[num_videos], seed) for seed, (num_text, num_videos) in enumerate(((9, 1), (21, 0), (14, 2)))
    ]


@torch.no_grad()
def slow_scores(model, prompt, own_letters):
    scores = {}
    for letter in own_letters:
        ids = model.text_ids(FORM.format(letter))
        others = [model.text_ids(FORM.format(other)) for other in own_letters]
        place = next(index for index in range(len(ids)) if len({tuple(other[: index + 1]) for other in others}) > 1)
        scores[letter] = float(distributions_slowly(model, prompt, torch.tensor(ids))[place, ids[place]])
    return scores


@pytest.mark.parametrize("max_tokens", [1, 100, 32_768])
def test_batched_scores_equal_one_row_at_a_time(model, max_tokens):
    """Three rows of different lengths and videos, their own letters; the size of the batch changes nothing."""
    own = [("A", "B", "C", "D"), ("B", "A"), ("D", "A", "B", "C")]
    scores = letter_logprobs(model, prompts(model), own, max_tokens)
    for prompt, row, score in zip(prompts(model), own, scores, strict=True):
        expected = slow_scores(model, prompt, row)
        assert list(score) == list(row)
        assert score == pytest.approx(expected, abs=TOLERANCE)
        assert best_letter(score) == max(row, key=expected.__getitem__)


def test_a_wrong_position_shows(model, monkeypatch):
    """Negative control: positions of the answer that restart at 0, as in public systems, give other scores."""
    right = letter_logprobs(model, prompts(model), [("A", "B")] * 3)

    def restarting(prompt, num_shared, total):
        after = torch.arange(total - len(prompt.token_ids)).expand(len(prompt.position_ids), -1)
        return torch.cat([prompt.position_ids, after], dim=1)

    monkeypatch.setattr(letters, "_positions", restarting)
    wrong = letter_logprobs(model, prompts(model), [("A", "B")] * 3)
    moved = [abs(one[letter] - other[letter]) for one, other in zip(right, wrong, strict=True) for letter in one]
    assert max(moved) > 1000 * TOLERANCE  # measured 0.3


def test_no_probability_goes_to_banned_tokens(model):
    """With the bans lifted the same letters score lower: part of the mass was on media placeholders."""
    own = [tuple("ABCD")] * 3
    banned = letter_logprobs(model, prompts(model), own)
    kept, model.banned_ids = model.banned_ids, torch.tensor([], dtype=torch.int64)
    try:
        free = letter_logprobs(model, prompts(model), own)
    finally:
        model.banned_ids = kept
    assert all(free[row][letter] < banned[row][letter] for row in range(3) for letter in "ABCD")


class PairTokenizer:
    """Writes `>` and the letter after it as one token, as some vocabularies do."""

    def text_ids(self, text):
        return list(map(ord, text.replace(">A", "\u0100").replace(">B", "\u0101")))


def test_option_tokens_survive_a_tokenizer_that_merges_the_tag_with_the_letter():
    shared, own = option_tokens(PairTokenizer(), ("A", "B"))
    assert shared == [ord(char) for char in "<answer"] and own == {"A": 0x100, "B": 0x101}
    shared, own = option_tokens(PairTokenizer(), ("C", "D"))
    assert shared == [ord(char) for char in "<answer>"] and own == {"C": ord("C"), "D": ord("D")}


def test_rows_that_cannot_be_scored_are_refused():
    with pytest.raises(RowError, match="0 options under letters scoring"):
        option_tokens(PairTokenizer(), ())
    for unlike in (("C", "D", "CC"), ("A", "C")):  # ">A" is one token and ">C" two: their scores are of different things
        with pytest.raises(RowError, match="do not differ in one token"):
            option_tokens(PairTokenizer(), unlike)


def test_a_tie_goes_to_the_first_letter_of_the_row():
    assert best_letter({"B": -1.0, "A": -1.0, "C": -2.0}) == "B"
