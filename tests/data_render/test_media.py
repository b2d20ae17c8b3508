"""Rows of one video, two videos, a video and images, images, text: from files to one training step, everything real."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from longtake.config.sections import CacheConfig, DataConfig, ModelConfig, OptimizerConfig, PromptConfig, VideoConfig
from longtake.data.embedding_cache import EmbeddingCache
from longtake.data.render import longest_prompt, render_prompt
from longtake.data.row_files import write_rows
from longtake.data.rows import read_examples
from longtake.data.videos import VideoSource
from longtake.errors import VideoDamagedError, VideoError
from longtake.observe.timing import Phases
from longtake.parallel.packed import pack_groups, pack_rows
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.testing.models import norm_in_own_dtype, random_tiny
from longtake.testing.takes import score_slowly
from longtake.testing.videos import write_video
from longtake.training.optimizer import build_optimizer
from longtake.training.packed_policy import packed_logprobs
from longtake.training.trainable import choose_trainable, training_mode
from longtake.types import Example, Row, VideoRef

PROMPT = PromptConfig(instruction="Answer.")
VIDEO = VideoConfig(max_frames=6, max_pixels_per_frame=56 * 84)
MEDIA = {
    "video": (("a.mp4",), ()),
    "two videos": (("b.mp4", "a.mp4"), ()),
    "a video and two images": (("a.mp4",), ("x.png", "y.png")),
    "two images": ((), ("y.png", "x.png")),
    "text": ((), ()),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two videos, two pictures of noise, and a row for each combination."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for name, (height, width) in (("a.mp4", (56, 84)), ("b.mp4", (56, 56))):
        write_video(folder / name, [0.5 * frame for frame in range(6)], height=height, width=width)
    for name, size in (("x.png", (60, 90)), ("y.png", (300, 200))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    rows = []
    for number, (videos, images) in enumerate(MEDIA.values(), 1):
        kind = "video" if videos else "image" if images else "text"
        rows.append(Row(number, f"Who is it? {number}", kind, "plot", "see", videos, "<answer>red</answer>", images=images))
    write_rows(folder / "rows.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def examples(folder: Path) -> dict[str, Example]:
    found = read_examples(DataConfig(rows=folder / "rows.jsonl"))
    assert all(isinstance(one, Example) for one in found)
    return dict(zip(MEDIA, found, strict=True))  # type: ignore[arg-type]


def prompts_of(model, examples: dict[str, Example], source: VideoSource | None = None):
    source = VideoSource(model, VIDEO, Phases()) if source is None else source
    return [render_prompt(one, [source.tokens(ref) for ref in one.media], model, PROMPT) for one in examples.values()]


@pytest.mark.parametrize("name", MEDIA)
def test_equal_to_the_processor_token_for_token(tmp_path: Path, examples: dict[str, Example], name: str):
    """The family's own processor gets the pictures as we resized them, and expands its own template."""
    model, example = random_tiny(tmp_path), examples[name]
    processor = AutoProcessor.from_pretrained(tmp_path / "random_tiny_0")
    source = VideoSource(model, VIDEO, Phases())
    frames = [source._decode(ref).pixels for ref in example.media]
    content = [*({"type": ref.kind} for ref in example.media), {"type": "text", "text": f"{example.question}\nAnswer."}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
    videos = [pixels for pixels, ref in zip(frames, example.media, strict=True) if ref.kind == "video"]
    images = [Image.fromarray(pixels[0]) for pixels, ref in zip(frames, example.media, strict=True) if ref.kind == "image"]
    options = {"do_resize": False} if example.media else {}
    if videos:
        options |= {"do_sample_frames": False, "cap_pixels_per_frame": False}
    theirs = processor(text=[text], videos=videos or None, images=images or None, **options)
    prompt = render_prompt(example, [source.tokens(ref) for ref in example.media], model, PROMPT)
    assert prompt.token_ids.tolist() == theirs["input_ids"][0]
    for kind in ("video", "image"):
        wanted = theirs[f"{kind}_grid_thw"].tolist() if f"{kind}_grid_thw" in theirs else []
        assert wanted == [list(span.tokens.grid) for span in prompt.spans if span.tokens.kind == kind]
    assert [span.tokens.kind for span in prompt.spans] == [ref.kind for ref in example.media]


def test_positions_go_on_after_each(tmp_path: Path, examples: dict[str, Example]):
    """Before the first: <|im_start|>user\\n<|vision_start|>. Between two: <|vision_end|><|vision_start|>, two positions."""
    model = random_tiny(tmp_path)
    prompt = prompts_of(model, {"": examples["a video and two images"]})[0]
    start = prompt.spans[0].start
    for span in prompt.spans:
        assert prompt.position_ids[:, span.start].tolist() == [start] * 3
        groups, rows, columns = span.tokens.grid
        # the last group: floor(g * seconds * tokens per second) behind the start; 2 frames of 0.5 s are 1 s
        last = start + max(int((groups - 1) * span.tokens.seconds_per_grid * model.tokens_per_second), rows // 2 - 1, columns // 2 - 1)
        start = last + 1 + 2
    assert prompt.next_position == start - 2 + (len(prompt.token_ids) - prompt.spans[-1].stop)


def test_the_bound_of_the_longest_prompt_holds(tmp_path: Path, examples: dict[str, Example]):
    model = random_tiny(tmp_path)
    for name, example in examples.items():
        (prompt,) = prompts_of(model, {name: example})
        assert len(prompt.token_ids) <= longest_prompt([example], model, VIDEO, PROMPT)
    one, two = (longest_prompt([examples[name]], model, VIDEO, PROMPT) for name in ("video", "two videos"))
    assert two - one >= 3 * 2 * 3, "the second video has room of its own: 3 groups of 2 x 3 tokens"


def test_sampler_and_policy_agree_and_packed_equals_one_row_per_take(tmp_path: Path, examples: dict[str, Example]):
    """One mixed batch. Measured: sampler against policy 1.4e-6 at log-probs of -6; in float64 packed against single rows 1e-14."""
    model = random_tiny(tmp_path)
    prompts = prompts_of(model, examples)
    params = SamplingParams(num_takes=3, temperature=1.0, max_new_tokens=12, seed=1, step=0)
    groups = TransformersEngine(model).generate([RolloutRequest(key, prompt) for key, prompt in enumerate(prompts)], params)
    responses = [[take.token_ids for take in group] for group in groups]
    packed = pack_groups(prompts, responses, model.device)
    with torch.no_grad():
        policy, _ = packed_logprobs(model, packed, 1.0)
    sampler = [take.sampler_logprobs for group in groups for take in group]
    assert worst(policy, sampler) < 1e-5 and min(float(one.mean()) for one in sampler) < -1
    exact = random_tiny(tmp_path, dtype="float64")
    with norm_in_own_dtype(exact), torch.no_grad():
        own = prompts_of(exact, examples)
        together, _ = packed_logprobs(exact, pack_groups(own, responses, exact.device), 1.0)
        flat = [(prompt, take) for prompt, takes in zip(own, responses, strict=True) for take in takes]
        rows, _ = packed_logprobs(exact, pack_rows([prompt for prompt, _ in flat], [take for _, take in flat], exact.device), 1.0)
        slow = [score_slowly(exact, prompt, take)[0] for prompt, take in flat]
    assert worst(together, slow) < 1e-11 and worst(rows, slow) < 1e-11


@pytest.mark.parametrize("fault", ["order", "other image", "flipped image", "position"])
def test_a_fault_in_the_media_shows(tmp_path: Path, examples: dict[str, Example], fault: str):
    """Negative control: takes sampled behind the right prompt, scored behind a wrong one."""
    model = random_tiny(tmp_path)
    name = "two images" if fault == "order" else "a video and two images"
    (prompt,) = prompts_of(model, {name: examples[name]})
    params = SamplingParams(num_takes=4, temperature=1.0, max_new_tokens=12, seed=1, step=0)
    (takes,) = TransformersEngine(model).generate([RolloutRequest(0, prompt)], params)
    first, *rest = prompt.spans
    if fault == "order":
        source = VideoSource(model, VIDEO, Phases())
        wrong = render_prompt(examples[name], [source.tokens(ref) for ref in examples[name].media[::-1]], model, PROMPT)
    elif fault == "other image":
        size = min(len(span.tokens.embeddings) for span in rest)
        mixed = torch.cat([rest[0].tokens.embeddings[:size], rest[1].tokens.embeddings[size:]])
        wrong = replace(prompt, spans=(first, rest[0], replace(rest[1], tokens=replace(rest[1].tokens, embeddings=mixed))))
    elif fault == "flipped image":
        flipped = replace(rest[0], tokens=replace(rest[0].tokens, embeddings=rest[0].tokens.embeddings.flip(0)))
        wrong = replace(prompt, spans=(first, flipped, rest[1]))
    else:  # text behind an image begins inside its columns
        positions = prompt.position_ids.clone()
        positions[:, rest[-1].stop :] -= 1
        wrong = replace(prompt, position_ids=positions, next_position=prompt.next_position - 1)
    with torch.no_grad():
        scored, _ = packed_logprobs(model, pack_groups([wrong], [[take.token_ids for take in takes]], model.device), 1.0)
    assert worst(scored, [take.sampler_logprobs for take in takes]) > 1e-3


def worst(found: torch.Tensor, wanted: list[torch.Tensor]) -> float:
    """Largest difference of log-probs [M, R] and those of each take."""
    return max(float((found[row, : len(one)] - one).abs().max()) for row, one in enumerate(wanted))


def test_a_step_on_a_mixed_batch_learns(tmp_path: Path, examples: dict[str, Example]):
    """Every row's target gets likelier, the text-only row's too; the tower stays as it is."""
    model = random_tiny(tmp_path)
    choose_trainable(model, ModelConfig())
    prompts = prompts_of(model, examples)
    targets = [torch.tensor([*model.text_ids(f"answer {number}"), model.end_id]) for number in range(len(prompts))]
    packed = pack_rows(prompts, targets, model.device)
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-3, schedule="constant"), 10)
    with training_mode(model):
        before, _ = packed_logprobs(model, packed, 1.0)
        (-before.sum()).backward()
    optimizer.step()
    with torch.no_grad():
        after, _ = packed_logprobs(model, packed, 1.0)
    assert (after.sum(1) > before.sum(1)).all()


def test_a_folder_keeps_images_beside_videos_and_a_hit_reads_no_file(tmp_path: Path, folder: Path, examples: dict[str, Example]):
    model = random_tiny(tmp_path)
    config = CacheConfig(folder=tmp_path / "cache")
    first = prompts_of(model, examples, VideoSource(model, VIDEO, Phases(), EmbeddingCache(config)))
    source = VideoSource(model, VIDEO, Phases(), EmbeddingCache(config))
    again = prompts_of(model, examples, source)
    assert [prompt.digest for prompt in again] == [prompt.digest for prompt in first]
    assert source.metrics()["video/decoded"] == 0 and source.metrics()["cache/disk_hits"] == 4
    for one, other in zip(first, again, strict=True):
        for span, same in zip(one.spans, other.spans, strict=True):
            assert span.tokens.kind == same.tokens.kind and torch.equal(span.tokens.embeddings, same.tokens.embeddings)
    smaller = VideoSource(model, VIDEO.model_copy(update={"max_pixels_per_frame": 28 * 56}), Phases(), EmbeddingCache(config))
    assert prompts_of(model, examples, smaller)[3].digest != first[3].digest, "the size is in an image's key too"


def test_the_number_of_frames_is_not_in_an_images_key(tmp_path: Path, examples: dict[str, Example]):
    """`longtake evaluate` at several numbers of frames encodes a picture once."""
    model, cache = random_tiny(tmp_path), EmbeddingCache()
    (x, _) = examples["two images"].media
    sources = [VideoSource(model, VIDEO.model_copy(update={"max_frames": count}), Phases(), cache) for count in (4, 6)]
    assert sources[0].tokens(x) is sources[1].tokens(x)
    assert sources[1].metrics()["video/decoded"] == 0


def test_a_video_named_as_an_image_and_a_picture_as_a_video(tmp_path: Path, folder: Path):
    """One picture is a video to the decoder (of one frame, shown for a temporal group); a video is no picture."""
    source = VideoSource(random_tiny(tmp_path), VIDEO, Phases())
    with pytest.raises(VideoError, match="no picture"):
        source.tokens(VideoRef(folder / "a.mp4", "a", kind="image"))
    assert source.metrics()["video/failed"] == 1


def test_a_picture_that_changes_while_it_is_used_is_refused(tmp_path: Path, folder: Path):
    Image.new("RGB", (56, 56)).save(tmp_path / "p.png")
    status = (tmp_path / "p.png").stat()
    ref = VideoRef(tmp_path / "p.png", "p", (status.st_size, status.st_mtime_ns + 1), "image")
    with pytest.raises(VideoDamagedError, match="changed"):
        VideoSource(random_tiny(tmp_path), VIDEO, Phases()).tokens(ref)
