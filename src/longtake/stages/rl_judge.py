"""What the judge said in a step of RL, and what a judge that does not answer does to the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NoReturn

from longtake.answers import is_correct
from longtake.errors import BudgetError, LlmError
from longtake.observe.progress import say
from longtake.rewards.judge import BUDGET, UNUSABLE, Judge
from longtake.stages.rl_rollout import Sampled
from longtake.stages.training_run import TrainingRun
from longtake.types import Group

MAX_STEPS_UNJUDGED = 3
"""So many steps in a row in which every call failed are no bad luck."""
LOUD = 0.5
"""Share of a step's verdicts that may fail without a word."""


class JudgeWatch:
    """Looks at every step, on every rank alike. Without a judge it has nothing to say."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._steps_unjudged = 0

    def look(self, sampled: Sampled) -> dict[str, float]:
        """Metrics of the step's verdicts. Raises BudgetError or LlmError, with what was done before the step saved, when some could not be
        had at all: a run that is started again samples this step again, and what is paid is kept."""
        if self._run.judge is None:
            return {}
        groups = [*sampled.groups, *sampled.dropped]
        kinds = {kind for group in groups for kind in group.unjudged}
        if kinds & {BUDGET, UNUSABLE}:
            self._leave(self._run.judge, BudgetError if BUDGET in kinds else LlmError)
        metrics = judge_metrics(self._run.judge, groups)
        self._count(metrics)
        return metrics

    def refuse_silence(self) -> None:
        """After a step. Raises LlmError, with the step saved, when no call has been answered for MAX_STEPS_UNJUDGED steps."""
        if self._steps_unjudged >= MAX_STEPS_UNJUDGED:
            self._run.save_if_new()
            raise LlmError(
                f"every call to the judge failed in {self._steps_unjudged} steps in a row; see above",
                rule="a judged reward needs a judge that answers",
                remedy="see to its server (rewards.judge.endpoint) and start again: the run goes on from here",
            )

    def _leave(self, judge: Judge, kind: type[BudgetError | LlmError]) -> NoReturn:
        told = self._run.team.tell("" if judge.trouble is None else str(judge.trouble))
        self._run.save_if_new()
        raise kind(
            f"the answers of step {self._run.step + 1} are not judged: {next(filter(None, told), '')}",
            rule="a step is learned from when its answers are judged",
            remedy="do as it says and start again: the run goes on from here, and verdicts that were paid are kept",
        )

    def _count(self, metrics: dict[str, float]) -> None:
        asked, failed = metrics["count/judge_asked"], metrics["count/judge_failed"]
        if failed > LOUD * asked:
            prefix = "count/judge_failed/"
            kinds = ", ".join(f"{name.removeprefix(prefix)} {int(n)}" for name, n in metrics.items() if name.startswith(prefix))
            say(
                f"rl: step {self._run.step + 1}: {failed:.0f} of {asked:.0f} answers were NOT judged and are left out: {kinds}", style="red"
            )
        if asked:
            self._steps_unjudged = self._steps_unjudged + 1 if failed == asked else 0


def judge_metrics(judge: Judge, groups: Sequence[Group]) -> dict[str, float]:
    """Over all takes that the judge was asked about: how many calls failed and why, how often it said yes, how often the rules would have
    (over the takes with a verdict), and how often both say the same."""
    asked = failed = judged = yes = rule_yes = agreed = 0
    kinds: Counter[str] = Counter()
    for group in groups:
        for take, accuracy, kind in zip(group.takes, group.rewards["accuracy"].tolist(), group.unjudged, strict=True):
            if not judge.asks(group.example, take.text):
                continue
            asked += 1
            if kind is not None:
                failed, kinds[kind] = failed + 1, kinds[kind] + 1
                continue
            verdict, rule = accuracy == 1.0, is_correct(group.example, take.text)
            judged, yes, rule_yes, agreed = judged + 1, yes + verdict, rule_yes + rule, agreed + (verdict == rule)
    shares = {"yes": yes, "rule_yes": rule_yes, "agreement": agreed}
    return {
        "count/judge_asked": float(asked),
        "count/judge_failed": float(failed),
        **{f"count/judge_failed/{kind}": float(number) for kind, number in sorted(kinds.items())},
        **({"judge/failed": failed / asked} if asked else {}),
        **({f"judge/{name}": number / judged for name, number in shares.items()} if judged else {}),
    }
