"""What the ranks that encode a video together tell each other about it, as JSON: sizes, facts of its frames, errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from longtake import errors
from longtake.errors import LongtakeError, VideoDamagedError
from longtake.types import FrameFacts, Frames, Sampling

Record = dict[str, Any]


def error_record(error: LongtakeError) -> Record:
    return {"error": type(error).__name__, "given": error.given, "rule": error.rule, "remedy": error.remedy}


def error_of(record: Record) -> LongtakeError | None:
    """The same error on another rank; None where the record is none."""
    if "error" not in record:
        return None
    kind = getattr(errors, record["error"])
    error = kind(record["given"], rule=record["rule"], remedy=record["remedy"])
    assert isinstance(error, LongtakeError)
    return error


def frames_record(frames: Frames) -> Record:
    """Of the part of a video's frames that one rank decoded. JSON keeps every bit of a time."""
    return {
        "times_s": frames.times_s.tolist(),
        "size": list(frames.pixels.shape[1:3]),
        "source_digest": frames.source_digest,
        "sampling": asdict(frames.sampling),
    }


def facts_of(records: Sequence[Record]) -> FrameFacts | LongtakeError:
    """Of the whole video, from the records of its parts in the order of ranks; or the first error among them."""
    failed = [error for error in map(error_of, records) if error is not None]
    if failed:
        return failed[0]
    first = records[0]
    names = ("size", "source_digest", "sampling")
    if any(record[name] != first[name] for record in records for name in names):
        return VideoDamagedError(
            f"the video with digest {first['source_digest']} is not the same on all machines",
            rule="every rank reads the same file with the same libraries",
            remedy="compare the file, and the versions of PyAV, on all machines",
        )
    times_s = np.array([time_s for record in records for time_s in record["times_s"]], dtype=np.float64)
    height, width = first["size"]
    return FrameFacts(times_s, height, width, first["source_digest"], Sampling(**first["sampling"]))
