"""The folder of a run of `longtake curate run` with INVENTED outputs about a real small world, to look at the page of it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longtake.config.curate import CurateConfig, IngestConfig, StageName
from longtake.config.load import dump_config
from longtake.config.stages import WorldConfig
from longtake.curation.outputs import write_stage
from longtake.curation.records import (
    Box,
    Caption,
    CheckedRow,
    Clip,
    Draft,
    Drop,
    Finding,
    Outcome,
    PlacedRow,
    RatedRow,
    SourceVideo,
    TimeRange,
    VideoClips,
    named,
)
from longtake.world.write import write_world

GONE = "gone.mp4"
"""A video that was taken, and is not there any more."""
PLAIN_CHECKS = ("letters", "options", "ranges", "language", "leak", "duplicate")


@dataclass(frozen=True)
class World:
    """A world on disk with its stories."""

    folder: Path
    stories: tuple[dict[str, Any], ...]
    rows: tuple[dict[str, Any], ...]


def make_world(folder: Path, num_videos: int = 3, **more: Any) -> World:
    """`longtake world make`, with the questions and the event log read back."""
    write_world(WorldConfig(out=folder, num_videos=num_videos, workers=1, questions_per_video=8, **more))
    stories, rows = ([json.loads(line) for line in (folder / name).read_text().splitlines()] for name in ("events.jsonl", "rows.jsonl"))
    return World(folder, tuple(stories), tuple(rows))


def write_curated_run(out: Path, world: World, *, mark: str = "", until: StageName = "split", seed: int = 0) -> Path:
    """Write the outputs of all stages up to `until`; `mark` is put into every text that comes from outside. Returns `out`.

    ingest drops a video, caption a clip, rewrite the first draft (no row is written with these three). Of the others, counted from 1, check
    drops every eighth from the first on by `blind`, from the second by `support`, from the third by `options` (without findings); of
    those left, difficulty drops the fourth of every five, and the splits are sft, rl, rl, eval in turn. The last draft is about GONE.
    """
    made = _stages(world, mark, random.Random(seed))
    out.mkdir(parents=True, exist_ok=True)
    config = CurateConfig(videos=world.folder, out=out, ingest=IngestConfig(licence=f"CC BY 4.0{mark}"))
    (out / "config.json").write_text(dump_config(config))
    for stage, outcome in made.items():
        write_stage(out, stage, outcome)
        if stage == until:
            break
    return out


def _stages(world: World, mark: str, draw: random.Random) -> dict[StageName, Outcome[Any]]:
    videos = [_source(story, mark) for story in world.stories]
    videos.append(replace(videos[0], video=GONE, digest="f" * 64))
    clips = [VideoClips(one.video, one.digest, _clips(one.duration_s)) for one in videos]
    captions = [_caption(video, clip, world, mark) for video in clips for clip in video.clips]
    drafts = [_draft(row, world, mark) for row in world.rows]
    drafts.append(named(replace(drafts[-1], video=GONE, digest="f" * 64, question="Is the video there?" + mark)))
    same = Drop("ingest", "duplicate_video" + mark, f"the same as {videos[0].video}{mark}", video="videos/copy.mp4" + mark)
    cut_off = Drop("caption", "bad_answer", f"the answer was cut off{mark}", video=videos[0].video)
    rewritten = [replace(one, reasoning=f"In the video, I see: {one.reasoning}") for one in drafts[1:]]
    unwritten = Drop("rewrite", "bad_answer", f"3 answers were no JSON{mark}", drafts[0].video, drafts[0].key, drafts[0].category)
    checked = [_checked(number, one, mark, draw) for number, one in enumerate(rewritten, 1)]
    kept = [one for one in checked if isinstance(one, CheckedRow)]
    rated = [_rated(one, number, draw) for number, one in enumerate(kept, 1)]
    certain = [one for one in rated if one.num_right == one.num_takes]
    uncertain = [one for one in rated if one not in certain]
    sure = tuple(Drop("difficulty", "always_right", "10 of 10 answers are right", **_row(one.draft)) for one in certain)
    placed = [PlacedRow(one, ("sft", "rl", "rl", "eval")[number % 4]) for number, one in enumerate(uncertain)]
    return {
        "ingest": Outcome(tuple(videos), (same,)),
        "segment": Outcome(tuple(clips), ()),
        "caption": Outcome(tuple(captions[1:]), (cut_off,)),
        "ground": Outcome(tuple(_box(one, mark, index) for one in captions for index in range(2)), ()),
        "question": Outcome(tuple(drafts), ()),
        "rewrite": Outcome(tuple(rewritten), (unwritten,)),
        "check": Outcome(tuple(kept), tuple(one for one in checked if isinstance(one, Drop))),
        "difficulty": Outcome(tuple(uncertain), sure),
        "split": Outcome(tuple(placed), ()),
    }


def _source(story: dict[str, Any], mark: str) -> SourceVideo:
    return SourceVideo(
        video=story["video"],
        digest=f"{story['seed']:064x}",
        duration_s=story["duration_s"],
        width=112,
        height=112,
        num_frames=round(2 * story["duration_s"]),
        hashes=("0" * 16,),
        licence=f"CC BY 4.0{mark}",
        source=f"https://example.org/world{mark}",
    )


def _clips(duration_s: float) -> tuple[Clip, ...]:
    num = round(duration_s / 10)
    return tuple(Clip(duration_s * index / num, duration_s * (index + 1) / num) for index in range(num))


def _story(world: World, video: str) -> dict[str, Any]:
    return next((one for one in world.stories if one["video"] == video), world.stories[0])


def _caption(video: VideoClips, clip: Clip, world: World, mark: str) -> Caption:
    seen = []
    for scene in _story(world, video.video)["scenes"]:
        if scene["start_s"] < clip.stop_s and scene["stop_s"] > clip.start_s:
            event = scene["event"]
            acted = [
                event["actor"],
                event["kind"],
                event["thing"],
                f"to {event['other']}" if event["thing"] and event["other"] else event["other"],
            ]
            seen.append(
                f"In the {scene['place']}, "
                + " ".join(part for part in acted if part)
                + (", while a bird flies by." if scene["has_bird"] else ".")
            )
    middle = (clip.start_s + clip.stop_s) / 2
    return Caption(video.video, video.digest, clip.start_s, clip.stop_s, (middle,), " ".join(seen) + mark)


def _box(caption: Caption, mark: str, index: int) -> Box:
    box = (100 + 400 * index, 350, 420 + 400 * index, 800)
    return Box(caption.video, caption.digest, caption.times_s[0], ("red square", "blue circle")[index] + mark, box)


def _draft(row: dict[str, Any], world: World, mark: str) -> Draft:
    """One of the world's own questions, whose evidence is one or two of the scenes."""
    asked, *options = row["problem"].split("\n")
    texts = tuple(option[3:] + mark for option in options)
    letter = row["answer"].removeprefix("<answer>").removesuffix("</answer>")
    scenes = _story(world, row["videos"])["scenes"]
    cited = scenes[row["problem_id"] % len(scenes) :][: 1 + row["problem_id"] % 2]
    return named(
        Draft(
            video=row["videos"],
            digest=f"{_story(world, row['videos'])['seed']:064x}",
            category=row["problem_type"],
            question=asked + mark,
            options=texts,
            answer=texts["ABCD".index(letter)] if texts else letter + mark,
            reasoning=row["reasoning"] + mark,
            ranges=tuple(TimeRange(round(one["event_start_s"], 1), round(one["event_stop_s"], 1)) for one in cited),
        )
    )


def _row(draft: Draft) -> dict[str, Any]:
    return {"video": draft.video, "key": draft.key, "category": draft.category, "draft": draft}


def _votes(draft: Draft, right: int, num: int) -> tuple[str, ...]:
    if not draft.options:
        return ("yes",) * right + ("no",) * (num - right)
    others = [option for option in draft.options if option != draft.answer]
    return (draft.answer,) * right + tuple(others[index % 3] for index in range(num - right))


def _checked(number: int, draft: Draft, mark: str, draw: random.Random) -> CheckedRow | Drop:
    def asked(check: str, right: int, num: int, passed: bool) -> Finding:
        return Finding(check, passed, f"{right} of {num} votes name the key{mark}", _votes(draft, right, num))

    plain = tuple(Finding(name, passed=True) for name in PLAIN_CHECKS)
    support, watch = asked("support", draw.choice((3, 4, 5)), 5, passed=True), asked("watch", draw.choice((3, 4, 5)), 5, passed=True)
    blind = asked("blind", draw.choice((0, 1, 2, 3)), 6, passed=True)
    match number % 8:
        case 1:
            found = (*plain, support, watch, asked("blind", 6, 6, passed=False))
            return Drop("check", "blind", f"6 of 6 answers without the video are right{mark}", **_row(draft), findings=found)
        case 2:
            found = (*plain, asked("support", 1, 4, passed=False))
            return Drop("check", "support", f"only 1 of 4 answers from the cited captions is the key{mark}", **_row(draft), findings=found)
        case 3:
            return Drop("check", "options" + mark, f"options A and C are the same{mark}", **_row(draft))
    return CheckedRow(draft, (*plain, support, watch, blind))


def _rated(row: CheckedRow, number: int, draw: random.Random) -> RatedRow:
    right = 10 if number % 5 == 4 else draw.randint(1, 9)
    return RatedRow(row.draft, right, 10, _votes(row.draft, right, 10))
