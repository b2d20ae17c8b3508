"""Calls to a vLLM server, each of which ends within a stated time: with an answer or with an error that names the address.

No answer is asked for twice: a call that fails ends the step, of which nothing has been learned by then.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from longtake.errors import RolloutError

CONNECT_S = 10.0
"""A server that is there takes a connection at once."""
_PART_BYTES = 1 << 20
_SHOWN = 600
"""Characters of a server's own error message that are passed on."""
_LEARNED = "no take of a step is learned from before all are there"
_AGAIN = "then give the same command again, a training run resumes at its last checkpoint"


class VllmHttp:
    """The server at `url`. Several threads may call it; each call has a connection of its own."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """`timeout_s`: longest wait for one answer, from its first byte sent to its last received."""
        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self._parts = urlsplit(self.url)
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def get(self, path: str) -> Any:
        """The JSON at `path`. Raises RolloutError."""
        return self._call("GET", path, None)

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON that is answered to `body`, None for an empty answer. Raises RolloutError."""
        return self._call("POST", path, body)

    def hang_up(self) -> None:
        """Break off all calls in flight; whoever waits for one gets a RolloutError."""
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    with suppress(OSError):  # it has ended by itself
                        connection.sock.shutdown(2)

    def _call(self, method: str, path: str, body: Any) -> Any:
        deadline = time.monotonic() + self.timeout_s
        connection = self._connected()
        try:
            status, text = _answer(connection, deadline, method, self._parts.path + path, body)
        except TimeoutError as error:
            raise RolloutError(
                f"the vLLM server at {self.url} has not answered {path} within {self.timeout_s:g} s",
                rule=f"every answer comes within timeout_s; {_LEARNED}",
                remedy=f"see its log; if it hangs, start it anew, {_AGAIN}; where answers are that long raise timeout_s",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise RolloutError(
                f"the vLLM server at {self.url} broke off while it answered {path}: {type(error).__name__}: {error}",
                rule=f"the server lives as long as the run; {_LEARNED}",
                remedy=f"see its log for why it ended, start it anew (longtake serve), {_AGAIN}",
            ) from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if status != http.HTTPStatus.OK:
            raise self._refused(path, status, text)
        return self._read(path, text)

    def _connected(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=min(CONNECT_S, self.timeout_s))
        try:
            connection.connect()
        except OSError as error:
            raise RolloutError(
                f"no vLLM server answers at {self.url}: {error}",
                rule=f"the address is that of a server that runs; {_LEARNED}",
                remedy="start one (longtake serve MODEL, for training with --rollouts), or correct the address",
            ) from error
        with self._lock:
            self._open.add(connection)
        return connection

    def _refused(self, path: str, status: int, text: bytes) -> RolloutError:
        told = text.decode(errors="replace")[:_SHOWN]
        return RolloutError(
            f"the vLLM server at {self.url} answered {path} with {status}: {told or 'no message'}",
            rule=f"the server takes what the trainer sends; {_LEARNED}",
            remedy="see its log; an address that it does not know, or may not open, is one of a server that was not started by "
            "longtake serve MODEL --rollouts; for rows that do not fit raise --max-tokens or --kv-cache-gb there",
        )

    def _read(self, path: str, text: bytes) -> Any:
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise RolloutError(
                f"the server at {self.url} answered {path} with something else than JSON: {text[:80]!r}",
                rule="the address is that of a vLLM server",
                remedy="correct the address",
            ) from error


def _answer(connection: http.client.HTTPConnection, deadline: float, method: str, path: str, body: Any) -> tuple[int, bytes]:
    """(status, body). Raises TimeoutError at the deadline (time.monotonic), OSError and HTTPException when the connection breaks."""
    sock = connection.sock
    sock.settimeout(_left(deadline))
    sent = b"" if body is None else json.dumps(body).encode()
    connection.request(method, path, sent, {"Content-Type": "application/json"} if sent else {})
    del sent  # embeddings of an hour are as many bytes again, and the answer may take long
    sock.settimeout(_left(deadline))
    response = connection.getresponse()
    parts = []
    while part := response.read1(_PART_BYTES):
        parts.append(part)
        sock.settimeout(_left(deadline))
    return response.status, b"".join(parts)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
