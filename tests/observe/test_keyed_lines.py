"""Results by key: nothing acknowledged is lost by a kill, nothing damaged is passed over, and texts stay on disk."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from longtake.errors import CheckpointError
from longtake.observe import keyed_lines
from longtake.observe.keyed_lines import KeyedLines


def test_what_was_put_is_found_again_and_the_first_stays(tmp_path: Path) -> None:
    with KeyedLines(tmp_path, "a") as kept:
        kept.put("k1", {"text": "yes"})
        kept.put("k2", {"n": 2})
        kept.put("k1", {"text": "no"})
        assert kept.get("k1") == {"text": "yes"} and kept.get("k2") == {"n": 2} and kept.get("k3") is None
        assert "k1" in kept and "k3" not in kept and len(kept) == 2
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"key": "k1", "made": {"text": "yes"}}\n{"key": "k2", "made": {"n": 2}}\n'
    with KeyedLines(tmp_path, "a") as again:
        again.put("k2", {"n": 3})
        assert dict(again.items()) == {"k1": {"text": "yes"}, "k2": {"n": 2}}


def test_writers_find_what_others_have_put(tmp_path: Path) -> None:
    with KeyedLines(tmp_path, "a") as first:
        first.put("k1", {"by": "a"})
        with KeyedLines(tmp_path, "b") as second:
            assert second.get("k1") == {"by": "a"}
            second.put("k1", {"by": "b"})  # there already
            second.put("k2", {"by": "b"})
            first.put("k3", {"by": "a"})
            assert first.get("k2") is None
            assert first.refresh() == 1 and first.refresh() == 0
            assert first.get("k2") == {"by": "b"}
            assert [key for key, _ in first.items()] == ["k1", "k3", "k2"]
            assert list(first.items(1, others=True)) == [("k2", {"by": "b"})]
            assert [key for key, _ in first.items(2)] == ["k2"]
    assert (tmp_path / "b.jsonl").read_bytes() == b'{"key": "k2", "made": {"by": "b"}}\n'


@pytest.mark.parametrize("cut", [1, 3, 20])
def test_a_line_that_a_kill_has_cut_is_dropped_from_the_own_file(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl"
    with KeyedLines(tmp_path, "a") as kept:
        kept.put("k1", {"n": 1})
        kept.put("k2", {"n": 2})
    path.write_bytes(path.read_bytes()[:-cut])
    with KeyedLines(tmp_path, "a") as again:
        assert again.get("k1") == {"n": 1} and again.get("k2") is None
        again.put("k3", {"n": 3})
    assert path.read_bytes() == b'{"key": "k1", "made": {"n": 1}}\n{"key": "k3", "made": {"n": 3}}\n'


def test_a_cut_line_of_another_writer_is_left_alone_and_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_bytes(b'{"key": "k1", "made": {}}\n{"key": "k2", "ma')
    with KeyedLines(tmp_path, "a") as kept:
        assert "k1" in kept and "k2" not in kept
        with path.open("ab") as file:
            file.write(b'de": {"n": 2}}\n')
        assert kept.refresh() == 1 and kept.get("k2") == {"n": 2}
    assert path.read_bytes().endswith(b'{"n": 2}}\n')


DAMAGED = [
    b'{"key": "k2", "made": {"n": 2\n',
    b"\0\0\0\0\n",
    b"\n",
    b'{"key": 2, "made": {}}\n',
    b'{"key": "k2", "made": []}\n',
    b"[[" * 9999 + b"\n",
]


@pytest.mark.parametrize("line", DAMAGED, ids=["cut", "zeros", "empty", "no key", "no object", "deep"])
@pytest.mark.parametrize("writer", ["a", "b"])
def test_a_damaged_line_is_told_with_its_file_and_number(tmp_path: Path, line: bytes, writer: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"key": "k1", "made": {}}\n' + line + b'{"key": "k3", "made": {}}\n')
    for _ in range(2):  # the first left no lock behind
        with pytest.raises(CheckpointError) as caught:
            KeyedLines(tmp_path, writer)
        assert f"{path} line 2 is damaged" in caught.value.given and f"sed -i 2d {path}" in caught.value.remedy
    subprocess.run(["sed", "-i", "2d", str(path)], check=True)
    with KeyedLines(tmp_path, writer) as kept:
        assert "k1" in kept and "k3" in kept


def test_damage_inside_a_line_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"key": "k1", "made": {}}\n{"key": "k2", "made": {"n" 2}}\n')
    with KeyedLines(tmp_path, "a") as kept:
        assert kept.get("k1") == {}
        with pytest.raises(CheckpointError, match=r"a\.jsonl line 2 is damaged"):
            kept.get("k2")


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_bytes(b'{"key": "k1", "made": {}}\n{"key": "k2", "made": {}}\n')
    with KeyedLines(tmp_path, "a") as kept:
        path.write_bytes(b'{"key": "k1", "made": {}}\n')
        with pytest.raises(CheckpointError, match=r"b\.jsonl is shorter than it was"):
            kept.refresh()


def test_a_name_has_one_writer_at_a_time(tmp_path: Path) -> None:
    with KeyedLines(tmp_path, "a"):
        with pytest.raises(CheckpointError, match=rf"another process writes to {tmp_path}/a\.jsonl.*end it \(`fuser"):
            KeyedLines(tmp_path, "a")
        KeyedLines(tmp_path, "b").close()
    KeyedLines(tmp_path, "a").close()


WRITER = """
import sys
from pathlib import Path
from longtake.observe.keyed_lines import KeyedLines
kept = KeyedLines(Path(sys.argv[1]), "a")
for number in range(1_000_000):
    kept.put(f"k{number}", {"text": "x" * 500, "number": number})
    print(number, flush=True)
"""


def test_a_killed_process_loses_nothing_that_it_had_put_and_its_name_is_free(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [int(process.stdout.readline()) for _ in range(300)]
    with pytest.raises(CheckpointError, match="another process writes"):
        KeyedLines(tmp_path, "a")
    process.send_signal(signal.SIGKILL)
    acknowledged = seen + [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait()
    with KeyedLines(tmp_path, "a") as kept:
        assert [(kept.get(f"k{number}") or {}).get("number") for number in acknowledged] == acknowledged
        assert len(kept) - len(acknowledged) in (0, 1)  # the last may have been put and not told


def test_after_closing_nothing_is_put(tmp_path: Path) -> None:
    kept = KeyedLines(tmp_path, "a")
    kept.put("k1", {})
    kept.close()
    kept.close()
    for use in (lambda: kept.put("k2", {}), kept.refresh):
        with pytest.raises(ValueError, match="are closed"):
            use()
    assert kept.get("k1") is None and (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 1


def test_threads_share_it(tmp_path: Path) -> None:
    with KeyedLines(tmp_path, "a") as kept:

        def work(thread: int) -> None:
            for number in range(200):
                kept.put(f"{thread % 2}:{number}", {"text": f"{number}" * 50})
                assert kept.get(f"{thread % 2}:{number}") == {"text": f"{number}" * 50}

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(kept) == 400
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines()
    assert len(lines) == 400 and all(json.loads(line)["made"]["text"] for line in lines)
    with KeyedLines(tmp_path, "a") as again:
        assert all(made == {"text": key[2:] * 50} for key, made in again.items())


@pytest.mark.parametrize("text", ["", 'a"b\\c', "line\nend\r\u2028\u0085", "Größe 图像 🎬", "\ud83c half", "}}\n", '{"key": "x"'])
def test_any_text_is_a_key_and_a_value(tmp_path: Path, text: str) -> None:
    with KeyedLines(tmp_path, "a") as kept:
        kept.put(text, {"text": text})
        kept.put("next", {})
        assert kept.get(text) == {"text": text}
    with KeyedLines(tmp_path, "b") as again:
        assert again.get(text) == {"text": text} and "next" in again and len(again) == 2


def test_what_json_cannot_hold_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    with KeyedLines(tmp_path, "a") as kept:
        with pytest.raises(ValueError, match="not JSON compliant"):
            kept.put("k1", {"score": float("nan")})
        assert "k1" not in kept and (tmp_path / "a.jsonl").read_bytes() == b""


def test_a_full_disk_is_told_and_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    with KeyedLines(tmp_path, "a") as kept:
        kept.put("k1", {"n": 1})
        monkeypatch.setattr(keyed_lines.os, "write", lambda fd, line: whole(fd, line[:7]))
        with pytest.raises(CheckpointError, match=r"only 7 of 32 bytes could be written.*make room"):
            kept.put("k2", {"n": 2})
        monkeypatch.setattr(keyed_lines.os, "write", whole)
        assert "k2" not in kept
        kept.put("k3", {"n": 3})
        assert kept.get("k3") == {"n": 3}
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"key": "k1", "made": {"n": 1}}\n{"key": "k3", "made": {"n": 3}}\n'


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with KeyedLines(tmp_path, "a") as kept:
        kept.put("k1", {})
    assert "this file system has no locks" in capsys.readouterr().err


def test_other_files_in_the_folder_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not JSON")
    with KeyedLines(tmp_path, "a") as kept:
        assert len(kept) == 0


@pytest.mark.parametrize("writer", ["", "../a", "a/b", ".a", "a b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, writer: str) -> None:
    with pytest.raises(ValueError, match="make a file name"):
        KeyedLines(tmp_path / "answers", writer)
    assert not (tmp_path / "answers").exists()


def test_texts_stay_on_disk(tmp_path: Path) -> None:
    """8,000 answers of 4 kB each: 0.27 kB a line stays in memory, its key and its place."""
    with KeyedLines(tmp_path, "a") as kept:
        for number in range(8000):
            kept.put(f"{number:064d}", {"text": "word " * 800})
    tracemalloc.start()
    with KeyedLines(tmp_path, "b") as again:
        held, peak = tracemalloc.get_traced_memory()
        assert len(again) == 8000
    tracemalloc.stop()
    assert held < 8000 * 500 and peak < 8000 * 600
