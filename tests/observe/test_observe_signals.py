"""SIGTERM and Ctrl-C become a flag; the second Ctrl-C leaves at once; handlers are put back."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from longtake.errors import StopRequested
from longtake.observe import signals
from longtake.observe.signals import StopFlag


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_sets_the_flag_and_the_exit_code(number: signal.Signals, exit_code: int) -> None:
    with StopFlag() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(StopRequested, match="saved step 3") as caught:
            stop.leave("saved step 3")
    assert caught.value.exit_code == exit_code


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in StopFlag.SIGNALS]
    with StopFlag(), StopFlag():
        assert [signal.getsignal(number) for number in StopFlag.SIGNALS] != before
    assert [signal.getsignal(number) for number in StopFlag.SIGNALS] == before


def test_second_ctrl_c_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += signals.REPEAT_S / 2  # the launcher passes on the same key stroke
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        now[0] += signals.REPEAT_S
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_second_sigterm_changes_nothing() -> None:
    with StopFlag() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM


def test_outside_the_main_thread_the_flag_stays_false() -> None:
    seen: list[bool] = []

    def work() -> None:
        with StopFlag() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
