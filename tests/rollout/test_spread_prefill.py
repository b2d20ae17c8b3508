"""A prompt prefilled by all ranks against the prefill of one process: keys, values, logits, and the takes decoded from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longtake.config.sections import ModelConfig
from longtake.models import load_model
from longtake.parallel.mesh import start_world
from longtake.rollout import spread_prefill as spread
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.testing.models import random_tiny
from longtake.testing.processes import run_processes
from longtake.testing.takes import random_prompt

CPU = torch.device("cpu")
PARAMS = SamplingParams(num_takes=3, temperature=1.0, max_new_tokens=12, seed=5, step=2)


def compared(path: str, ring: int, ulysses: int, owner: int, fault: str) -> dict[str, Any]:
    """On the owner the largest differences to its own prefill, and both engines' takes; on the others whether they got anything."""
    with start_world(CPU, timeout_s=60) as world:
        model = load_model(ModelConfig(path=path, device="cpu"))
        model.hf.train()
        mesh = world.sequence_mesh(ring, ulysses)
        if fault == "order":
            home = spread._to_owner
            spread._to_owner = lambda rows, *rest: home(rows.flip(0), *rest)
        if fault == "last":
            honest = spread._last_to_owner
            spread._last_to_owner = lambda hidden, *rest: honest(hidden.flip(0), *rest)
        prompt = random_prompt(model, 7, ((9, 4, 4),), seed=1)
        there = spread.spread_prefill(model, prompt, owner, mesh)
        if world.rank != owner:
            return {"nothing": there is None, "still trains": model.hf.training}
        assert there is not None
        kv, logits = there
        engine = TransformersEngine(model)
        plain, plain_logits = engine._prefill([prompt])
        length = len(prompt.token_ids)
        pairs = zip((*kv.keys, *kv.values), (*plain.keys, *plain.values), strict=True)
        takes = [engine.generate([RolloutRequest(4, prompt, given)], PARAMS)[0] for given in (there, None)]
        return {
            "layers": max(float((own - other[:, :, :length]).abs().max()) for own, other in pairs),
            "logits": float((logits - plain_logits).abs().max()),
            "shape": [tuple(kv.keys[0].shape[2:3]), kv.lengths.tolist()] == [(length,), [length]],
            "takes": [[take.token_ids.tolist() for take in own] for own in takes],
            "counted": (engine.counters.prompts_prefilled, engine.counters.prompt_tokens) == (2, 2 * length),
            "still trains": model.hf.training,
        }


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("spread")
    random_tiny(made)
    return str(made / "random_tiny_0")


@pytest.mark.parametrize(("processes", "ring", "ulysses", "owner"), [(2, 1, 2, 0), (2, 2, 1, 1), (4, 2, 2, 2)])
def test_keys_values_and_takes_are_those_of_one_process(path: str, processes: int, ring: int, ulysses: int, owner: int) -> None:
    found = run_processes(compared, processes, path, ring, ulysses, owner, "", timeout_s=60)
    own = found[owner]
    assert own["layers"] < 2e-6 and own["logits"] < 1e-5, own
    assert own["shape"] and own["counted"] and own["takes"][0] == own["takes"][1]
    assert all(one["nothing"] for rank, one in enumerate(found) if rank != owner)
    assert all(one["still trains"] for one in found)


@pytest.mark.parametrize("fault", ["order", "last"])
def test_what_lies_elsewhere_would_be_seen(path: str, fault: str) -> None:
    own = run_processes(compared, 2, path, 2, 1, 0, fault, timeout_s=60)[0]
    assert own["layers" if fault == "order" else "logits"] > 1e-3


def test_only_few_and_long_prompts_are_spread(path: str) -> None:
    model = load_model(ModelConfig(path=path, device="cpu"))
    short, long = random_prompt(model, 5, (), seed=0), random_prompt(model, spread.MIN_TOKENS, (), seed=0)
    assert spread.is_spread([long], 2) and spread.is_spread([long] * 3, 4)
    assert not any(spread.is_spread(prompts, 2) for prompts in ([], [short], [long, long]))
    assert not spread.is_spread([long], 1) and not spread.is_spread([long, short], 4)
