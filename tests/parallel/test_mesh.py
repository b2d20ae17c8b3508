"""The mesh: which ranks share what, by hand; and that every group of it really connects its ranks."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from longtake.errors import ConfigError
from longtake.parallel.mesh import check_degrees, divisors, every_group, mesh_ranks, start_world
from longtake.testing.processes import ProcessError, run_processes

CPU = torch.device("cpu")


def test_ranks_of_an_axis_by_hand():
    # 8 processes, ring 2 x Ulysses 2: two data ranks; Ulysses pairs are neighbours, a ring joins every second rank of its four.
    assert mesh_ranks(0, 2, 2) == ((0, 2), (0, 1), (0, 1, 2, 3))
    assert mesh_ranks(7, 2, 2) == ((5, 7), (6, 7), (4, 5, 6, 7))
    assert mesh_ranks(5, 4, 1) == ((4, 5, 6, 7), (5,), (4, 5, 6, 7))
    assert mesh_ranks(5, 1, 4) == ((5,), (4, 5, 6, 7), (4, 5, 6, 7))
    assert mesh_ranks(3, 1, 1) == ((3,), (3,), (3,))


def test_every_group_once_in_one_order():
    assert list(every_group(4)) == [(0, 1), (2, 3), (0, 1, 2, 3), (0, 2), (1, 3)]
    assert list(every_group(1)) == []
    groups = list(every_group(12))
    assert len(groups) == len(set(groups))
    for ring, ulysses in ((3, 4), (2, 6), (4, 3), (12, 1), (1, 6)):
        for rank in range(12):
            assert all(ranks in groups for ranks in mesh_ranks(rank, ring, ulysses) if len(ranks) > 1)


def test_degrees_that_do_not_fit_are_refused_with_those_that_do():
    assert divisors(28) == [1, 2, 4, 7, 14, 28]
    for ring, ulysses in ((2, 3), (1, 8), (0, 2)):
        with pytest.raises(ConfigError, match=rf"ring {ring} x Ulysses {ulysses} on 4 processes.*one of 1, 2, 4"):
            check_degrees(4, ring, ulysses)


def test_a_single_process_needs_no_group():
    with start_world(CPU, timeout_s=5) as world:
        mesh = world.sequence_mesh()
        assert (world.rank, world.size, world.device_mesh, mesh.world.group, mesh.sequence.group) == (0, 1, None, None, None)
        assert (mesh.ring.size, mesh.ulysses.size, mesh.num_data, mesh.data_rank) == (1, 1, 1, 0)
        with pytest.raises(ConfigError, match="on 1 processes"):
            world.sequence_mesh(ulysses=2)
    assert not dist.is_initialized()


def sums_over_every_axis():
    """{(ring, ulysses): (data rank, sums of rank numbers over ring, ulysses, sequence, world)}"""
    found = {}
    with start_world(CPU, timeout_s=20) as world:
        assert world.device_mesh is not None and world.device_mesh.shape == (world.size,)
        for ring, ulysses in ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 4)):
            mesh = world.sequence_mesh(ring, ulysses)
            sums = []
            for axis in (mesh.ring, mesh.ulysses, mesh.sequence, mesh.world):
                total = torch.tensor([float(world.rank)])
                if axis.group is not None:
                    dist.all_reduce(total, group=axis.group)
                sums.append(int(total))
                assert axis.ranks[axis.rank] == world.rank
            found[ring, ulysses] = (mesh.data_rank, *sums)
    assert not dist.is_initialized()
    return found


def test_groups_connect_the_ranks_they_name():
    found = run_processes(sums_over_every_axis, 4)
    assert [one[1, 1] for one in found] == [(rank, rank, rank, rank, 6) for rank in range(4)]
    assert [one[1, 2] for one in found] == [(0, 0, 1, 1, 6), (0, 1, 1, 1, 6), (1, 2, 5, 5, 6), (1, 3, 5, 5, 6)]
    assert [one[2, 1] for one in found] == [(0, 1, 0, 1, 6), (0, 1, 1, 1, 6), (1, 5, 2, 5, 6), (1, 5, 3, 5, 6)]
    assert [one[2, 2] for one in found] == [(0, 2, 1, 6, 6), (0, 4, 1, 6, 6), (0, 2, 5, 6, 6), (0, 4, 5, 6, 6)]
    assert [one[4, 1] for one in found] == [(0, 6, rank, 6, 6) for rank in range(4)]
    assert [one[1, 4] for one in found] == [(0, rank, 6, 6, 6) for rank in range(4)]


def wait_for_a_rank_that_sleeps(ring: int):
    with start_world(CPU, timeout_s=1.0) as world:
        axis = world.sequence_mesh(ring, 1).ring if ring > 1 else world.axis
        if world.rank == 1:
            time.sleep(30)
        dist.all_reduce(torch.ones(1), group=axis.group)


@pytest.mark.parametrize("ring", [1, 2])
def test_a_collective_gives_up_after_the_stated_time(ring):
    """In groups of the mesh as well as in the world's: torch gives a new group half an hour unless told."""
    started = time.monotonic()
    with pytest.raises(ProcessError, match=r"(?s)^rank 0 of \d: died.*Timed out"):
        run_processes(wait_for_a_rank_that_sleeps, 2 * ring, ring, timeout_s=25.0)
    assert time.monotonic() - started < 20


def test_torchrun_starts_it(tmp_path):
    script = tmp_path / "started.py"
    script.write_text(
        "import torch\nfrom longtake.parallel.mesh import start_world\n"
        "with start_world(torch.device('cpu'), 20) as world:\n    print(f'rank {world.rank} of {world.size}\\n', end='', flush=True)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("rank")) == ["rank 0 of 2", "rank 1 of 2"], done.stderr
