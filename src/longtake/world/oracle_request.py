"""What a request asks: its purpose, its blocks of data, its images, and the chance that belongs to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from longtake.errors import LongtakeError
from longtake.llm.prompts import TAGS
from longtake.observe.digest import digest_of
from longtake.world.truth import same_meaning

CANNOT_TELL = "cannot tell"
MAX_ANSWER_CHARS = 1000
"""Where the schema sets no limit."""
_BLOCK = re.compile(rf"^<({'|'.join(TAGS)})>\n(.*?)\n?</\1>$", re.MULTILINE | re.DOTALL)
_OPTION = re.compile(r"^([A-H])\. ?(.*)$", re.MULTILINE)
_SPAN = re.compile(r"^(-?\d+(?:\.\d+)?) s - (-?\d+(?:\.\d+)?) s$", re.MULTILINE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class OracleRequestError(LongtakeError):
    """A request that the world's oracle cannot answer."""


@dataclass(frozen=True, eq=False)
class OracleRequest:
    """A question to the oracle."""

    purpose: str
    """Name of its schema: caption, ground, question_temporal, open_goal, rewrite, support, watch, blind, judge."""
    text: str
    """All texts of the user's message."""
    images: tuple[bytes, ...] = ()
    seed: int = 0
    """Which of several answers to the same question is wanted."""
    schema: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Equal requests get equal answers."""
        return digest_of("oracle 1", self.purpose, self.text, self.images, self.seed)

    @cached_property
    def blocks(self) -> dict[str, str]:
        """Tag -> text; the first of each."""
        found: dict[str, str] = {}
        for tag, text in _BLOCK.findall(self.text):
            found.setdefault(tag, text)
        return found

    def block(self, tag: str) -> str:
        """Raises OracleRequestError when there is none."""
        if tag not in self.blocks:
            raise OracleRequestError(
                f"a request for {self.purpose} without a block <{tag}>",
                rule="data stand in blocks between tags, each alone on its line",
                remedy="compare the prompt with the shipped ones",
            )
        return self.blocks[tag]

    @property
    def options(self) -> list[str]:
        """Texts, in the order of the letters; [] for an open-ended question."""
        return [text for _, text in _OPTION.findall(self.blocks.get("options", ""))]

    @property
    def ranges(self) -> list[tuple[float, float]]:
        return [(float(start), float(stop)) for start, stop in _SPAN.findall(self.blocks.get("ranges", ""))]

    @property
    def times_s(self) -> list[float]:
        return [float(number) for number in _NUMBER.findall(self.blocks.get("times", ""))]

    @property
    def duration_s(self) -> float | None:
        found = _NUMBER.search(self.blocks.get("video", ""))
        return float(found.group()) if found else None

    @property
    def count(self) -> int:
        """How many questions are wanted at most."""
        found = _NUMBER.search(self.blocks.get("count", ""))
        return int(found.group()) if found else 1

    @property
    def max_answer_chars(self) -> int:
        """Longest open-ended answer that the schema allows."""
        found: Any = self.schema
        for name in ("properties", "questions", "items", "properties", "answer", "maxLength"):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, int) else MAX_ANSWER_CHARS

    def chance(self, seed: int, what: str) -> np.random.Generator:
        """A generator for one decision about this request, which no other decision disturbs."""
        return np.random.default_rng(int(digest_of(seed, self.digest, what)[:16], 16))


def place_among(options: Sequence[str], answer: str | None) -> int | None:
    """Index of the first option that means the answer; None when none does, or there is no answer."""
    if answer is None:
        return None
    return next((index for index, option in enumerate(options) if same_meaning(option, answer)), None)
