"""`longtake curate run` from end to end against a world's oracle: resumed, sharded, on a server that misbehaves, killed."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from longtake.config.env import one_thread
from longtake.config.stages import WorldConfig
from longtake.config.world_serve import LieRates
from longtake.curation.card import FIGURES
from longtake.curation.outputs import read_stage
from longtake.errors import BudgetError, ConfigError, CurationError
from longtake.stages import curate
from longtake.testing.curations import answers_in, asked_again, asked_oracle, checked, curate_values, misbehaving, outputs_of
from longtake.testing.llm_server import LlmServer, Reply, refused, said
from longtake.testing.policy import answering_model, policy_config, small_world
from longtake.world.write import write_world

LIES = LieRates(captions=0.1, answers=0.1, planted=0.3)
NUM_KILLS = 20
LATENCY_S = 0.1
JUST_ANSWERED_S = 0.4
"""A kill this soon after an answer left the server may come before the answer was written down: milliseconds on a quiet machine, but the
server shares the cores with what it serves."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("curated") / "world"
    write_world(WorldConfig(out=out, num_videos=4, seed=11, workers=1))
    return out


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    with asked_oracle(world, LIES) as server:
        curate.run(checked(curate_values(world, out, server.url)))
    return outputs_of(out)


def test_rows_come_out_and_everything_is_accounted_for(world: Path, tmp_path: Path):
    with asked_oracle(world, LIES) as server:
        curate.run(checked(curate_values(world, tmp_path, server.url)))
    drafts, checks = read_stage(tmp_path, "question"), read_stage(tmp_path, "check")
    rewritten, splits = read_stage(tmp_path, "rewrite"), read_stage(tmp_path, "split")
    assert drafts and checks and rewritten and splits
    assert len(drafts.kept) >= 16
    refused = {drop.key for drop in (*checks.dropped, *rewritten.dropped) if drop.key}
    kept = {row.draft.key for row in checks.kept}
    assert {draft.key for draft in drafts.kept} == refused | kept and not refused & kept
    placed = {one.row.draft.key for one in splits.kept} | {drop.key for drop in splits.dropped}
    assert placed == kept
    rows = [json.loads(line) for path in (tmp_path / "dataset").glob("*.jsonl") if path.stem != "drops" for line in path.open()]
    assert {row["key"] for row in rows} == {one.row.draft.key for one in splits.kept}


def test_a_second_run_asks_nothing_and_gives_the_same(world: Path, tmp_path: Path, undisturbed):
    with asked_oracle(world, LIES) as server:
        config = checked(curate_values(world, tmp_path, server.url))
        curate.run(config)
        num_asked = len(server.requests)
        curate.run(config)
        assert len(server.requests) == num_asked > 100
    assert outputs_of(tmp_path) == undisturbed


def test_shards_and_a_last_run_give_the_rows_of_one(world: Path, tmp_path: Path, undisturbed):
    with asked_oracle(world, LIES) as server:
        values = curate_values(world, tmp_path, server.url)
        for part in ("0/3", "1/3", "2/3"):
            curate.run(checked(values | {"shard": part}))
        parts = [read_stage(tmp_path / "shards" / f"{part}-of-3", "ingest") for part in range(3)]
        assert sorted(len(part.kept) for part in parts if part) != [0, 0, 4]  # the work was shared
        num_asked = len(server.requests)
        curate.run(checked(values))
        assert len(server.requests) == num_asked
    assert outputs_of(tmp_path) == undisturbed


def test_a_server_that_refuses_breaks_off_and_hangs_costs_time_alone(world: Path, tmp_path: Path):
    """Faults of transport are retried until they pass: the same rows. Bad answers are other attempts, so that rows may differ from an
    undisturbed run, but never vanish without a word."""
    endpoint = {"concurrency": 8, "backoff_s": 0.01, "timeout_s": 0.5, "max_retries": 8, "bad_answer_retries": 4}
    with asked_oracle(world, LIES, fault=misbehaving(0.2)) as server:
        values = curate_values(world, tmp_path, server.url, vlm=endpoint | {"url": server.url}, reasoner=endpoint | {"url": server.url})
        curate.run(checked(values))
    captions, drafts, checks = (read_stage(tmp_path, stage) for stage in ("caption", "question", "check"))
    assert captions and drafts and checks
    assert not captions.dropped and len(drafts.kept) >= 16
    assert sum(answers_in(tmp_path).values()) < len(server.requests)  # what was refused was asked again


def test_an_outage_costs_what_depends_on_it_and_the_next_run_asks_again(world: Path, tmp_path: Path, undisturbed):
    def no_goals(body):
        return refused(500, "out of order") if body["response_format"]["json_schema"]["name"] == "question_goal" else None

    with asked_oracle(world, LIES, fault=no_goals) as server:
        endpoint = {"url": server.url, "concurrency": 8, "backoff_s": 0.01, "max_retries": 1}
        curate.run(checked(curate_values(world, tmp_path, server.url, reasoner=endpoint)))
    drafts = read_stage(tmp_path, "question")
    assert drafts and Counter(drop.reason for drop in drafts.dropped) == {"http_500": 4}
    assert "goal" not in {draft.category for draft in drafts.kept}
    with asked_oracle(world, LIES) as server:
        curate.run(checked(curate_values(world, tmp_path, server.url)))
        assert {request.purpose for request in server.requests} <= {"question_goal", "rewrite", "support", "watch", "blind"}
    assert outputs_of(tmp_path) == undisturbed


def test_the_budget_ends_a_run_and_a_higher_one_goes_on(world: Path, tmp_path: Path, undisturbed):
    with asked_oracle(world, LIES) as server:
        values = curate_values(world, tmp_path, server.url)
        with pytest.raises(BudgetError, match="max_tokens"):
            curate.run(checked(values | {"budget": {"max_tokens": 12_000}}))
        paid = sum(answers_in(tmp_path).values())
        assert 0 < paid * 120 <= 12_000  # the server says 120 tokens each
        curate.run(checked(values))
        assert not asked_again(server.requests)
    assert outputs_of(tmp_path) == undisturbed


def test_videos_inside_the_data_set_are_refused_since_publishing_would_remove_them(world: Path, tmp_path: Path):
    own = tmp_path / "out" / "dataset" / "videos"
    shutil.copytree(world / "videos", own)
    before = sorted(path.name for path in own.iterdir())
    with pytest.raises(ConfigError, match="publishing replaces the data set"):
        curate.run(checked(curate_values(world, tmp_path / "out", "http://127.0.0.1:1/v1") | {"videos": str(own)}))
    assert sorted(path.name for path in own.iterdir()) == before


def test_what_somebody_put_into_the_data_set_is_not_removed(world: Path, tmp_path: Path):
    with asked_oracle(world) as server:
        config = checked(curate_values(world, tmp_path, server.url))
        curate.run(config)
        mine = tmp_path / "dataset" / "videos" / "precious.mp4"
        mine.write_text("mine")
        with pytest.raises(CurationError, match=r"1 files that no earlier run wrote, such as videos/precious\.mp4"):
            curate.run(config)
        assert mine.read_text() == "mine"
        mine.unlink()
        curate.run(config)


def test_the_run_may_be_in_the_folder_of_the_videos(world: Path, tmp_path: Path):
    """Its own data set is not taken for more videos."""
    shutil.copytree(world / "videos", tmp_path / "both")
    with asked_oracle(world) as server:
        config = checked(curate_values(world, tmp_path / "both", server.url) | {"videos": str(tmp_path / "both")})
        curate.run(config)
        once = outputs_of(tmp_path / "both")
        curate.run(config)
    assert outputs_of(tmp_path / "both") == once
    assert len((read_stage(tmp_path / "both", "ingest") or pytest.fail("no ingest")).kept) == 4


def test_what_every_request_carries_is_part_of_what_answers_are_kept_under(world: Path, tmp_path: Path):
    with asked_oracle(world) as server:
        values = curate_values(world, tmp_path, server.url) | {"until": "caption"}
        curate.run(checked(values))
        num_asked = len(server.requests)
        curate.run(checked(values | {"vlm": values["vlm"] | {"extra_body": {"reasoning_effort": "high"}}}))
        assert len(server.requests) == 2 * num_asked > 20


def test_sigterm_ends_a_run_whose_server_does_not_even_name_its_model(world: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        values = curate_values(world, tmp_path / "out", f"http://127.0.0.1:{silent.getsockname()[1]}/v1")
        process = _started(values | {"vlm": values["vlm"] | {"timeout_s": 300.0}}, tmp_path)
        silent.settimeout(60)
        connection, _ = silent.accept()  # it asks, and hears nothing
        with connection:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 143
    assert "stopped: every answer that was paid is kept" in (tmp_path / "told.txt").read_text()


def test_a_folder_without_a_usable_video_is_told(tmp_path: Path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(CurationError, match=r"broken\.mp4"):
        curate.run(checked({"videos": str(tmp_path / "videos"), "out": str(tmp_path / "out")}))


def test_a_dry_run_asks_nothing_and_comes_near(world: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with asked_oracle(world) as server:
        values = curate_values(world, tmp_path / "out", server.url)
        curate.run(checked(values | {"dry_run": True}))
        told = capsys.readouterr().out
        assert not server.requests and not (tmp_path / "out").exists()
        curate.run(checked(values))
        asked = Counter(request.purpose for request in server.requests)
    lines = [line.replace("│", " ").split() for line in told.splitlines()]
    estimated = {line[0]: float(line[1].replace(",", "")) for line in lines if line and line[0] in asked}
    assert estimated.keys() == asked.keys()
    assert all(0.6 * count <= estimated[name] <= 1.6 * count for name, count in asked.items()), (estimated, asked)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    return answering_model(folder, small_world(folder / "world"))


def verdict(body: dict) -> Reply | None:
    """The judge's: yes to every other answer, chosen by the text that is asked."""
    if body["response_format"]["json_schema"]["name"] != "judge":
        return None
    return said({"verdict": "yes" if zlib.crc32(json.dumps(body["messages"]).encode()) % 2 else "no"})


def test_a_policy_answers_and_a_judge_decides_about_open_ended_rows(world: Path, policy: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with asked_oracle(world, fault=verdict) as server:
        rated = policy_config(policy, judge={"endpoint": {"url": server.url}}).model_dump(mode="json", exclude_unset=True)
        asked = {"per_video": {"goal": 2, "spatial": 2}, "open_per_video": {"temporal": 2, "plot": 2}}
        values = curate_values(world, tmp_path, server.url, difficulty=rated, question=asked)
        curate.run(checked(values | {"dry_run": True}))
        assert re.search(r"│ judge +│ +86 │", capsys.readouterr().out)  # 4 videos, 4 rows each, 6 takes, nine in ten
        curate.run(checked(values))
        num_requests, first = len(server.requests), outputs_of(tmp_path)
        curate.run(checked(values))
        assert (len(server.requests), outputs_of(tmp_path)) == (num_requests, first)
    num_judged = sum(request.purpose == "judge" for request in server.requests)
    assert num_judged > 8 and answers_in(tmp_path)["judge"] == num_judged
    outcome = read_stage(tmp_path, "difficulty")
    assert outcome is not None and {drop.reason for drop in outcome.dropped} <= {"always_right", "never_right"}
    rates = {one.draft.key: one.pass_rate for one in outcome.kept}
    assert len(rates) >= 4 and all(rate is not None and 0 < rate < 1 for rate in rates.values())
    assert any(not one.draft.options for one in outcome.kept), "no open-ended row was judged now right, now wrong"
    rows = [json.loads(line) for path in (tmp_path / "dataset").glob("*.jsonl") if path.stem != "drops" for line in path.open()]
    assert rows and all(row["pass_rate"] == rates[row["key"]] for row in rows)
    card = json.loads((tmp_path / "dataset" / FIGURES).read_text())
    assert {one["purpose"]: one["answers"] for one in card["calls"]}["judge"] == num_judged


def test_outputs_of_other_videos_are_not_replaced_without_a_word(world: Path, tmp_path: Path, capsys):
    shutil.copytree(world / "videos", tmp_path / "others" / "videos")
    for folder in (world, tmp_path / "others", tmp_path / "others"):
        curate.run(checked(curate_values(folder, tmp_path / "out", "http://127.0.0.1:9/v1", until="ingest")))
    told = "".join(capsys.readouterr().err.split())
    assert told.count(f"heldarunofthevideosin{world}") == 1 and told.count("heldarunof") == 1


def test_what_cannot_go_well_is_told_before_anything_is_paid(world: Path, tmp_path: Path):
    (tmp_path / "labels.jsonl").write_text("no label\n")
    with asked_oracle(world) as server:
        with pytest.raises(CurationError, match="line 1: no JSON"):
            curate.run(checked(curate_values(world, tmp_path / "out", server.url, publish={"labels": str(tmp_path / "labels.jsonl")})))
        assert not server.requests
        with pytest.raises(ValidationError, match="neither vlm nor reasoner has a price"):
            checked(curate_values(world, tmp_path / "out", server.url, budget={"max_cost": 1.0}))


def test_ctrl_c_leaves_with_one_line_and_loses_nothing(world: Path, tmp_path: Path, undisturbed):
    with asked_oracle(world, LIES, latency_s=0.02) as server:
        values = curate_values(world, tmp_path / "out", server.url)
        process = _started(values, tmp_path)
        _wait_for(server, 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        told = (tmp_path / "told.txt").read_text()
        assert "stopped: every answer that was paid is kept" in told and "Traceback" not in told
        _finish(values, tmp_path)
        assert not asked_again(server.requests)
    assert outputs_of(tmp_path / "out") == undisturbed


@pytest.mark.long
def test_twenty_kills_at_random_moments_change_nothing_and_cost_nothing(world: Path, tmp_path: Path, undisturbed):
    chance = random.Random(5)
    kills: list[float] = []
    with asked_oracle(world, LIES, latency_s=LATENCY_S) as server:
        values = curate_values(world, tmp_path / "out", server.url)
        total = _num_calls(world, tmp_path, server)
        server.requests.clear()
        moments = sorted(chance.randrange(1, total) for _ in range(NUM_KILLS - 4))
        for moment in moments:
            process = _started(values, tmp_path)
            _wait_for(server, moment)
            time.sleep(chance.random() * 0.02)
            kills.append(_kill(process))
        for _ in range(NUM_KILLS - len(moments)):  # and at any time of a start: importing, measuring, writing outputs
            process = _started(values, tmp_path)
            time.sleep(chance.random() * 4.0)
            kills.append(_kill(process))
        _finish(values, tmp_path)
        again = asked_again(server.requests)
        late = [request for request in again if not _was_in_the_air(request, server, kills)]
    assert outputs_of(tmp_path / "out") == undisturbed
    assert not late
    print(f"{len(kills)} kills, {len(server.requests)} requests, {len(again)} asked again because their answers were in the air")


def _num_calls(world: Path, folder: Path, server: LlmServer) -> int:
    curate.run(checked(curate_values(world, folder / "counted", server.url)))
    return len(server.requests)


def _started(values: dict, folder: Path) -> subprocess.Popen:
    (folder / "config.json").write_text(json.dumps(values))
    command = [sys.executable, "-m", "longtake", "curate", "run", str(folder / "config.json")]
    with (folder / "told.txt").open("w") as told:
        return subprocess.Popen(command, env=one_thread(), stdout=told, stderr=told)


def _wait_for(server: LlmServer, num_answered: int) -> None:
    deadline = time.monotonic() + 60
    while server.num_answered < num_answered:
        assert time.monotonic() < deadline, f"{server.num_answered} answers, and {num_answered} were waited for"
        time.sleep(0.002)


def _kill(process: subprocess.Popen) -> float:
    process.kill()
    process.wait(10)
    return time.monotonic()


def _finish(values: dict, folder: Path) -> None:
    process = _started(values, folder)
    assert process.wait(120) == 0, (folder / "told.txt").read_text()


def _was_in_the_air(request, server: LlmServer, kills: list[float]) -> bool:
    """Whether the answer to the same request had left just before a kill."""
    before = [one for one in server.requests if one.body == request.body and one.at_s < request.at_s and one.answered]
    return all(any(0 <= kill - one.at_s - LATENCY_S < JUST_ANSWERED_S for kill in kills) for one in before)
