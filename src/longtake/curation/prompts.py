"""The words that models are sent, a file for each purpose, and how data is written into their blocks (`longtake.llm.prompts.block`).

A prompt is `<purpose>.txt` with `$name` placeholders (string.Template). The shipped ones are in assets/prompts; a folder may hold others
in their place, with the same placeholders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template

from longtake.curation.records import LETTERS, Box, Caption, Clip, TimeRange
from longtake.errors import CurationError
from longtake.llm.prompts import SHIPPED, flat
from longtake.llm.prompts import block as block  # what is filled into prompts is made with it
from longtake.observe.digest import digest_of

ELSEWHERE = ("judge",)
"""Shipped prompts that other rooms use: a folder cannot replace them here."""


class Prompts:
    """The prompt of every purpose.

    Raises CurationError, all problems at once, when a file of `folder` has no shipped counterpart, cannot be read, or has other
    placeholders than the shipped one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._texts = {purpose: text for purpose, text in _read_folder(SHIPPED).items() if purpose not in ELSEWHERE}
        if folder is not None:
            own = _read_folder(folder)
            problems = [problem for purpose, text in own.items() for problem in _objections(purpose, text, self._texts)]
            if problems:
                raise _wrong(f"prompts in {folder}: {'; '.join(problems)}")
            self._texts = {**self._texts, **own}

    @property
    def purposes(self) -> tuple[str, ...]:
        return tuple(sorted(self._texts))

    @property
    def digest(self) -> str:
        """Of all of them."""
        return digest_of("prompts 1", *((purpose, self._texts[purpose]) for purpose in self.purposes))

    def text(self, purpose: str) -> str:
        """As it stands in the file. Raises CurationError for a purpose without one."""
        if purpose not in self._texts:
            raise _wrong(f"prompt {purpose}.txt: there is none, only {', '.join(self.purposes)}")
        return self._texts[purpose]

    def render(self, purpose: str, **values: str | int | float) -> str:
        """The text with a value for each of its placeholders. Raises CurationError when some lack one, or a value has no placeholder."""
        template = Template(self.text(purpose))
        wanted, given = set(template.get_identifiers()), set(values)
        if wanted != given:
            lacking = "".join(f", no value for ${name}" for name in sorted(wanted - given))
            unused = "".join(f", no place for ${name}" for name in sorted(given - wanted))
            raise _wrong(f"prompt {purpose}.txt{lacking}{unused}")
        return template.substitute({name: str(value) for name, value in values.items()})


def _read_folder(folder: Path) -> dict[str, str]:
    """purpose -> text of its .txt files."""
    if not folder.is_dir():
        raise _wrong(f"prompts: {folder} is not a folder")
    texts = {}
    for path in sorted(folder.glob("*.txt")):
        try:
            texts[path.stem] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _wrong(f"prompt {path} cannot be read: {error}") from error
    return texts


def _objections(purpose: str, text: str, shipped: Mapping[str, str]) -> list[str]:
    """What is wrong with a prompt that stands in for a shipped one."""
    if purpose not in shipped:
        return [f"{purpose}.txt is none of {', '.join(f'{name}.txt' for name in sorted(shipped))}"]
    template = Template(text)
    if not template.is_valid():
        return [f"{purpose}.txt has a $ that begins no placeholder (a plain one is written $$)"]
    wanted, found = set(Template(shipped[purpose]).get_identifiers()), set(template.get_identifiers())
    lacking = [f"{purpose}.txt lacks ${name}" for name in sorted(wanted - found)]
    return lacking + [f"{purpose}.txt has ${name}, which nothing fills" for name in sorted(found - wanted)]


def _wrong(given: str) -> CurationError:
    return CurationError(
        given,
        rule="a prompt is a text file with the placeholders of the shipped one, and each of them gets a value",
        remedy=f"compare it with the files in {SHIPPED}",
    )


def caption_lines(captions: Iterable[Caption]) -> str:
    """`[12.0 s - 22.0 s] text`, a line for each."""
    return "\n".join(f"[{span(caption)}] {flat(caption.text)}" for caption in captions)


def range_lines(ranges: Iterable[TimeRange]) -> str:
    """`12.0 s - 22.0 s`, a line for each."""
    return "\n".join(span(one) for one in ranges)


def option_lines(options: Sequence[str]) -> str:
    """`A. text`, a line for each."""
    return "\n".join(f"{LETTERS[index]}. {flat(option)}" for index, option in enumerate(options))


def object_lines(boxes: Iterable[Box]) -> str:
    """`[12.50 s] label: left 112, top 540, right 208, bottom 701`, a line for each."""
    sides = ("left", "top", "right", "bottom")
    return "\n".join(
        f"[{box.time_s:.2f} s] {flat(box.label)}: {', '.join(f'{side} {at}' for side, at in zip(sides, box.box, strict=True))}"
        for box in boxes
    )


def time_list(times_s: Iterable[float]) -> str:
    """`3.25 s, 5.75 s`."""
    return ", ".join(f"{time_s:.2f} s" for time_s in times_s)


def video_line(duration_s: float) -> str:
    """What is told of a video: never its name, from which a model could guess."""
    return f"duration {duration_s:.1f} s"


def span(part: Caption | Clip | TimeRange) -> str:
    """`12.0 s - 22.0 s`."""
    return f"{part.start_s:.1f} s - {part.stop_s:.1f} s"
