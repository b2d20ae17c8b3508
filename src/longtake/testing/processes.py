"""Run a function in several processes that can talk over gloo, and bring back what it returned or why it did not.

The processes are forked from a server that has torch and transformers loaded already (multiprocessing's forkserver), so that a test of
four processes starts in a fraction of a second. They are told of each other as torchrun would tell them, and have one torch thread each.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from longtake.config.env import Launch, enter_launch

PRELOADED = ["torch", "longtake.testing.sequence", "hypothesis"]
"""Imported once, in the server."""
START_TIMEOUT_S = 280.0
"""For the server to import these on a busy machine; the limit of a test counts from the moment its processes run."""
LEAVE_TIMEOUT_S = 2.0
"""After one process failed, the others may finish or fail for so long; what they say may explain the first."""


class ProcessError(AssertionError):
    """Some process raised, died or did not finish in time; the message names each with its rank, and shows its traceback."""


@dataclass(eq=False)
class _Running:
    process: BaseProcess
    answers: Connection
    log: Path
    started: bool = False
    done: bool = False
    result: Any = None


def run_processes(function: Callable[..., Any], num_processes: int, *args: Any, timeout_s: float = 60.0) -> list[Any]:
    """What `function(*args)` returned in each of the processes, in the order of ranks.

    `function` is defined at the top level of a module. Arguments and results are tensors, numbers, texts, records of these, lists, tuples
    and dicts; tensors come back detached, as copies. Raises ProcessError.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        group = [
            _start(function, Launch(rank, rank, num_processes, "127.0.0.1", store.port), args, Path(folder), timeout_s)
            for rank in range(num_processes)
        ]
        try:
            return _results(group, timeout_s)
        finally:
            for member in group:
                member.process.kill()
                member.process.join()
                member.answers.close()


def _start(function: Callable[..., Any], this: Launch, args: tuple[Any, ...], folder: Path, timeout_s: float) -> _Running:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    answers, sender = context.Pipe(duplex=False)
    log = folder / f"rank{this.rank}.log"
    process = context.Process(
        target=_body,
        args=(function, this, _portable(args), sender, str(log), timeout_s),
        name=f"rank {this.rank} of {this.world_size}",
        daemon=True,
    )
    process.start()
    sender.close()
    return _Running(process, answers, log)


def _body(function: Callable[..., Any], this: Launch, args: tuple[Any, ...], answers: Connection, log: str, timeout_s: float) -> None:
    """In the new process. What it prints, and the traceback if it raises, goes to its log."""
    with open(log, "wb", buffering=0) as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable(file=2)
    faulthandler.dump_traceback_later(timeout_s * 0.95, file=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    enter_launch(this)
    answers.send("started")
    result = function(*_restored(args))
    answers.send(_portable(result))
    if dist.is_initialized():
        dist.destroy_process_group()


def _results(group: list[_Running], timeout_s: float) -> list[Any]:
    deadline = time.monotonic() + START_TIMEOUT_S
    counting = False
    while pending := [member for member in group if not member.done]:
        ready = wait([member.answers for member in pending], timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise ProcessError(_story(pending, f"still running after {timeout_s:g} s" if counting else "did not start"))
        for member in pending:
            if member.answers in ready and not _receive(member):
                _let_leave(pending)
                raise ProcessError(_story([member, *(other for other in pending if other is not member)], "still running"))
        if not counting and all(member.started for member in group):
            counting, deadline = True, time.monotonic() + timeout_s
    return [_restored(member.result) for member in group]


def _receive(member: _Running) -> bool:
    """Take one message; False when the process is gone instead."""
    try:
        message = member.answers.recv()
    except EOFError:
        return False
    if member.started:
        member.done, member.result = True, message
    member.started = True
    return True


def _let_leave(pending: list[_Running]) -> None:
    deadline = time.monotonic() + LEAVE_TIMEOUT_S
    for member in pending:
        member.process.join(max(0.0, deadline - time.monotonic()))


def _story(members: list[_Running], running: str) -> str:
    """What is known of each, the one that failed first at the top."""
    lines = []
    for member in members:
        member.process.join(0.05)
        code = member.process.exitcode
        said = member.log.read_text(errors="replace").strip()[-6000:] if member.log.exists() else ""
        lines.append(f"{member.process.name}: {running if code is None else f'died with exit code {code}'}\n{said}")
    return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class _Bytes:
    """A tensor on its way. What torch itself would send is a handle to the memory of a process that may be gone."""

    data: bytes
    dtype: str
    shape: tuple[int, ...]


def _portable(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
        return _Bytes(flat.numpy().tobytes(), str(value.dtype).removeprefix("torch."), tuple(value.shape))
    return _mapped(_portable, value)


def _restored(value: Any) -> Any:
    if isinstance(value, _Bytes):
        tensor = torch.empty(value.shape, dtype=getattr(torch, value.dtype))
        if value.data:
            tensor.view(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(value.data), dtype=torch.uint8))
        return tensor
    return _mapped(_restored, value)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of each entry of a collection or a record, other values as they are."""
    if isinstance(value, dict):
        return {key: function(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(function(entry) for entry in value)
    if is_dataclass(value) and not isinstance(value, type | _Bytes):
        return replace(value, **{field.name: function(getattr(value, field.name)) for field in fields(value) if field.init})
    return value
