"""`longtake ask`: one question about a user's own video."""

from __future__ import annotations

import time

from rich.console import Console

from longtake.answers import parse_response
from longtake.config.stages import AskConfig
from longtake.data.embedding_cache import EmbeddingCache, digest_index
from longtake.data.render import render_prompt
from longtake.data.rows import parse_options
from longtake.data.videos import VideoSource
from longtake.models import Model, load_model
from longtake.observe.progress import say
from longtake.observe.timing import Phases, peak_memory_bytes
from longtake.rollout.engine import Engine, RolloutRequest, SamplingParams
from longtake.rollout.engines import server_engine
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.rollout.vllm_arguments import require_vllm
from longtake.rollout.vllm_http import VllmHttp
from longtake.types import Example, Take, VideoTokens
from longtake.video.paths import regular_file
from longtake.video.subtitles import read_srt


def run(config: AskConfig) -> None:
    """Print the reasoning and the answer on stdout; tokens, seconds and memory on stderr."""
    started, phases = time.perf_counter(), Phases()
    index = digest_index(config.cache, None, config.frames.limits)
    reference = index.ref(regular_file(config.video))
    index.save()
    model = load_model(config.model)
    tokens = VideoSource(model, config.frames, phases, EmbeddingCache(config.cache)).tokens(reference)
    prompt = render_prompt(example_of(config), (tokens,), model, config.prompt)
    params = SamplingParams(1, config.rollout.temperature, config.rollout.max_new_tokens, config.seed, 0)
    engine = engine_of(config, model)
    with phases("answer"):
        ((take,),) = engine.generate([RolloutRequest(0, prompt)], params)
    show(take)
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in phases.seconds.items())
    say(
        f"{describe_video(tokens)}; prompt {len(prompt.token_ids):,} tokens, response {len(take.token_ids)}; {seconds}, "
        f"in all {time.perf_counter() - started:.1f} s; peak memory {peak_memory_bytes() / 2**30:.2f} GiB"
    )


def engine_of(config: AskConfig, model: Model) -> Engine:
    """The model itself, or the server that was named, with the weights it has."""
    if config.server is None:
        return TransformersEngine(model, 1)
    require_vllm("--server")
    return server_engine(model, VllmHttp(config.server, config.timeout_s))


def example_of(config: AskConfig) -> Example:
    subtitles = "\n".join(cue.text for cue in read_srt(regular_file(config.subtitles))) if config.subtitles else None
    options = parse_options(config.question, "the question")
    return Example(0, config.question, options, "", "letter" if options else "text", "general", "", (), subtitles, None)


def show(take: Take) -> None:
    """Reasoning and answer apart where the response has that form, else the response as it is."""
    console = Console(highlight=False)
    parsed = parse_response(take.text)
    if parsed.answer is None:
        console.print(take.text, markup=False)
        say("(no <answer> in the response: a base model that was not trained on questions answers freely)", style="yellow")
    else:
        console.print(f"Reasoning: {parsed.think or '(none)'}\nAnswer: {parsed.answer}", markup=False)
    if take.finish_reason == "length":
        say("(the response was cut at rollout.max_new_tokens)", style="yellow")


def describe_video(tokens: VideoTokens) -> str:
    groups, rows, columns = tokens.grid
    return f"video: {groups} temporal groups of {rows} x {columns} patches, {len(tokens.embeddings):,} tokens"
