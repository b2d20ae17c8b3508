"""`longtake score`: equal to transformers' own forward of one row per response, in every layout; bad lines keep their place and are told.

Values: max|difference| / max|reference| of log-probs over all tokens, float32: measured 2.1e-7 at worst over all cases, allowed 1e-5. A
position that is off by one moves them by 4.4e-2, a temperature of 0.81 for 0.8 by 4.8e-3.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from longtake.cli import main
from longtake.config.load import dump_config
from longtake.config.score import ScoreConfig
from longtake.config.sections import ModelConfig
from longtake.config.stages import RlConfig
from longtake.data.render import render_prompt
from longtake.data.responses import Response, Scored, Vocabulary, checked, read_line, read_responses
from longtake.data.rows import SourcedRow, read_examples
from longtake.data.videos import VideoSource
from longtake.models import load_model
from longtake.observe.timing import Phases
from longtake.parallel.mesh import start_world
from longtake.stages import rl as rl_stage
from longtake.stages import score as stage
from longtake.stages import score_units
from longtake.testing.processes import run_processes
from longtake.testing.training import merged
from longtake.types import Example, Failure, Prompt, Row

Capture = pytest.CaptureFixture[str]
Make = Callable[..., ScoreConfig]
Record = dict[str, Any]
TEMPERATURE = 0.8
TOLERANCE = 1e-5
SIGNAL = 1e-3
"""What a mistake must show at least."""
LENGTHS = (5, 0, 9, 1, 7, 3, 12, 4, 0, 6, 2, 8)
"""Of the responses; they answer the first five rows in turn, the second one more often."""


@pytest.fixture(scope="module")
def ids(rows: Path) -> list[int]:
    return [json.loads(line)["problem_id"] for line in rows.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def asked(ids: list[int]) -> list[Record]:
    """Responses in no order; the field `note` is for nobody."""
    draw = torch.Generator().manual_seed(7)
    order = [ids[index] for index in (3, 1, 0, 1, 4, 2, 1, 0, 3, 1, 2, 4)]
    return [
        {"note": f"ä {place}", "problem_id": problem_id, "token_ids": torch.randint(10, 250, (length,), generator=draw).tolist()}
        for place, (problem_id, length) in enumerate(zip(order, LENGTHS, strict=True))
    ]


@pytest.fixture
def score(rows: Path, base: Path, tmp_path: Path) -> Make:
    """score(lines, **changes): a configuration whose responses are these lines (records, or text as it is)."""

    def make(lines: list[Record | str], **changes: Any) -> ScoreConfig:
        path = tmp_path / "responses.jsonl"
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), encoding="utf-8")
        common = {
            "responses": path,
            "out": tmp_path / "scored.jsonl",
            "model": {"path": str(base), "device": "cpu"},
            "video": {"max_frames": 4, "max_pixels_per_frame": 28 * 28},
            "prompt": {"instruction": ""},
            "data": {"rows": rows},
            "temperature": TEMPERATURE,
            "num_threads": 1,
        }
        return ScoreConfig.model_validate(merged(common, changes))

    return make


def saved(config: ScoreConfig) -> str:
    path = config.out.with_name("score.json")
    path.write_text(dump_config(config), encoding="utf-8")
    return str(path)


def scored(config: ScoreConfig, *options: str, code: int = 0) -> list[Record]:
    assert main(["score", saved(config), *options]) == code
    return written(config)


def written(config: ScoreConfig) -> list[Record]:
    return [json.loads(line) for line in config.out.read_text(encoding="utf-8").splitlines()]


def launched(config: ScoreConfig, num_processes: int, *options: str) -> list[Record]:
    assert run_processes(main, num_processes, ["score", saved(config), *options], timeout_s=200) == [0] * num_processes
    return written(config)


def error(found: list[Record], wanted: list[torch.Tensor]) -> float:
    """max|difference| / max|reference| over all tokens."""
    assert [len(record["logprobs"]) for record in found] == [len(one) for one in wanted]
    values = torch.tensor([value for record in found for value in record["logprobs"]], dtype=torch.float64)
    reference = torch.cat(wanted).double()
    return float((values - reference).abs().max() / reference.abs().max())


@pytest.fixture(scope="module")
def prompts(rows: Path, base: Path) -> dict[int, Prompt]:
    config = ScoreConfig.model_validate(
        {
            "responses": "r.jsonl",
            "out": "o.jsonl",
            "video": {"max_frames": 4, "max_pixels_per_frame": 28 * 28},
            "prompt": {"instruction": ""},
            "data": {"rows": rows},
        }
    )
    model = load_model(ModelConfig(path=str(base), device="cpu"))
    source = VideoSource(model, config.video, Phases())
    examples = [item for item in read_examples(config.data) if isinstance(item, Example)]
    return {one.problem_id: render_prompt(one, [source.tokens(ref) for ref in one.media], model, config.prompt) for one in examples}


@pytest.fixture(scope="module")
def wanted(asked: list[Record], prompts: dict[int, Prompt], base: Path) -> list[torch.Tensor]:
    """By transformers alone, with its eager attention: of ours are only the prompts."""
    hf = Qwen2_5_VLForConditionalGeneration.from_pretrained(base, attn_implementation="eager", dtype=torch.float32).eval()
    vocabulary = AutoTokenizer.from_pretrained(base).get_vocab()
    media = {vocabulary[name] for name in vocabulary if name.startswith("<|vision_") or name in ("<|image_pad|>", "<|video_pad|>")}
    banned = sorted(media | (set(range(hf.lm_head.out_features)) - set(vocabulary.values())))
    return [row_by_hand(hf, prompts[one["problem_id"]], torch.tensor(one["token_ids"], dtype=torch.int64), banned) for one in asked]


@torch.no_grad()
def row_by_hand(hf: Any, prompt: Prompt, response: torch.Tensor, banned: list[int]) -> torch.Tensor:
    """float32 [R]: one row of prompt and response."""
    embeds = hf.get_input_embeddings()(torch.cat([prompt.token_ids, response]))
    for span in prompt.spans:
        embeds[span.start : span.stop] = span.tokens.embeddings
    behind = (prompt.next_position + torch.arange(len(response))).expand(3, -1)
    position_ids = torch.cat([prompt.position_ids, behind], dim=1)[:, None]
    hidden = hf.model.language_model(inputs_embeds=embeds[None], position_ids=position_ids, use_cache=False).last_hidden_state[0]
    logits = hf.lm_head(hidden[len(prompt.token_ids) - 1 :][: len(response)])
    logits[:, banned] = float("-inf")
    return (logits / TEMPERATURE).log_softmax(-1).gather(1, response[:, None])[:, 0]


@pytest.mark.parametrize("layout", ["naive", "shared"])
@pytest.mark.parametrize("max_tokens", [32_768, 150, 1])
def test_values_are_those_of_one_row_per_response(
    score: Make, asked: list[Record], wanted: list[torch.Tensor], layout: str, max_tokens: int, capfd: Capture
) -> None:
    """All in one forward, some, and one response at a time behind a held prompt."""
    found = scored(score(asked, layout=layout), "--max-tokens", str(max_tokens))
    assert error(found, wanted) <= TOLERANCE
    assert [{name: one[name] for name in ("note", "problem_id", "token_ids")} for one in found] == asked
    assert list(found[0]) == ["note", "problem_id", "token_ids", "logprobs"]
    told = capfd.readouterr()
    assert "score: 12 responses to 5 rows: 12 scored, 57 tokens; 0 failed; " + layout in told.err and told.out == ""


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        (("--layout", "shared", "--sp", "2", "--ring", "1"), 2),
        (("--layout", "shared", "--sp", "2", "--ring", "2"), 2),
        (("--layout", "naive", "--sp", "2", "--ring", "2"), 2),
        (("--layout", "shared", "--sp", "2", "--ring", "2", "--max-tokens", "150"), 2),
        (("--layout", "shared"), 3),
        (("--layout", "naive", "--sp", "2"), 4),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_processes_change_nothing(
    score: Make, asked: list[Record], wanted: list[torch.Tensor], options: tuple[str, ...], processes: int
) -> None:
    """Ulysses, ring, a group in chunks over a ring; data ranks with unequal shares; both."""
    assert error(launched(score(asked), processes, *options), wanted) <= TOLERANCE


def score_shifted(argv: list[str]) -> int:
    """Every response one position too late, in each process of a launch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_units, "render_prompt", shifted)
        return main(argv)


RENDER = score_units.render_prompt


def shifted(*args: Any) -> Prompt:
    prompt = RENDER(*args)
    return replace(prompt, next_position=prompt.next_position + 1)


def groups_encoded(argv: list[str]) -> int:
    """By the tower of this process, for all of a launch's responses."""
    jobs = []
    prepare = stage.prepare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "prepare", lambda *args: jobs.append(prepare(*args)) or jobs[0])
        assert main(argv) == 0
    return jobs[0].model.groups_encoded


@pytest.mark.parametrize("sp", ["1", "2"])
def test_a_video_is_encoded_once_in_all_processes_together(score: Make, asked: list[Record], sp: str) -> None:
    """Three videos of two temporal groups, for twelve responses to five rows."""
    assert sum(run_processes(groups_encoded, 2, ["score", saved(score(asked)), "--sp", sp], timeout_s=200)) == 6


def test_a_wrong_position_or_token_shows(score: Make, asked: list[Record], wanted: list[torch.Tensor]) -> None:
    """Negative controls of the tests above."""
    assert error(scored(score(asked), "--temperature", "0.81"), wanted) > SIGNAL
    changed = [one | {"token_ids": one["token_ids"][::-1]} for one in asked]
    assert error(scored(score(changed)), wanted) > SIGNAL
    for layout in ("naive", "shared"):
        argv = ["score", saved(score(asked, layout=layout)), "--sp"]
        assert score_shifted([*argv, "1"]) == 0
        assert error(written(score(asked)), wanted) > SIGNAL
        assert run_processes(score_shifted, 2, [*argv, "2"], timeout_s=200) == [0, 0]
        assert error(written(score(asked)), wanted) > SIGNAL


def test_entropies_on_request(score: Make, asked: list[Record]) -> None:
    naive, shared = (scored(score(asked), "--entropies", "--layout", layout) for layout in ("naive", "shared"))
    first, second = (torch.tensor([value for one in found for value in one["entropies"]]) for found in (naive, shared))
    assert len(first) == sum(LENGTHS) and bool((first > 0).all()) and float((first - second).abs().max()) <= TOLERANCE * float(first.max())


def test_takes_of_a_run_score_as_they_were_sampled(rl: Callable[..., RlConfig]) -> None:
    """takes.jsonl and config.json as they are, of the first step: the sampler's log-probs by another path, under the same weights.

    Measured 1.7e-7.
    """
    run = rl("run", steps=1, rollout={"temperature": TEMPERATURE})
    rl_stage.run(run)
    takes = [json.loads(line) for line in (run.out / "takes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(takes) == 12
    run_file = run.out / "config.json"
    out = run.out / "scored.jsonl"
    assert main(["score", str(run_file), "--responses", str(run.out / "takes.jsonl"), "--out", str(out)]) == 0
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [{name: one[name] for name in take} for one, take in zip(found, takes, strict=True)] == takes
    assert error(found, [torch.tensor(take["sampler_logprobs"]) for take in takes]) <= TOLERANCE


BAD: dict[str, tuple[Record | str, str]] = {
    "no JSON": ('{"problem_id": 1', "not JSON"),
    "an array": ("[1, 2]", "a JSON list"),
    "not a number": ('{"problem_id": 1, "token_ids": [NaN]}', "NaN is not a JSON number"),
    "deep": ("[" * 100_000, "nested too deep"),
    "field twice": ('{"problem_id": 1, "token_ids": [], "token_ids": [5]}', "'token_ids' stands there twice"),
    "reserved field": ({"problem_id": 1, "token_ids": [5], "logprobs": [-1.0]}, "it has a field logprobs already"),
    "no problem_id": ({"token_ids": [5]}, "no field problem_id"),
    "problem_id a text": ({"problem_id": "1", "token_ids": [5]}, "problem_id '1' of type str"),
    "no token_ids": ({"problem_id": 1}, "no field token_ids"),
    "token_ids a text": ({"problem_id": 1, "token_ids": "5"}, "token_ids is of type str"),
    "token a float": ({"problem_id": 1, "token_ids": [5, 6.0]}, "token_ids[1] = 6.0 of type float"),
    "token true": ({"problem_id": 1, "token_ids": [True]}, "token_ids[0] = True of type bool"),
    "negative": ({"problem_id": 1, "token_ids": [-1]}, "token_ids[0] = -1. Rule: the model's token ids are 0 to"),
    "outside": ({"problem_id": 1, "token_ids": [5, 10**6]}, "token_ids[1] = 1000000. Rule: the model's token ids are 0 to"),
    "huge": ({"problem_id": 1, "token_ids": [10**30]}, "token_ids[0] = of 100 bits"),
    "media placeholder": ({"problem_id": 1, "token_ids": [5, "VIDEO"]}, "which can never be sampled"),
    "unknown row": ({"problem_id": 987654, "token_ids": [5]}, "problem_id 987654 is in no row of rows.jsonl"),
}


def test_bad_lines_keep_their_place_and_are_told(score: Make, asked: list[Record], base: Path, capfd: Capture) -> None:
    """Each between two good ones. What could be read of a line is there still, the others as text."""
    video_id = load_model(ModelConfig(path=str(base), device="cpu")).placeholder_ids["video"]
    bad = [json.loads(json.dumps(line).replace('"VIDEO"', str(video_id))) for line, _ in BAD.values()]
    lines = [line for pair in zip(asked * 2, bad) for line in pair]  # noqa: B905 (as many good ones as bad ones)
    found = scored(score(lines, data={"max_failed_fraction": 0.5}))
    assert len(found) == 2 * len(BAD)
    assert [one["problem_id"] for one in found[::2]] == [one["problem_id"] for one in (asked * 2)[: len(BAD)]]
    assert all("logprobs" in one and "error" not in one for one in found[::2])
    for place, (one, line, (_, message)) in enumerate(zip(found[1::2], bad, BAD.values(), strict=True)):
        assert message in one["error"]["message"] and one["error"]["kind"] == "RowError" and "logprobs" not in one.keys() - set(line)
        assert all(part in one["error"]["message"] for part in (". Rule: ", ". Remedy: "))
        if isinstance(line, dict) and "logprobs" not in line:
            assert {name: one[name] for name in line} == line
        else:
            assert one["line"] == 2 * place + 2 and one["given"] == (line if isinstance(line, str) else json.dumps(line))
    told = capfd.readouterr().err
    assert f"{2 * len(BAD)} responses to 5 rows: {len(BAD)} scored" in told and f"{len(BAD)} failed (RowError {len(BAD)})" in told
    assert f"and {len(BAD) - 5} more errors" in told


def test_too_many_bad_lines_are_an_exit_code(score: Make, asked: list[Record], capfd: Capture) -> None:
    """After everything is written."""
    found = scored(score([*asked, "{}", "{}"]), code=2)
    assert len(found) == 14 and [one for one in found if "error" in one] == found[-2:]
    assert "2 of 14 rows cannot be used (2 RowError)" in capfd.readouterr().err


def test_bytes_that_are_no_text_and_a_line_without_end(score: Make, asked: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.data.responses.MAX_LINE_BYTES", 200)
    config = score(asked[:1])
    config.responses.write_bytes(b'\xff{}\n\n{"problem_id": "' + b"x" * 2000 + b'"}\n' + config.responses.read_bytes().rstrip())
    first, second, third = (one.content for one in read_responses(config.responses, Vocabulary(512, frozenset())))
    assert isinstance(first, Failure) and "line 1: not UTF-8 at byte 0" in first.message
    assert isinstance(second, Failure) and "line 3: longer than 200 bytes; of it 1000 characters are kept" in second.message
    assert not isinstance(third, Failure) and third.token_ids.tolist() == asked[0]["token_ids"]


def damaged(rows: Path, folder: Path) -> tuple[Path, Row]:
    """A copy of the world in which the video of the first row is cut in half."""
    shutil.copytree(rows.parent, folder)
    first = json.loads(rows.read_text(encoding="utf-8").splitlines()[0])
    video = folder / first["videos"]
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    return folder / rows.name, first


@pytest.mark.parametrize("processes", [1, 2])
def test_a_damaged_video_fails_its_responses_alone(score: Make, rows: Path, tmp_path: Path, asked: list[Record], processes: int) -> None:
    path, first = damaged(rows, tmp_path / "world")
    with path.open("a", encoding="utf-8") as file:  # two rows of one id: nobody knows which was answered
        file.write(json.dumps(first | {"problem_id": asked[0]["problem_id"]}) + "\n")
    config = score(asked, data={"rows": path, "max_failed_fraction": 0.9})
    found = scored(config) if processes == 1 else launched(config, 2, "--sp", "2")
    of_video = {one["problem_id"] for one in map(json.loads, path.read_text().splitlines()) if one["videos"] == first["videos"]}
    for one in found:
        kind = "RowError" if one["problem_id"] == asked[0]["problem_id"] else "VideoDamagedError" if one["problem_id"] in of_video else None
        assert one.get("error", {}).get("kind") == kind and ("logprobs" in one) == (kind is None)


def disagree() -> tuple[str, str]:
    """What rank 1 alone fails with, and what both say of prompts that differ."""
    row = SourcedRow(Row(3, "?", "text", "plot", "", (), "<answer>1</answer>"), "", Path(), False)
    with start_world(torch.device("cpu"), timeout_s=60) as world:
        own = Prompt(torch.ones(1), torch.ones(3, 1), (), 1, f"digest {world.rank}")
        failed = Failure(3, "video", "VideoMissingError", "gone") if world.rank else replace(own, digest="same")
        both = [score_units.agreed(one, lambda prompt: prompt.digest, row, world.axis) for one in (failed, own)]
    assert all(isinstance(one, Failure) for one in both)
    return both[0].message, both[1].message


def test_what_fails_in_one_process_fails_in_all() -> None:
    told = run_processes(disagree, 2)
    assert told[0] == told[1] and told[0][0] == "gone" and "problem 3: its video or prompt is not the same in all processes" in told[0][1]


def test_nonsense_of_the_model_is_no_number(asked: list[Record]) -> None:
    response = read_line(1, json.dumps(asked[0]).encode(), "r.jsonl", Vocabulary(512, frozenset())).content
    assert isinstance(response, Response)
    outcome = checked(Scored([-1.0, float("nan")], [0.0, 0.0]), response)
    assert isinstance(outcome, Failure) and outcome.kind == "ModelError" and "token_ids[1] is nan" in outcome.message


def test_what_was_there_stays_until_all_is_scored(score: Make, asked: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    config = score(asked)
    config.out.write_text("before\n")
    monkeypatch.setattr("longtake.data.responses.encode_line", lambda record: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        main(["score", saved(config)])
    assert config.out.read_text() == "before\n"


REFUSED = {
    "sp and processes": (["--sp", "2"], "sp = 2 in a launch of 1 processes"),
    "ring and sp": (["--sp", "4", "--ring", "3"], "the ring's size divides sp"),
    "sp and Ulysses": (["--sp", "4", "--parallel.ulysses", "2"], "give sp and parallel.ring alone"),
    "temperature": (["--temperature", "0"], "temperature"),
    "layout": (["--layout", "flat"], "layout"),
    "out is read": (["--out", "RESPONSES"], "nothing that was given is replaced"),
    "out is a folder": (["--out", "runs/x"], "name a file NAME.jsonl"),
    "option of the run": (["--steps", "3"], "unknown option --steps"),
    "no responses": (["--responses", "nothing.jsonl"], "nothing.jsonl is no file"),
    "no rows": (["--data.rows", "nothing.jsonl"], "nothing.jsonl"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(score: Make, asked: list[Record], capfd: Capture, name: str) -> None:
    options, message = REFUSED[name]
    config = score(asked)
    options = [str(config.responses) if option == "RESPONSES" else option for option in options]
    assert main(["score", saved(config), *options]) == 2
    assert message in " ".join(capfd.readouterr().err.split())
    assert not config.out.exists()


def test_an_empty_file_is_refused(score: Make, capfd: Capture) -> None:
    assert main(["score", saved(score(["", "  "]))]) == 2
    assert "holds no response" in capfd.readouterr().err


@pytest.mark.parametrize("ring", [1, 2])
def test_torchrun_starts_it(score: Make, asked: list[Record], wanted: list[torch.Tensor], ring: int) -> None:
    config = score(asked)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "longtake", "score", saved(config), "--layout", "shared", "--sp", "2", "--ring", str(ring)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("score: 12 responses to 5 rows: 12 scored") == 1
    assert f"shared on 2 processes, sp 2 (ring {ring} x Ulysses {2 // ring})" in done.stderr
    assert error(written(config), wanted) <= TOLERANCE
