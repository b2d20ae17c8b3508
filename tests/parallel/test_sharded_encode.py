"""Videos encoded by 1, 2 and 4 processes: the same bits as by one, each group once, and exact gradients of a trained tower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp import fully_shard

from longtake.errors import LongtakeError
from longtake.parallel import rows as rows_module
from longtake.parallel.gradients import sum_gradients
from longtake.parallel.mesh import Axis
from longtake.parallel.rows import collect_gradients, send_rows
from longtake.testing.encoding import (
    UNEVEN,
    NoiseVideo,
    encoder,
    load_model,
    needs_of,
    noise_videos,
    reference_gradients,
    tower_gradients,
    used_here,
    weights,
    whole,
    world,
)
from longtake.testing.packed import worst_relative
from longtake.testing.processes import ProcessError, run_processes
from longtake.types import VideoTokens

SHAPES = {
    "uneven": UNEVEN,
    "one long": ((22, 56, 56),),
    "fewer groups than ranks": ((2, 28, 56), (4, 28, 28)),
    "none": (),
}


def encoded(folder: str, shapes, groups_per_chunk: int):
    """On every rank: what came back, the groups this rank ran, and (rank 0) whether one process gives the same bits."""
    with world() as here:
        model = load_model(folder)
        batch = encoder(model, here.axis, groups_per_chunk).encode(noise_videos(shapes))
        found = batch.gather()
        ran = model.groups_encoded
        alone = whole(model, noise_videos(shapes), groups_per_chunk)
        assert all(isinstance(tokens, VideoTokens) for tokens in found)
        same = [
            torch.equal(one.embeddings, two.embeddings)
            and (one.grid, one.seconds_per_grid, one.digest) == (two.grid, two.seconds_per_grid, two.digest)
            for one, two in zip(found, alone, strict=True)
        ]
        return same, ran, [tokens.embeddings.std().item() for tokens in alone]


@pytest.mark.parametrize("num_processes", [1, 2, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_the_same_bits_on_any_number_of_processes(tmp_path: Path, name: str, num_processes: int):
    load_model(str(tmp_path))
    results = run_processes(encoded, num_processes, str(tmp_path), SHAPES[name], 2)
    groups = sum(-(-shape[0] // 2) for shape in SHAPES[name])
    assert [same for same, _, _ in results] == [[True] * len(SHAPES[name])] * num_processes
    assert sum(ran for _, ran, _ in results) == groups  # each temporal group once, on one rank
    assert all(spread > 0.1 for _, _, spreads in results for spread in spreads if spread == spread)
    if name == "uneven":
        assert sum(ran > 0 for _, ran, _ in results) == num_processes


def test_the_bits_do_not_depend_on_what_else_is_in_the_batch(tmp_path: Path):
    model = load_model(str(tmp_path))
    alone = Axis((0,), 0, None)
    together = encoder(model, alone, 2).encode(noise_videos(UNEVEN)).gather()
    for video, tokens in zip(noise_videos(UNEVEN), together, strict=True):
        (single,) = encoder(model, alone, 2).encode([video]).gather()
        assert isinstance(tokens, VideoTokens) and isinstance(single, VideoTokens)
        assert torch.equal(tokens.embeddings, single.embeddings)


def broken_exchange(folder: str, fault: str):
    with pytest.MonkeyPatch.context() as patch:
        honest = rows_module.all_to_all
        wrong = {
            "rolled": lambda rows, *sizes: honest(rows.roll(1, 0), *sizes),
            "own rows only": lambda rows, send, receive, axis: rows.new_zeros(sum(receive), *rows.shape[1:]),
            "honest": honest,
        }
        patch.setattr(rows_module, "all_to_all", wrong[fault])
        return encoded(folder, UNEVEN, 2)


@pytest.mark.parametrize("fault", ["rolled", "own rows only", "honest"])
def test_a_broken_exchange_is_noticed(tmp_path: Path, fault: str):
    """Negative control of the parity test."""
    load_model(str(tmp_path))
    results = run_processes(broken_exchange, 2, str(tmp_path), fault)
    assert all(all(same) == (fault == "honest") for same, _, _ in results)


def asked_for(folder: str):
    """Pieces against slices of the whole, and receivers."""
    with world() as here:
        model = load_model(folder)
        batch = encoder(model, here.axis, 2).encode(noise_videos(UNEVEN))
        needs = [needs_of(result.size.num_tokens, here.size) for result in batch.results]
        pieces = batch.pieces(needs)
        alone = whole(model, noise_videos(UNEVEN), 2)
        same = [
            torch.equal(features[0], tokens.embeddings[start:stop])
            for tokens, ranges, own in zip(alone, needs, pieces, strict=True)
            for (start, stop), features in zip(ranges[here.rank], own, strict=True)
        ]
        received = [tokens is not None for tokens in batch.gather(receivers=[1])]
        return same, received


def test_each_rank_gets_what_it_asks_for(tmp_path: Path):
    load_model(str(tmp_path))
    results = run_processes(asked_for, 3, str(tmp_path))
    assert [same for same, _ in results] == [[True] * 6] * 3
    assert [received for _, received in results] == [[False] * 3, [True] * 3, [False] * 3]


def failing(folder: str):
    """Video 1 fails where it is measured, video 2 in its last group, on whichever rank has that."""
    videos = [
        NoiseVideo(UNEVEN[0], 0),
        NoiseVideo(UNEVEN[1], 1, fails_at=-1),
        NoiseVideo(UNEVEN[0], 2, fails_at=6),
        NoiseVideo(UNEVEN[2], 3),
    ]
    with world() as here:
        model = load_model(folder)
        found = encoder(model, here.axis, 2).encode(videos).gather()
        told = [f"{type(one).__name__}: {one}" if isinstance(one, LongtakeError) else "" for one in found]
        good = [torch.equal(found[index].embeddings, whole(model, [videos[index]], 2)[0].embeddings) for index in (0, 3)]
        return told, good


@pytest.mark.parametrize("num_processes", [1, 3])
def test_a_video_that_fails_on_one_rank_fails_on_all_and_the_others_are_right(tmp_path: Path, num_processes: int):
    load_model(str(tmp_path))
    results = run_processes(failing, num_processes, str(tmp_path))
    wanted = ["", *(f"VideoDamagedError: video {seed} is damaged. Rule: a video decodes. Remedy: mend it." for seed in (1, 2)), ""]
    assert [told for told, _ in results] == [wanted] * num_processes
    assert all(good == [True, True] for _, good in results)


def trained(folder: str, dtype: str, settings: dict, checkpointing: bool, fault: str | None, partial: bool):
    """Gradients of the tower summed over the ranks, and what this rank ran forward."""
    with world() as here:
        model = load_model(folder, dtype, trains=True, checkpointing=checkpointing)
        calls = []
        honest = model.encode_chunk
        model.encode_chunk = lambda pixels, gradients=False: calls.append(len(pixels)) or honest(pixels, gradients)
        batch = encoder(model, here.axis, 2, **settings).encode(noise_videos(UNEVEN))
        forward = len(calls)
        needs = [needs_of(result.size.num_tokens, here.size) for result in batch.results] if partial else None
        gradients = []
        for video, result in enumerate(batch.results):
            size = torch.Size([result.size.num_tokens, result.width])
            wanted = weights(here.rank, video, size, result.dtype)
            ranges = needs[video][here.rank] if needs else [(0, len(wanted))]
            gradients.append([(wanted[start:stop],) for start, stop in ranges] if used_here(here.rank, video) else None)
        if fault == "a rank is forgotten" and here.rank == 1:
            gradients = [None] * len(gradients)
        if fault == "rows are shifted":
            gradients = [None if own is None else [(own[0][0].roll(1, 0),)] for own in gradients]
        batch.backward(gradients, needs)
        sum_gradients(model.hf.model.visual.parameters(), here.axis)
        return tower_gradients(model), forward, len(calls), model.groups_encoded


def sharded_tower(folder: str, hold_graphs: bool, equal_calls: bool):
    """FSDP2 over all ranks, 3 chunks to 2 ranks: the tower's own collectives need every rank at every turn."""
    with world() as here:
        model = load_model(folder, "float32", trains=True)
        names = [name for name, _ in model.hf.model.visual.named_parameters()]
        for module in (*model.hf.model.visual.blocks, model.hf.model.visual):
            fully_shard(module, mesh=here.device_mesh)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        batch = encoder(model, here.axis, 2, hold_graphs=hold_graphs, equal_calls=equal_calls).encode(noise_videos(UNEVEN[2:]))
        (tokens,) = batch.gather()
        batch.backward([[(weights(here.rank, 1, tokens.embeddings.shape, tokens.embeddings.dtype),)]])
        found = dict(zip(names, model.hf.model.visual.parameters(), strict=True))
        return tokens.embeddings, {name: parameter.grad.full_tensor() for name, parameter in found.items()}


@pytest.mark.parametrize("hold_graphs", [True, False])
def test_a_tower_that_is_itself_sharded(tmp_path: Path, hold_graphs: bool):
    model = load_model(str(tmp_path), "float32", trains=True)
    (tokens,) = whole(model, noise_videos(UNEVEN[2:]), 2, gradients=True)
    (tokens.embeddings * sum(weights(rank, 1, tokens.embeddings.shape, torch.float32) for rank in range(2))).sum().backward()
    for embeddings, gradients in run_processes(sharded_tower, 2, str(tmp_path), hold_graphs, True):
        assert torch.equal(embeddings, tokens.embeddings.detach())
        assert worst_relative(gradients, tower_gradients(model)) <= 1e-5


def test_without_equal_calls_a_sharded_tower_does_not_come_through(tmp_path: Path):
    """Negative control: 2 chunks on one rank, 1 on the other."""
    load_model(str(tmp_path), "float32", trains=True)
    with pytest.raises(ProcessError):
        run_processes(sharded_tower, 2, str(tmp_path), True, False, timeout_s=15)


def dense(needs_ranges, rank: int, video: int, size: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """The gradient of all rows that the ranges of one rank amount to: a row in two ranges counts twice."""
    own = weights(rank, video, size, dtype)
    total = torch.zeros_like(own)
    for start, stop in needs_ranges:
        total[start:stop] += own[start:stop]
    return total


WAYS = {
    "held": ({"hold_graphs": True}, False),
    "again": ({}, False),
    "again, checkpointed": ({}, True),
    "held, equal calls": ({"hold_graphs": True, "equal_calls": True}, False),
    "again, equal calls": ({"equal_calls": True}, False),
}
GROUPS = 7 + 1 + 5


@pytest.mark.parametrize(
    ("way", "num_processes", "dtype"),
    [
        ("held", 1, "float64"),
        ("again", 1, "float64"),
        ("held", 2, "float64"),
        ("again", 4, "float64"),
        ("again, checkpointed", 2, "float64"),
        ("held, equal calls", 4, "float64"),
        ("again, equal calls", 4, "float64"),
        ("held", 4, "float32"),
        ("again", 2, "float32"),
    ],
)
def test_every_gradient_of_a_trained_tower(tmp_path: Path, way: str, num_processes: int, dtype: str):
    """max|difference| / max|reference| of the worst tensor. Measured: 7e-16 in float64, 4e-7 in float32."""
    settings, checkpointing = WAYS[way]
    wanted = reference_gradients(str(tmp_path), UNEVEN, 2, dtype, num_processes)
    results = run_processes(trained, num_processes, str(tmp_path), dtype, settings, checkpointing, None, False)
    for found, _, _, _ in results:
        assert worst_relative(found, wanted) <= (1e-10 if dtype == "float64" else 1e-5)
    again = not settings.get("hold_graphs")
    assert sum(groups for _, _, _, groups in results) == GROUPS * (2 if again else 1)
    if settings.get("equal_calls"):
        assert len({(forward, total) for _, forward, total, _ in results}) == 1


@pytest.mark.parametrize("fault", ["a rank is forgotten", "rows are shifted"])
def test_a_wrong_gradient_is_noticed(tmp_path: Path, fault: str):
    """Negative control: measured 0.3 and more."""
    wanted = reference_gradients(str(tmp_path), UNEVEN, 2, "float64", 2)
    for found, _, _, _ in run_processes(trained, 2, str(tmp_path), "float64", {"hold_graphs": True}, False, fault, False):
        assert worst_relative(found, wanted) > 0.05


def test_gradients_of_pieces(tmp_path: Path):
    """Ranks that were given overlapping rows: a row's gradient is the sum over all that had it."""
    model = load_model(str(tmp_path), "float64", trains=True)
    for video, tokens in enumerate(whole(model, noise_videos(UNEVEN), 2, gradients=True)):
        needs, shape = needs_of(len(tokens.embeddings), 3), tokens.embeddings.shape
        users = [rank for rank in range(3) if used_here(rank, video)]
        total = sum(dense(needs[rank], rank, video, shape, torch.float64) for rank in users)
        (tokens.embeddings * total).sum().backward()  # once: transformers' norm rounds to float32, which does not add up exactly
    wanted = tower_gradients(model)
    for found, _, _, _ in run_processes(trained, 3, str(tmp_path), "float64", {"hold_graphs": True}, False, None, True):
        assert worst_relative(found, wanted) <= 1e-10


def by_hand():
    with world() as here:
        held = [(0, 2), (2, 2), (2, 5)]
        mine = torch.arange(5.0)[:, None].repeat(1, 2)[slice(*held[here.rank])]
        needs = [[(1, 4)], [(0, 0), (4, 5)], [(0, 5), (2, 3)]]
        got = send_rows(mine, held, needs, here.axis)
        gradients = [torch.full_like(piece, 10.0**here.rank) for piece in got]
        back = collect_gradients(gradients, held, needs, here.axis, torch.empty(0, 2))
        return [piece[:, 0].tolist() for piece in got], back[:, 0].tolist()


def test_rows_by_hand():
    """Five rows, 0 and 1 on rank 0, none on rank 1, the others on rank 2; rank r's gradients are 10^r."""
    results = run_processes(by_hand, 3)
    assert [got for got, _ in results] == [[[1, 2, 3]], [[], [4]], [[0, 1, 2, 3, 4], [2]]]
    # Row 0: rank 2. Row 1: ranks 0 and 2. Row 2: rank 0 and twice rank 2. Row 3: 0 and 2. Row 4: 1 and 2.
    assert [back for _, back in results] == [[100, 101], [], [201, 101, 110]]
