"""The judge a configuration asks for: a server, or a model that is loaded beside the one that trains."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from longtake.config.sections import JudgeConfig, ModelConfig
from longtake.errors import LlmError, LongtakeError
from longtake.llm.calls import Answer, CallFailure, ChatCall
from longtake.llm.client import Budget
from longtake.models.family import Message, Model
from longtake.models.loading import load_model
from longtake.observe.digest import digest_of
from longtake.observe.keyed_lines import KeyedLines
from longtake.rewards.judge import NO, YES, EndpointAsker, Judge
from longtake.rollout.engine import Engine, RolloutRequest, SamplingParams
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.types import Prompt, Take

MAX_ROWS = 64
"""Calls that a local judge answers together."""


@contextmanager
def open_judge(
    config: JudgeConfig | None, out: Path, rank: int = 0, *, store: KeyedLines | None = None, budget: Budget | None = None
) -> Iterator[Judge | None]:
    """The judge of the run in `out`, for this rank; None for None.

    `store`: where verdicts of a server are kept; None: in config.folder, or in `out`/judge. `budget`: of its calls; None: config.budget.
    Raises LlmError or ModelError when it cannot be used as configured, CheckpointError when another process judges for this rank of `out`.
    """
    if config is None:
        yield None
        return
    asker: EndpointAsker | LocalAsker
    with ExitStack() as opened:
        if config.local is not None:
            asker = LocalAsker.of(config.local)
            opened.callback(asker.close)
        else:
            assert config.endpoint is not None
            if store is None:
                writer = f"{digest_of('judge of', str(out.resolve()))[:12]}-{rank}"  # runs may share a folder
                store = opened.enter_context(KeyedLines(config.folder or out / "judge", writer))
            asker = EndpointAsker(config.endpoint, store, budget or Budget(config.budget))
        judge = Judge(asker, max_answer_chars=config.max_answer_chars, max_tokens=config.max_tokens)
        judge.check()
        yield judge


class LocalAsker:
    """Asks a model of its own, greedily, many calls together. Its weights and tokens are in no optimizer, group or loss."""

    def __init__(self, model: Model, engine: Engine) -> None:
        self.trouble: LongtakeError | None = None
        self._model, self._engine = model, engine
        self._calls = 0

    @classmethod
    def of(cls, config: ModelConfig) -> LocalAsker:
        model = load_model(config)
        model.hf.requires_grad_(False)
        return cls(model, TransformersEngine(model, MAX_ROWS))

    def ask_all(self, calls: Sequence[ChatCall]) -> list[Answer | CallFailure]:
        """Calls of one length limit, that of the first. An answer that is not exactly a verdict is a failure."""
        self._calls += len(calls)
        params = SamplingParams(num_takes=1, temperature=0.0, max_new_tokens=calls[0].max_tokens, seed=0, step=0)
        prompts = [text_prompt(self._model, call.text) for call in calls]
        with self._engine.at_weights():
            takes = self._engine.generate([RolloutRequest(index, prompt) for index, prompt in enumerate(prompts)], params)
        return [read_reply(prompt, take) for prompt, (take,) in zip(prompts, takes, strict=True)]

    def metrics(self) -> dict[str, float]:
        return {"llm/calls": float(self._calls)}

    def close(self) -> None:
        self._engine.close()


def text_prompt(model: Model, text: str) -> Prompt:
    """A message without video, as the model's chat template writes it."""
    token_ids = model.token_ids([Message("user", text)], add_generation_prompt=True)
    position_ids, next_position = model.position_ids(token_ids, ())
    ids = torch.tensor(token_ids, dtype=torch.int64)
    return Prompt(ids, position_ids, (), next_position, digest_of("text prompt 1", ids, position_ids))


def read_reply(prompt: Prompt, take: Take) -> Answer | CallFailure:
    """The whole reply is the JSON asked for, or the one word yes or no; a yes among other words is nothing."""
    if take.finish_reason == "length":
        return _unread("length", f"a reply cut at {len(take.token_ids)} tokens", "raise judge.max_tokens, or ask another model")
    said = take.text.strip()
    word = said.lower().rstrip(".")
    if word in ("yes", "no"):
        value: object = {"verdict": word}
    else:
        try:
            value = json.loads(said)
        except ValueError:
            return _unread("not_json", f"the reply {said[:80]!r}", "ask another model")
    if value not in (YES, NO):
        return _unread("schema", f"the reply {said[:80]!r}", "ask another model")
    return Answer(value, len(prompt.token_ids), len(take.token_ids), cached=False)


def _unread(kind: str, given: str, remedy: str) -> CallFailure:
    rule = f"the judge replies with {json.dumps(YES)} or {json.dumps(NO)}, or with the one word"
    return CallFailure(kind, str(LlmError(f"judge: {given}", rule=rule, remedy=remedy)), 1)
