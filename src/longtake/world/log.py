"""The event log of a world on disk, read back into stories."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from longtake.config.stages import WorldConfig
from longtake.errors import ConfigError
from longtake.world.story import Story


@dataclass(frozen=True)
class WorldLog:
    """What `longtake world make` wrote into a folder."""

    config: WorldConfig
    stories: tuple[Story, ...]
    names: tuple[str, ...]
    """Of the videos, relative to the folder, in the order of the stories."""

    @property
    def folder(self) -> Path:
        return self.config.out


def read_world(folder: Path) -> WorldLog:
    """Raises ConfigError for a folder that holds no world."""
    try:
        config = WorldConfig.model_validate({**json.loads((folder / "world.json").read_text(encoding="utf-8")), "out": folder})
        lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        logged = [json.loads(line) for line in lines]
        names = tuple(str(story.pop("video")) for story in logged)
        return WorldLog(config, tuple(_STORY.validate_python(story) for story in logged), names)
    except (OSError, ValueError, KeyError, AttributeError, ValidationError) as error:
        raise ConfigError(
            f"{folder} holds no world: {error}",
            rule="a world is a folder with world.json, events.jsonl and videos/",
            remedy="write one with longtake world make --out FOLDER",
        ) from error


_STORY = TypeAdapter(Story)
