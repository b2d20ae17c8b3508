"""Test-scaling: the policy answers every row several times. What it always or never gets right teaches it nothing and is left out.

Answers are kept by everything that decides them (row, video, weights, settings, seed), so that nothing is sampled twice, and their random
numbers are chosen by the row alone: a part of the rows, or a run that goes on after a kill, draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longtake.answers import is_right_answer, read_letter
from longtake.answers.response import ANSWER, END_ANSWER
from longtake.config.curate import DifficultyConfig
from longtake.config.llm import BudgetConfig
from longtake.config.sections import JudgeConfig
from longtake.curation.answering import Answers, Log, Question, Refused, ask_policy, weights_digest
from longtake.curation.readable import in_order, readable, refused
from longtake.curation.records import Draft, Drop, Outcome, RatedRow
from longtake.data.embedding_cache import digest_index
from longtake.data.texts import user_text
from longtake.errors import LlmError, LongtakeError
from longtake.llm.client import Budget
from longtake.llm.prompts import shipped_text
from longtake.models.loading import model_folder
from longtake.observe.digest import digest_of
from longtake.observe.keyed_lines import KeyedLines
from longtake.rewards.judge import BUDGET, PURPOSE, UNUSABLE, JudgeFailure, Verdict
from longtake.rollout.judges import open_judge
from longtake.types import Example
from longtake.video.index import DigestIndex

ALWAYS, NEVER, JUDGE_FAILED = "always_right", "never_right", "judge_failed"
"""Reasons of rows that are left out; others are names of errors."""
JUDGED_AT_ONCE = 512
"""Rows that a judge is asked about together; what it said is kept after each such part."""
SHOWN_CHARS = 200
"""Of an answer that is kept for people."""
Advance = Callable[[int], None]


def rate_rows(
    rows: Sequence[Draft],
    root: Path,
    config: DifficultyConfig,
    *,
    seed: int,
    store: KeyedLines,
    out: Path,
    calls: KeyedLines | None = None,
    budget: Budget | None = None,
    index: DigestIndex | None = None,
    advance: Advance | None = None,
    log: Log | None = None,
) -> Outcome[RatedRow]:
    """Each row with how often the policy was right, in the order of `rows`. Dropped are those that it always or never gets right (unless
    config.keep_certain), that cannot be read or asked (reason: the name of the error), or about which no call to the judge succeeded.

    `root`: folder of the videos. `store`: where answers and verdicts are kept. `out`: the run's folder, for what the engine keeps. `calls`:
    where a judge's calls are kept (None: in `store`), inside `budget` (None: without limit). `index`: of the digests of videos.
    `advance(n)` is told of n rows done, `log` of the metrics of what was done now. The model is loaded when answers are missing, and
    only then.
    Raises ModelError, RolloutError, and BudgetError or LlmError when the judge cannot be asked: what was done until then is kept.
    """
    examples, drops = readable(rows)
    settings = _settings_digest(config, seed, out)
    questions = [Question(draft, example, _key(draft, example, config, settings)) for draft, example in examples.values()]
    unknown = [one for one in questions if one.key not in store]
    if advance is not None:
        advance(len(rows) - len(unknown))
    if any(_error_key(one) not in store for one in unknown):
        index = digest_index(config.cache, out / "digests.json", config.video.limits) if index is None else index
        # those that failed before are tried again, now that the model is loaded anyway
        for batch in ask_policy(unknown, config, root=root, seed=seed, out=out, index=index, log=log):
            drops |= {one.draft.key: drop for one, answered in batch if (drop := _keep(store, one, answered)) is not None}
            if advance is not None:
                advance(len(batch))
        index.save()
    else:
        drops |= {one.draft.key: _kept_error(store, one) for one in unknown}
    answers = {one: _kept_answers(store, one) for one in questions if one.draft.key not in drops}
    verdicts = _Verdicts(config.judge, store, out, store if calls is None else calls, budget or Budget(BudgetConfig())).of(answers)
    made = drops | {one.draft.key: _rated(one, answers[one], verdicts[one], config.keep_certain) for one in answers}
    return in_order(rows, made)


def _settings_digest(config: DifficultyConfig, seed: int, out: Path) -> str:
    """Of all that decides answers, save the row: weights, sampling, prompt, video, seed. Not of the engine: all sample from the same
    distribution."""
    rollout = config.rollout
    return digest_of(
        "difficulty 1",
        weights_digest(model_folder(config.model), out),
        config.model.model_dump_json(exclude={"path", "device"}),
        config.video.model_dump_json(exclude={"encode_groups"}),
        config.prompt.model_dump_json(),
        (rollout.num_takes, rollout.temperature, rollout.max_new_tokens),
        seed,
    )


def _key(draft: Draft, example: Example, config: DifficultyConfig, settings: str) -> str:
    return digest_of("takes 1", draft.key, user_text(example, config.prompt), draft.digest, settings)


def _error_key(one: Question) -> str:
    return f"{one.key} error"


def _keep(store: KeyedLines, one: Question, answered: Answers | Refused) -> Drop | None:
    """Write down what came of asking; the drop of a row that could not be asked."""
    if not isinstance(answered, Refused):
        store.put(one.key, {"row": one.draft.key, "answers": answered})
        return None
    kind, message = type(answered.error).__name__, str(answered.error)
    if answered.lasts:
        store.put(_error_key(one), {"row": one.draft.key, "error": kind, "message": message})
    return refused(one.draft, kind, message)


def _kept_error(store: KeyedLines, one: Question) -> Drop:
    kept = store.get(_error_key(one))
    assert kept is not None
    return refused(one.draft, kept["error"], kept["message"])


def _kept_answers(store: KeyedLines, one: Question) -> Answers:
    kept = store.get(one.key)
    assert kept is not None
    answers: Answers = kept["answers"]
    return answers


class _Verdicts:
    """Whether answers are right: by the rules, and for open-ended texts by the judge, if there is one."""

    def __init__(self, judge: JudgeConfig | None, store: KeyedLines, out: Path, calls: KeyedLines, budget: Budget) -> None:
        self._judge, self._store, self._out, self._calls, self._budget = judge, store, out, calls, budget

    def of(self, answers: Mapping[Question, Answers]) -> dict[Question, list[Verdict]]:
        """A verdict on each answer."""
        by_rules: dict[Question, list[Verdict]] = {
            one: [answer is not None and is_right_answer(one.example, answer) for answer in own] for one, own in answers.items()
        }
        return by_rules if self._judge is None else by_rules | self._judged(self._judge, answers)

    def _judged(self, judge: JudgeConfig, answers: Mapping[Question, Answers]) -> dict[Question, list[Verdict]]:
        """Of the open-ended rows: as kept, or asked for now."""
        identity = self._identity(judge)
        keys = {
            one: digest_of("judged 1", identity, one.example.question, one.example.answer, own)
            for one, own in answers.items()
            if one.example.answer_kind == "text"
        }
        kept = {one: record["right"] for one, key in keys.items() if (record := self._store.get(key)) is not None}
        missing = {one: answers[one] for one in keys if one not in kept}
        return kept | self._ask(judge, missing, keys) if missing else kept

    def _identity(self, judge: JudgeConfig) -> str:
        """Of what decides verdicts."""
        who: Any
        if judge.local is not None:
            who = (weights_digest(model_folder(judge.local), self._out), judge.local.model_dump_json(exclude={"path", "device"}))
        else:
            assert judge.endpoint is not None
            who = (judge.endpoint.model or judge.endpoint.url, judge.endpoint.model_dump_json(include={"extra_body"}))
        return digest_of("judge 1", who, shipped_text(PURPOSE), judge.max_answer_chars, judge.max_tokens)

    def _ask(self, config: JudgeConfig, missing: Mapping[Question, Answers], keys: Mapping[Question, str]) -> dict[Question, list[Verdict]]:
        """What is said of a row is kept when all its answers have a verdict: failed calls are made again by the next run."""
        found: dict[Question, list[Verdict]] = {}
        with open_judge(config, self._out, store=self._calls, budget=self._budget) as judge:
            assert judge is not None
            rows = list(missing)
            for part in (rows[start : start + JUDGED_AT_ONCE] for start in range(0, len(rows), JUDGED_AT_ONCE)):
                said = iter(judge.verdicts([(one.example, _response(answer)) for one in part for answer in missing[one]]))
                for one in part:
                    own = found[one] = [next(said) for _ in missing[one]]
                    if not any(isinstance(verdict, JudgeFailure) for verdict in own):
                        self._store.put(keys[one], {"row": one.draft.key, "right": own})
                _refuse_useless(judge.trouble, [verdict for one in part for verdict in found[one]])
        return found


def _response(answer: str | None) -> str:
    """A response that reads as this answer."""
    return "" if answer is None else f"{ANSWER}{answer}{END_ANSWER}"


def _refuse_useless(trouble: LongtakeError | None, verdicts: Sequence[Verdict]) -> None:
    failures = [verdict for verdict in verdicts if isinstance(verdict, JudgeFailure) and verdict.kind in (BUDGET, UNUSABLE)]
    if failures:
        raise trouble or LlmError(failures[0].message, rule="a judge answers", remedy="see to its server")


def _rated(one: Question, answers: Answers, verdicts: Sequence[Verdict], keep_certain: bool) -> RatedRow | Drop:
    """Answers without a verdict do not count."""
    known = [verdict for verdict in verdicts if isinstance(verdict, bool)]
    if not known:
        kinds = sorted({verdict.kind for verdict in verdicts if isinstance(verdict, JudgeFailure)})
        told = f"no call to the judge about its {len(verdicts)} answers succeeded ({', '.join(kinds)})"
        return refused(one.draft, JUDGE_FAILED, told)
    right = sum(known)
    if right in (0, len(known)) and not keep_certain:
        told = f"{right} of {len(known)} answers are right: it teaches this policy nothing"
        return refused(one.draft, ALWAYS if right else NEVER, told)
    return RatedRow(one.draft, right, len(known), tuple(_shown(one.example, answer) for answer in answers))


def _shown(example: Example, answer: str | None) -> str:
    """An answer for people: the letter where one can be read."""
    if answer is None:
        return "(no answer)"
    return (read_letter(answer, example.options) if example.options else None) or answer[:SHOWN_CHARS]
