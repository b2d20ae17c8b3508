"""A real vLLM server, started as a user starts it; and a stand-in for one, which samples nothing and can be told to misbehave."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

Answer = tuple[int, Any]
START_S = 180.0


class StandIn:
    """What the server has been given, and what it answers."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.bodies: list[Any] = []
        self.names: list[str] = []
        """Of the weights that arrived, read from their files as vLLM would."""
        self.version = "default"
        self.faults: dict[str, Callable[[Any], Answer]] = {}
        """By path: in place of the answer."""
        self.hangs: set[str] = set()
        self.released = threading.Event()

    def answer(self, path: str, body: Any) -> Answer:
        self.calls.append(path)
        if path in self.hangs:
            self.released.wait(60)
        if path in self.faults:
            return self.faults[path](body)
        if path == "/v1/models":
            return 200, {"data": [{"max_model_len": 64}]}
        if path == "/weight_info":
            return 200, {"weight_version": self.version}
        if path == "/update_weights":
            self.names += load_file(Path(body["update_info"]["path"]))
        if path == "/finish_weight_update":
            self.version = body["weight_version"]
        if path == "/collective_rpc":
            return 200, {"results": [[]]}
        return (200, self.takes(body)) if path == "/inference/v1/generate" else (200, {})

    def takes(self, body: Any) -> Any:
        """Take i of a request is [40 + i, 41 + i], with log-probs that are as easy to recognise; the last first."""
        self.bodies.append(body)
        choices = [
            {
                "index": index,
                "token_ids": [40 + index, 41 + index],
                "finish_reason": "length",
                "logprobs": {"content": [{"token_id": 40 + index, "logprob": -0.5 - index}, {"token_id": 41 + index, "logprob": -1.5}]},
                "weight_versions": [{"version": self.version, "start": 0, "end": 2}],
            }
            for index in range(body["sampling_params"]["n"])
        ]
        return {"prompt_token_ids": body["token_ids"], "choices": choices[::-1]}


@contextmanager
def stand_in() -> Iterator[tuple[StandIn, str]]:
    """A running one and its address."""
    state = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def handle_call(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            status, answered = state.answer(self.path, body)
            text = answered if isinstance(answered, bytes) else json.dumps(answered).encode()
            with suppress(OSError):  # whoever asked has hung up
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        do_GET = do_POST = handle_call  # http.server's names

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()


@contextmanager
def served(model: Path | str, log: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address and process of `longtake serve`. At the end it is told to stop, and nothing of its process group is left.

    Raises AssertionError with the end of its messages when it does not come up within START_S.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "longtake", "serve", str(model), "--port", str(port), "--max-tokens", "2112", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + START_S
        while not _is_healthy(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
