"""What the comparison of sampler and trainer sees: vLLM given something else than what the trainer scores, fault by fault.

    longtake quickstart --out runs/quickstart
    python benchmarks/engine_faults.py runs/quickstart runs/faults                    # float32
    python benchmarks/engine_faults.py runs/quickstart runs/faults --dtype bfloat16

The SFT model of a quickstart samples 8 takes of each of 16 rows through vLLM; the trainer scores them. Then the same with one fault at a
time: another temperature, one pair of frames fewer, the video of another row, another spacing of the frames, positions off by one, weights
that are 1 and 10 updates old (RL at the quickstart's learning rate). Prints mean, maximum and KL of the differences, and what the limits
refuse; the same goes to OUT/faults_DTYPE.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longtake.bench.machine import hardware
from longtake.config.sections import RolloutConfig
from longtake.config.stages import RlConfig
from longtake.data.embedding_cache import EmbeddingCache, digest_index
from longtake.data.render import render_prompt
from longtake.data.rows import read_examples
from longtake.data.videos import VideoSource
from longtake.models import load_model
from longtake.models.family import Model
from longtake.models.loading import model_folder
from longtake.observe.timing import Phases
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.engines import make_engine
from longtake.training.packed_policy import group_logprobs
from longtake.training.policy import LogprobComparison, compare_logprobs
from longtake.types import Example, Prompt, Take, VideoSpan

ROWS, TAKES = 16, 8
STALE = (1, 10)
"""Updates that the engine has missed."""
Given = Callable[[Model, Prompt, Prompt], Prompt]
"""(model, the prompt, that of the next row) -> what the engine is given in its place."""


def same(model: Model, prompt: Prompt, other: Prompt) -> Prompt:
    return prompt


def one_pair_fewer(model: Model, prompt: Prompt, other: Prompt) -> Prompt:
    """The last temporal group is missing."""
    (span,) = prompt.spans
    (groups, rows, columns), tokens = span.tokens.grid, span.tokens
    grid = (groups - 1, rows, columns)
    stop = span.start + model.num_video_tokens(grid)
    shorter = replace(tokens, grid=grid, embeddings=tokens.embeddings[: stop - span.start], digest=f"{tokens.digest} shorter")
    ids = torch.cat([prompt.token_ids[:stop], prompt.token_ids[span.stop :]])
    positions, next_position = model.position_ids(ids.tolist(), [shorter])
    return replace(
        prompt, token_ids=ids, position_ids=positions, spans=(VideoSpan(span.start, stop, shorter),), next_position=next_position
    )


def video_of_another_row(model: Model, prompt: Prompt, other: Prompt) -> Prompt:
    (span,), (stranger,) = prompt.spans, other.spans
    tokens = replace(stranger.tokens, seconds_per_grid=span.tokens.seconds_per_grid)
    return replace(prompt, spans=(replace(span, tokens=tokens),))


def slower(model: Model, prompt: Prompt, other: Prompt) -> Prompt:
    """Frames half as far apart again: vLLM makes positions of the spacing."""
    (span,) = prompt.spans
    tokens = replace(span.tokens, seconds_per_grid=float(np.float32(1.5 * span.tokens.seconds_per_grid)))
    return replace(prompt, spans=(replace(span, tokens=tokens),))


def main() -> None:
    arguments = read_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    config = RlConfig.model_validate_json((arguments.run / "configs" / "rl.json").read_text(encoding="utf-8"))
    trained = {count: updated(arguments.run, arguments.out, count) for count in STALE}
    setting = config.model.model_copy(update={"dtype": arguments.dtype, "device": arguments.device})
    limit = config.model_copy(update={"model": setting, "max_logprob_difference": None}).logprob_limit
    model = load_model(setting)
    prompts = prompts_of(config, model)
    rollout = RolloutConfig(engine="vllm", num_takes=TAKES, max_new_tokens=config.rollout.max_new_tokens)
    engine = make_engine(model, model_folder(setting), rollout, 2 * max(len(prompt.token_ids) for prompt in prompts), ROWS)
    lines: dict[str, dict[str, Any]] = {}

    def sampled(given: Given, temperature: float = 1.0) -> list[tuple[Take, ...]]:
        asked = [given(model, prompt, prompts[place - 1]) for place, prompt in enumerate(prompts)]
        with engine.at_weights():
            requests = [RolloutRequest(key, prompt) for key, prompt in enumerate(asked)]
            return engine.generate(requests, SamplingParams(TAKES, temperature, rollout.max_new_tokens, 0, 0))

    def note(name: str, groups: Sequence[Sequence[Take]], scored: Sequence[Prompt] = prompts) -> None:
        found = compared(model, scored, groups)
        refused = [what for what, value, bound in (("max", found.max, limit), ("mean", found.mean, limit / 10)) if value > bound]
        lines[name] = asdict(found) | {"refused_by": refused}
        print(f"{name:28s} mean {found.mean:.1e}  max {found.max:.1e}  KL {found.kl:.1e}", *["refused by", *refused] if refused else ())

    honest = sampled(same)
    note("nothing wrong", honest)
    for temperature in (1.02, 1.1):
        note(f"temperature {temperature}", sampled(same, temperature))
    note("one pair of frames fewer", sampled(one_pair_fewer))
    note("the video of another row", sampled(video_of_another_row))
    note("spacing x 1.5", sampled(slower))
    note("positions off by one", honest, [replace(prompt, next_position=prompt.next_position - 1) for prompt in prompts])
    for count, path in trained.items():
        model.hf.load_state_dict(load_model(setting.model_copy(update={"path": str(path)})).hf.state_dict())
        note(f"weights {count} updates old", honest)
    engine.close()
    result = {"dtype": arguments.dtype, "limit": limit, "takes": ROWS * TAKES, "lines": lines, "hardware": hardware(model.device)}
    path = arguments.out / f"faults_{arguments.dtype}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a quickstart")
    parser.add_argument("out", type=Path, help="folder for the result")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return parser.parse_args()


def updated(run: Path, out: Path, count: int) -> Path:
    """The SFT model after `count` steps of the quickstart's RL, as a checkpoint directory."""
    path = out / f"after_{count}"
    if not path.exists():
        rl = out / f"rl_{count}"
        command = [sys.executable, "-m", "longtake"]
        stop = ["--steps", str(count), "--validation", "none"]
        subprocess.run([*command, "rl", str(run / "configs" / "rl.json"), "--out", str(rl), *stop], check=True)
        subprocess.run([*command, "export", str(rl), "--out", str(path)], check=True)
    return path


def prompts_of(config: RlConfig, model: Model) -> list[Prompt]:
    """Of the first rows of the run."""
    index = digest_index(config.cache, None, config.video.limits.max_bytes)
    examples = [item for item in read_examples(config.data, index) if isinstance(item, Example) and item.media][:ROWS]
    source = VideoSource(model, config.video, Phases(), EmbeddingCache())
    return [render_prompt(example, [source.tokens(ref) for ref in example.media], model, config.prompt) for example in examples]


def compared(model: Model, prompts: Sequence[Prompt], groups: Sequence[Sequence[Take]]) -> LogprobComparison:
    """What the engine said of its takes, against the trainer's pass over them behind `prompts`, temperature 1."""
    scored = group_logprobs(model, prompts, [[take.token_ids for take in group] for group in groups], 1.0)
    sampler = torch.cat([take.sampler_logprobs for group in groups for take in group])
    return compare_logprobs(sampler, torch.cat(scored), torch.ones_like(sampler, dtype=torch.bool))


if __name__ == "__main__":
    main()
