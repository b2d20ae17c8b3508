"""One exception family. Every message says what was given, the rule, and the remedy, on one line."""

from __future__ import annotations

from collections.abc import Sequence


class LongtakeError(Exception):
    """Base of all errors a user can cause or mend.

    >>> raise LongtakeError("rows.jsonl line 3: no field 'answer'", rule="every row has an answer", remedy="add it")
    """

    exit_code = 2

    def __init__(self, given: str, *, rule: str, remedy: str) -> None:
        self.given, self.rule, self.remedy = given, rule, remedy
        super().__init__(f"{one_line(given)}. Rule: {one_line(rule)}. Remedy: {one_line(remedy)}.")


def one_line(text: str) -> str:
    """Fold white space and drop control characters, so that a hostile name cannot forge log lines."""
    folded = " ".join(text.split()).rstrip(".")
    return "".join(char if char.isprintable() else "?" for char in folded)


class ConfigError(LongtakeError):
    """The configuration has problems; the message lists all of them at once, one a line."""

    problems: tuple[ConfigError, ...] = ()
    """The single problems; empty for an error that is one problem itself."""

    @classmethod
    def joined(cls, problems: Sequence[ConfigError]) -> ConfigError:
        """One error for all of `problems` (at least one)."""
        if len(problems) == 1:
            return problems[0]
        error = cls(f"{len(problems)} problems in the configuration", rule="see each line", remedy="see each line")
        error.problems = tuple(problems)
        error.args = ("\n  ".join([f"{error.given}:", *(str(problem) for problem in problems)]),)
        return error


class RowError(LongtakeError):
    """A dataset row is malformed."""


class PathError(LongtakeError):
    """A path leaves its root, is not a regular file, or is not a path at all."""


class VideoError(LongtakeError):
    """A video cannot be used. Subclasses name the reason; the message names the file."""


class VideoMissingError(VideoError):
    """No such file, or not a regular file."""


class VideoEmptyError(VideoError):
    """Zero bytes, or a container without one decodable frame."""


class VideoNoStreamError(VideoError):
    """A media file without a video stream (audio only)."""


class VideoDamagedError(VideoError):
    """The container or the stream is corrupt or truncated."""


class VideoLimitError(VideoError):
    """The file passes a configured limit (pixels, frames, seconds, bytes)."""


class PromptTooLongError(LongtakeError):
    """A rendered prompt passes the token budget and the policy says to refuse."""


class ModelError(LongtakeError):
    """A checkpoint directory cannot be used as a model."""


class CheckpointError(LongtakeError):
    """A training checkpoint is missing, incomplete or does not belong to this run."""


class RewardError(LongtakeError):
    """A reward function is missing or returned something that is not a reward."""


class RolloutError(LongtakeError):
    """The rollout engine could not be started, failed, or has no room for a prompt."""


class LlmError(LongtakeError):
    """A language-model server cannot be used as configured."""


class BudgetError(LongtakeError):
    """The calls of a run would cost more than its budget."""


class CurationError(LongtakeError):
    """Curation cannot go on: nothing is left, or what is there belongs to another run."""


class NoSignalError(LongtakeError):
    """No group with a non-uniform reward was found within the bound of dynamic sampling."""


class MemoryLimitError(LongtakeError):
    """No layout fits into the memory there is."""


class MismatchError(LongtakeError):
    """Sampler and policy disagree on the same tokens by more than the threshold."""


class OtherRankFailedError(LongtakeError):
    """What all ranks share cannot be had, because another rank failed."""


class StopRequested(Exception):
    """SIGTERM or Ctrl-C arrived; the stage has saved and leaves. The message says what was saved."""

    def __init__(self, done: str, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(one_line(done))

    @property
    def exit_code(self) -> int:
        """128 + signal, as a shell reports it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal_number
