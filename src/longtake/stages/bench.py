"""`longtake bench decode`: what planned seeking saves over decoding everything."""

from __future__ import annotations

import json
from dataclasses import asdict

from longtake.bench.decode import measure_decode
from longtake.config.stages import BenchDecodeConfig
from longtake.observe.progress import say


def run(config: BenchDecodeConfig) -> None:
    """Print the measurement: JSON on stdout with --json, else a few lines."""
    config.folder.mkdir(parents=True, exist_ok=True)
    found = measure_decode(
        config.folder,
        video_seconds=config.seconds,
        fps=config.fps,
        height=config.height,
        width=config.width,
        keyframe_every_s=config.gop_s,
        num_frames=config.frames,
        threads=config.threads,
    )
    if config.as_json:
        print(json.dumps(asdict(found)))
        return
    say(
        f"{found.num_frames} frames of {found.video_seconds:.0f} s at {found.fps:g} fps: {found.seconds:.1f} s, {found.frames_decoded:,} "
        f"frames decoded (any decoder needs {found.bound:,}); everything: {found.sequential_seconds:.1f} s, "
        f"{found.sequential_frames:,} frames; {found.ratio:.1f} times faster, "
        f"frames {'identical' if found.identical else 'DIFFERENT'}"
    )
