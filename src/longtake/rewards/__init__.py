"""Named rewards of takes and their weighted sum. G takes of one prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from longtake.answers import is_correct, parse_response
from longtake.config.sections import OverlongConfig, RewardConfig
from longtake.errors import ConfigError
from longtake.rewards.functions import RewardFunction, call_function, load_function
from longtake.rewards.judge import Judge, JudgeFailure, Verdict
from longtake.types import Example, Take


@dataclass(frozen=True, eq=False)
class RewardScores:
    """The rewards of one group."""

    named: dict[str, Tensor]
    """Each reward by itself, float32 [G], unweighted; accuracy and format are always there, to be logged. NaN: not known."""
    total: Tensor
    """float32 [G], the weighted sum; NaN where a part of it is not known."""
    valid: Tensor
    """bool [G]: False for a take that no gradient is taken from: its total is not known, or it was cut at the length limit and
    overlong.mask_truncated is set."""
    unjudged: tuple[str | None, ...]
    """Why the accuracy of each take is not known, the kind of the judge's failure; None where it is."""


class Rewards:
    """The rewards of a configuration, functions loaded once.

    accuracy  1 when `is_correct`, else 0; with a judge the answer to an open-ended row is right when it says so
    format    1 when the response is one think pair, then one answer pair, and nothing else (`parse_response`), else 0
    overlong  `overlong_reward`, when there is an OverlongConfig; its weight is 1, as in DAPO, unless `weights` gives another
    A user's function is called as function(example, response_text) -> float. A weight of 0: it is only logged. Of the rows of a source with
    weights of its own, a function that these do not name is not called, and a judge is asked only where they name accuracy.
    """

    def __init__(
        self,
        config: RewardConfig,
        max_new_tokens: int,
        overlong: OverlongConfig | None = None,
        judge: Judge | None = None,
        of_sources: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """`judge`: made from config.judge. `of_sources`: weights for the rows of a source in place of config.weights, where there are any
        (their names are checked by RlConfig). Raises ConfigError (weights, lengths; names are checked by RewardConfig) or RewardError (a
        function that cannot be loaded)."""
        check_config(config, max_new_tokens, overlong)
        if (config.judge is None) != (judge is None):
            raise ValueError("a configured judge is made by who asks for rewards, and no other is")
        self.functions: dict[str, RewardFunction] = {name: load_function(spec) for name, spec in config.functions.items()}
        self.max_new_tokens, self.overlong, self.judge = max_new_tokens, overlong, judge
        default = {"overlong": 1.0} if overlong is not None else {}
        self.weights = default | config.weights
        self._of_sources = {name: {**default, **weights} for name, weights in (of_sources or {}).items() if weights}

    def score(self, example: Example, takes: Sequence[Take]) -> RewardScores:
        """Rewards of the takes of one prompt. Raises RewardError when a user's function does not give a number."""
        return self.score_all([(example, takes)])[0]

    def score_all(self, batch: Sequence[tuple[Example, Sequence[Take]]]) -> list[RewardScores]:
        """The same for the takes of many prompts: the judge is asked about all of them at once."""
        responses = [(example, take.text) for example, takes in batch for take in takes]
        verdicts = iter(self._verdicts(responses))
        return [self._score(example, takes, verdicts) for example, takes in batch]

    def _weights_of(self, example: Example) -> Mapping[str, float]:
        return self._of_sources.get(example.source, self.weights)

    def _verdicts(self, responses: Sequence[tuple[Example, str]]) -> Sequence[Verdict]:
        own = [self._of_sources.get(example.source, {"accuracy": 1.0}) for example, _ in responses]
        asked = [self.judge is not None and "accuracy" in weights for weights in own]
        judged = iter(self.judge.verdicts(list(compress(responses, asked))) if self.judge is not None else ())
        return [next(judged) if asks else is_correct(*response) for asks, response in zip(asked, responses, strict=True)]

    def _score(self, example: Example, takes: Sequence[Take], verdicts: Iterator[Verdict]) -> RewardScores:
        own = [next(verdicts) for _ in takes]
        weights = self._weights_of(example)
        named = {
            "accuracy": [math.nan if isinstance(verdict, JudgeFailure) else float(verdict) for verdict in own],
            "format": [float(parse_response(take.text).well_formed) for take in takes],
        }
        if self.overlong is not None:
            cache = self.overlong.cache_tokens
            named["overlong"] = [overlong_reward(take.token_ids.numel(), self.max_new_tokens, cache) for take in takes]
        for name, function in self.functions.items():
            named[name] = [call_function(name, function, example, take.text) if name in weights else math.nan for take in takes]
        tensors = {name: torch.tensor(values, dtype=torch.float32) for name, values in named.items()}
        total = self._total(tensors, weights)
        masked = self.overlong is not None and self.overlong.mask_truncated
        whole = torch.tensor([not (masked and take.finish_reason == "length") for take in takes], dtype=torch.bool)
        unjudged = tuple(verdict.kind if isinstance(verdict, JudgeFailure) else None for verdict in own)
        return RewardScores(tensors, total, whole & ~total.isnan(), unjudged)

    def _total(self, named: dict[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """The weighted sum, in float64, so that equal rewards have equal totals whatever the order of the names. What has no weight is
        left out, so that it need not be known either."""
        parts = [weights[name] * values.double() for name, values in named.items() if weights.get(name, 0.0) != 0.0]
        return torch.stack(parts).sum(0).float() if parts else torch.zeros_like(named["accuracy"])


def overlong_reward(num_tokens: int, max_new_tokens: int, cache_tokens: int) -> float:
    """Soft overlong punishment, DAPO (arXiv 2503.14476) eq. 13, with L = max_new_tokens and C = cache_tokens:

    0 up to L - C tokens; ((L - C) - n) / C up to L; -1 beyond.
    """
    safe = max_new_tokens - cache_tokens
    if num_tokens <= safe:
        return 0.0
    return max((safe - num_tokens) / cache_tokens, -1.0)


def check_config(config: RewardConfig, max_new_tokens: int, overlong: OverlongConfig | None) -> None:
    """What RewardConfig cannot check by itself. Raises ConfigError with all problems at once."""
    problems = [f"function {name!r} has no weight" for name in config.functions if name not in config.weights]
    if overlong is None and config.weights.get("overlong"):
        problems.append("weight for 'overlong' without algorithm.overlong")
    if overlong is not None and overlong.cache_tokens > max_new_tokens:
        problems.append(f"overlong.cache_tokens {overlong.cache_tokens} > max_new_tokens {max_new_tokens}")
    if problems:
        rule = "each function has a weight (0: only logged); overlong needs its section, with a zone inside the longest response"
        raise ConfigError("; ".join(problems), rule=rule, remedy="mend rewards.weights, rewards.functions or algorithm.overlong")
