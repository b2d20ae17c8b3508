"""Several processes of one thread each for a measurement, told of each other as torchrun would tell them; results come back as JSON."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
import torch.distributed as dist

from longtake.config.env import Launch, enter_launch
from longtake.errors import LongtakeError

HOST = "127.0.0.1"


@dataclass(eq=False)
class _Rank:
    process: SpawnProcess
    answers: Connection


def run_on_ranks(function: Callable[..., Any], num_processes: int, *args: Any, timeout_s: float) -> list[Any]:
    """What `function(*args)` returned in each process, in the order of ranks: numbers, texts, lists and dicts.

    `function` is defined at the top level of a module. Raises LongtakeError when a process dies or the time is over; a traceback stands on
    stderr then. No process is left when this returns or raises.
    """
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    ranks = [_start(function, Launch(rank, rank, num_processes, HOST, store.port), args) for rank in range(num_processes)]
    try:
        return _answers(ranks, timeout_s)
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.join()
            rank.answers.close()


def _start(function: Callable[..., Any], this: Launch, args: tuple[Any, ...]) -> _Rank:
    context = multiprocessing.get_context("spawn")
    answers, sender = context.Pipe(duplex=False)
    process = context.Process(target=_body, args=(function, this, args, sender), daemon=True)
    process.start()
    sender.close()
    return _Rank(process, answers)


def _body(function: Callable[..., Any], this: Launch, args: tuple[Any, ...], answers: Connection) -> None:
    torch.set_num_threads(1)
    enter_launch(this)
    answers.send_bytes(json.dumps(function(*args)).encode())


def _answers(ranks: list[_Rank], timeout_s: float) -> list[Any]:
    found: dict[int, Any] = {}
    while len(found) < len(ranks):
        pending = {rank.answers: index for index, rank in enumerate(ranks) if index not in found}
        ready = wait(list(pending), timeout=timeout_s)
        if not ready:
            raise _failed(f"ranks {sorted(pending.values())} said nothing for {timeout_s:g} s")
        for answers in ready:
            assert isinstance(answers, Connection)
            try:
                found[pending[answers]] = json.loads(answers.recv_bytes())
            except EOFError:
                raise _failed(f"rank {pending[answers]} of {len(ranks)} died") from None
    return [found[index] for index in range(len(ranks))]


def _failed(what: str) -> LongtakeError:
    return LongtakeError(what, rule="every process of a measurement answers", remedy="its traceback is on stderr; free memory or cores")
