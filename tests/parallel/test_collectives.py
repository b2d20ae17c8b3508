"""Exchanges between ranks: values by hand, gradients against the definition of a sum over ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from longtake.parallel.collectives import (
    all_gather,
    all_gather_for_same_use,
    exchange,
    gather_texts,
    reduce_metrics,
    reduce_scatter,
    sum_over_ranks,
)
from longtake.parallel.mesh import Axis, start_world
from longtake.testing.processes import run_processes

CPU = torch.device("cpu")
ALONE = Axis((0,), 0, None)


def uneven_by_hand():
    """Rank r holds r rows of value r: rank 0 holds none."""
    with start_world(CPU, timeout_s=20) as world:
        axis, rank = world.axis, world.rank
        sizes = [0, 1, 2]
        rows = torch.full((rank, 2), float(rank), requires_grad=True)
        gathered = all_gather(rows, sizes, axis)
        (gathered * torch.tensor([[1.0], [10.0], [100.0]]) * (rank + 1)).sum().backward()
        same = rows.detach().clone().requires_grad_()
        (all_gather_for_same_use(same, sizes, axis) * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
        whole = torch.arange(3.0).mul(rank + 1).requires_grad_()
        scattered = reduce_scatter(whole, sizes, axis)
        (scattered * torch.tensor([5.0, 7.0])[: len(scattered)] * (rank + 1)).sum().backward()
        nothing = exchange(torch.empty(0, 3, dtype=torch.bfloat16), [0] * 3, [0] * 3, axis)
        return {
            "gathered": gathered.detach(),
            "summed": rows.grad,
            "same": same.grad,
            "scattered": scattered.detach(),
            "spread": whole.grad,
            "nothing": tuple(nothing.shape),
            "total": sum_over_ranks([1, rank / 2], axis),
            "texts": gather_texts("ä" * rank, axis),
        }


def test_uneven_pieces_by_hand():
    found = run_processes(uneven_by_hand, 3)
    for rank, one in enumerate(found):
        assert one["gathered"].tolist() == [[1, 1], [2, 2], [2, 2]]
        # Row 0 has weight 1 * (1 + 2 + 3) over the ranks, row 1 ten times that, row 2 a hundred times.
        assert one["summed"].tolist() == [[], [[6.0, 6.0]], [[60.0, 60.0], [600.0, 600.0]]][rank]
        # When all ranks compute the same loss, it counts once.
        assert one["same"].tolist() == [[], [[1.0, 1.0]], [[10.0, 10.0], [100.0, 100.0]]][rank]
        # (0, 1, 2) * (1 + 2 + 3), cut 0 / 1 / 2.
        assert one["scattered"].tolist() == [[], [0.0], [6.0, 12.0]][rank]
        assert one["spread"].tolist() == [10.0, 15.0, 21.0]  # 5 * 2 from rank 1; 5 * 3 and 7 * 3 from rank 2
        assert one["nothing"] == (0, 3)
        assert one["total"] == [3.0, 1.5]
        assert one["texts"] == ["", "ä", "ää"]


def random_exchange(matrix: list[list[int]], seed: int):
    """matrix[i][j] rows go from rank i to rank j, in float64, with random values; returns what came and the gradient of what was sent."""
    with start_world(CPU, timeout_s=20) as world:
        generator = torch.Generator().manual_seed(seed + world.rank)
        sends, receives = matrix[world.rank], [row[world.rank] for row in matrix]
        rows = torch.randn(sum(sends), 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        came = exchange(rows, sends, receives, world.axis)
        weights = torch.randn(came.shape, generator=generator, dtype=torch.float64)
        (came * weights).sum().backward()
        return {"rows": rows.detach(), "came": came.detach(), "weights": weights, "gradient": rows.grad}


@pytest.mark.parametrize("seed", range(3))
def test_random_uneven_exchanges_arrive_and_their_gradients_come_back(seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randint(0, 4, (4, 4), generator=generator).tolist()
    found = run_processes(random_exchange, 4, matrix, seed)
    pieces = [one["rows"].split(matrix[rank]) for rank, one in enumerate(found)]
    weights = [one["weights"].split([row[rank] for row in matrix]) for rank, one in enumerate(found)]
    for rank, one in enumerate(found):
        assert torch.equal(one["came"], torch.cat([pieces[source][rank] for source in range(4)]))
        assert torch.equal(one["gradient"], torch.cat([weights[target][rank] for target in range(4)]))


def test_a_rank_alone_sends_nothing():
    rows = torch.arange(6.0).view(3, 2).requires_grad_()
    assert torch.equal(all_gather(rows, [3], ALONE), rows)
    assert torch.equal(reduce_scatter(rows, [3], ALONE), rows)
    all_gather_for_same_use(rows, [3], ALONE).sum().backward()
    assert rows.grad is not None and rows.grad.eq(1).all()
    assert sum_over_ranks([2], ALONE) == [2.0] and gather_texts("a", ALONE) == ["a"] and not dist.is_initialized()
    with pytest.raises(ValueError, match="3 rows, 1 ranks"):
        exchange(rows, [2], [2], ALONE)


def metrics_of_two():
    with start_world(CPU, timeout_s=20) as world:
        own = [{"count/takes": 3.0, "loss/total": 1.0, "seconds/update": 2.0}, {"count/takes": 4.0, "loss/total": 2.0, "failures/x": 1.0}]
        return reduce_metrics(own[world.rank], world.axis)


def test_metrics_become_one_by_the_rule_of_their_name():
    expected = {"count/takes": 7.0, "loss/total": 1.5, "seconds/update": 2.0, "failures/x": 1.0}
    assert run_processes(metrics_of_two, 2) == [expected, expected]
