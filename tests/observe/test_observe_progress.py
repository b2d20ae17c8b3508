"""Progress: right rate and time left, short in CI logs, silent on stdout."""

from __future__ import annotations

import time

import pytest

from longtake.observe.progress import Progress, clock, progress_line, say


@pytest.mark.parametrize(
    ("done", "total", "done_now", "seconds", "line"),
    [
        (0, 200, 0, 0.0, "0/200"),
        (30, 200, 30, 60.0, "30/200  2.0 s each  0:05:40 left"),
        (130, 200, 30, 60.0, "130/200  2.0 s each  0:02:20 left"),  # 100 were done before a resume: they took none of these seconds
        (500, 1000, 500, 10.0, "500/1000  50.0/s  0:00:10 left"),
        (200, 200, 200, 400.0, "200/200  2.0 s each  0:06:40 taken"),
        (7, None, 7, 3.5, "7  2.0/s  0:00:04 taken"),
    ],
)
def test_progress_line(done: int, total: int | None, done_now: int, seconds: float, line: str) -> None:
    assert progress_line(done, total, done_now, seconds) == line


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (90_000, "25:00:00")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def run(monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    """100 units of one second each, towards 1100 or 100."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    total = 1100 if "done" in options else 100
    with Progress("rl", total=total, **options) as progress:  # type: ignore[arg-type]
        for _ in range(100):
            now[0] += 1.0
            progress.advance(reward=0.75)


def test_plain_lines_are_few_and_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, plain_every_s=30.0)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "rl: 30/100  1.0 s each  0:01:10 left  reward 0.75",
        "rl: 60/100  1.0 s each  0:00:40 left  reward 0.75",
        "rl: 90/100  1.0 s each  0:00:10 left  reward 0.75",
        "rl: 100/100  1.0 s each  0:01:40 taken  reward 0.75",
    ]


def test_units_of_an_earlier_run_do_not_count_in_the_rate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, done=900, plain_every_s=50.0)
    assert capsys.readouterr().err.splitlines()[0] == "rl: 950/1100  1.0 s each  0:02:30 left  reward 0.75"


def test_disabled_prints_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, enabled=False, plain_every_s=1.0)
    assert capsys.readouterr() == ("", "")


def test_an_error_inside_is_not_swallowed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), Progress("rl", total=3) as progress:
        progress.advance()
        raise KeyError
    assert "rl: 1/3" in capsys.readouterr().err


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[red]not markup[/red] " + "long " * 60
    say(text)
    assert capsys.readouterr().err == text + "\n"


def test_live_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from longtake.observe import progress as module

    monkeypatch.setattr(module, "CONSOLE", module.Console(stderr=True, force_terminal=True, width=120))
    with Progress("encode [2]", total=4) as progress:
        progress.advance(2, tokens=7)
    out, err = capsys.readouterr()
    assert out == ""
    assert "encode [2]" in err and "2/4" in err and "tokens 7" in err


def test_one_live_line_inside_another(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A validation shows its own progress while that of the training is alive; needs rich >= 14.1."""
    from longtake.observe import progress as module

    monkeypatch.setattr(module, "CONSOLE", module.Console(stderr=True, force_terminal=True, width=120))
    with Progress("rl", total=2) as outer:
        with Progress("validation", total=5) as inner:
            inner.advance(5)
        say("a line between")
        outer.advance(2)
    err = capsys.readouterr().err
    assert "5/5" in err and "2/2" in err and "a line between" in err
