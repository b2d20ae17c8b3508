"""Training checkpoints: whole or absent, checked before use, the last few and the best kept.

A checkpoint is a folder `RUN/checkpoints/step-00000050/`:

    weights/    every tensor of the model (adapters only when LoRA trains; the base is then checked by digest)
    optimizer/  moments and counters by parameter name
    rng/        states of the random generators
    config.json the resolved configuration
    manifest.json  step, data position, extras, versions, and the sha256 of every file above and of itself
    best        an empty marker file, when validation said so

It is written into a hidden folder beside its place, flushed to the disk, and renamed: a kill at any moment leaves either the
whole checkpoint or none. A step that is saved again gets a folder of its own (`step-00000050.1`), so nothing is ever replaced.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import transformers

import longtake
from longtake.config.llm import EndpointConfig
from longtake.config.sections import ImportanceConfig, VideoLimits
from longtake.errors import CheckpointError
from longtake.observe.digest import digest_of, digest_of_each, file_digest
from longtake.parallel.sharded_tensors import full_state, whole
from longtake.training.rng import rng_state, set_rng_state
from longtake.training.tensor_files import TensorFiles, check_layout, load_tensors, read_tensors, save_tensors
from longtake.training.trainable import lora_layers, trainable_parameters

if TYPE_CHECKING:
    from longtake.config.base import Section
    from longtake.models.family import Model
    from longtake.training.optimizer import Optimizer

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, MARKER = "manifest.json", "best"
NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")

MAY_CHANGE = (
    *("out", "resume", "max_seconds", "steps", "max_steps", "epochs", "observe", "checkpoint"),
    *("max_logprob_difference", "validation.every", "validation.patience", "num_threads", "micro_batch_size", "micro_batch_tokens"),
    *("rollout.max_rows", "rollout.vllm", "model.device", "model.gradient_checkpointing", "data.max_failed_fraction", "cache", "parallel"),
    *("rewards.judge.folder", "rewards.judge.budget", "rewards.judge.local.device"),
    *(f"rewards.judge.endpoint.{name}" for name in EndpointConfig.model_fields if name not in ("model", "extra_body")),
)
"""What a resumed run may set anew: how long it goes on, where and how fast it runs, what it shows. Everything else is the experiment.
(`steps` under a cosine schedule bends the rest of the curve to the new end.)"""

CAME_LATER: dict[str, Any] = {
    "data.format": "auto",
    "validation.data.format": "auto",
    "data.longest_first": False,
    "validation.data.longest_first": False,
    "rollout.engine": "transformers",
    "rollout.staleness": 0,
    **{f"algorithm.importance.{name}": value for name, value in ImportanceConfig().model_dump().items()},
    "rewards.judge": None,
    "video.limits.max_image_bytes": VideoLimits().max_image_bytes,
}
"""Fields that the configurations of older runs do not have, and what those runs did."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint that has been checked."""

    path: Path
    step: int
    """Optimizer (SFT) or RL steps that are behind it."""
    position: int
    """Rows consumed from the data order."""
    extra: dict[str, Any]
    """What the stage put in: best score, seconds spent, ..."""
    config: dict[str, Any]
    """The configuration it was written under, as JSON."""
    manifest: dict[str, Any]
    """All of manifest.json: versions, random numbers, digests."""


class CheckpointStore:
    """The checkpoints of one run. Single writer."""

    def __init__(self, run_dir: Path, keep_last: int = 2) -> None:
        self.folder = run_dir / "checkpoints"
        self.keep_last = keep_last
        self._frozen: tuple[int, str] | None = None

    def save(
        self,
        step: int,
        model: Model,
        optimizer: Optimizer,
        config: Section,
        *,
        position: int = 0,
        extra: dict[str, Any] | None = None,
        best: bool = False,
    ) -> Path:
        """Write one checkpoint and return its folder; then delete what is neither among the newest `keep_last` nor the best.

        `extra` is any JSON. Raises CheckpointError when it cannot be written; the older ones are untouched then. Of a sharded model only
        rank 0 calls this, while all others call `take_part`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        part = self.folder / f".part-{uuid.uuid4().hex}"
        try:
            self._write(part, step, model, optimizer, config, position, extra or {})
            if best:
                (part / MARKER).touch()
            final = self._free_name(step)
            _flush(part)
            part.rename(final)
            _flush_folder(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint of step {step} could not be written to {self.folder}: {error}",
                rule="a checkpoint is written whole",
                remedy="free some disk space or check the permissions; the older checkpoints are untouched",
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._prune()
        return final

    def take_part(self, model: Model, optimizer: Optimizer) -> None:
        """While rank 0 saves a sharded model: this rank gives its part of every tensor. Does nothing where the model is whole."""
        if model.root is not None:
            self._frozen_digest(model)
            full_state(saved_weights(model))
            full_state(optimizer.state_dict())

    def mark_best(self, path: Path) -> None:
        """Say that this checkpoint is the best so far; the mark moves, and the old best may go at the next save."""
        (path / MARKER).touch()
        _flush_folder(path)
        for other in self._folders():
            if other != path:
                (other / MARKER).unlink(missing_ok=True)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; each one skipped gets a line in the log. None: nothing was saved yet.

        Raises CheckpointError when there are checkpoints but none is whole: to start over in silence would cost the run.
        """
        folders = self._folders()
        found = self._newest(folders)
        if folders and found is None:
            raise CheckpointError(
                f"none of the {len(folders)} checkpoints in {self.folder} is whole",
                rule="a run goes on from a whole checkpoint",
                remedy="restore one, or remove the folder to start over",
            )
        return found

    def best(self) -> Checkpoint | None:
        """The newest whole checkpoint that is marked as the best."""
        return self._newest([path for path in self._folders() if (path / MARKER).exists()])

    def load(self, checkpoint: Checkpoint, model: Model, optimizer: Optimizer | None = None, config: Section | None = None) -> None:
        """Fill the model in place; with an optimizer also its state and the random generators (a resume); check the config if given.

        The model must have been loaded and `choose_trainable` called with the configuration of the checkpoint.
        Raises CheckpointError before anything is changed when config, base weights, names, shapes or types do not fit.
        """
        if config is not None:
            check_same_experiment(checkpoint.config, json.loads(config.model_dump_json()))
        weights = saved_weights(model)
        check_layout(checkpoint.path / "weights", weights)
        if checkpoint.manifest["frozen"] != self._frozen_digest(model):
            raise CheckpointError(
                f"{checkpoint.path.name} was trained on other base weights than model.path holds now",
                rule="adapters belong to one base",
                remedy="restore the base checkpoint directory the run was started from",
            )
        if optimizer is not None:
            optimizer.load_state_dict(TensorFiles(checkpoint.path / "optimizer"))
        load_tensors(checkpoint.path / "weights", weights)
        if optimizer is not None:
            set_rng_state(read_tensors(checkpoint.path / "rng"), checkpoint.manifest["rng"])
        if checkpoint.manifest["code"] != code_version():
            logger.warning("%s was written by other code or libraries: the continuation may not be bit-identical", checkpoint.path.name)

    def _write(
        self, part: Path, step: int, model: Model, optimizer: Optimizer, config: Section, position: int, extra: dict[str, Any]
    ) -> None:
        part.mkdir()
        random_tensors, random_numbers = rng_state()
        frozen = self._frozen_digest(model)
        save_tensors(part / "weights", full_state(saved_weights(model)))
        save_tensors(part / "optimizer", full_state(optimizer.state_dict()))
        save_tensors(part / "rng", random_tensors)
        (part / "config.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "step": step,
            "position": position,
            "extra": extra,
            "rng": random_numbers,
            "frozen": frozen,
            "code": code_version(),
            "files": {name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for name, path in _files(part).items()},
        }
        manifest = json.loads(json.dumps(manifest))  # as it will be read back: keys are strings, tuples are lists
        manifest["sha256"] = _manifest_digest(manifest)
        (part / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _frozen_digest(self, model: Model) -> str:
        """sha256 of what `weights/` leaves out; it never changes in a run, so it is computed once per model.

        Every rank must call it where the model is sharded.
        """
        if self._frozen is None or self._frozen[0] != id(model):
            saved = saved_weights(model)
            rest = {name: tensor for name, tensor in _all_weights(model).items() if name not in saved}
            self._frozen = (id(model), digest_of_each(part for name in sorted(rest) for part in (name, whole(rest[name]))))
        return self._frozen[1]

    def _folders(self) -> list[Path]:
        """Folders with the name of a checkpoint, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir()), key=_order, reverse=True)

    def _newest(self, folders: list[Path]) -> Checkpoint | None:
        for path in folders:
            try:
                return read_checkpoint(path)
            except CheckpointError as error:
                logger.warning("%s Skipped; trying an older one.", error)
        return None

    def _free_name(self, step: int) -> Path:
        taken = [_order(path)[1] for path in self._folders() if _order(path)[0] == step]
        return self.folder / (f"step-{step:08d}.{max(taken) + 1}" if taken else f"step-{step:08d}")

    def _prune(self) -> None:
        """Only sound folders count as kept: a damaged one must not push out the one that would be fallen back to."""
        sound = [path for path in self._folders() if _looks_whole(path)]
        keep = set(sound[: self.keep_last]) | set([path for path in sound if (path / MARKER).exists()][:1])
        for path in self._folders():
            if path not in keep:
                # Renamed first: a kill in the middle of deleting leaves nothing with a checkpoint's name.
                path.rename(self.folder / f".old-{uuid.uuid4().hex}")
        self._sweep()

    def _sweep(self) -> None:
        """Delete what killed runs left behind."""
        for path in [*self.folder.glob(".part-*"), *self.folder.glob(".old-*")]:
            shutil.rmtree(path, ignore_errors=True)


def find_checkpoint(path: Path, which: Literal["latest", "best"] = "latest") -> Checkpoint:
    """The checkpoint at `path`: a run folder (then its latest or best), or one checkpoint folder. Raises CheckpointError."""
    if NAME.fullmatch(path.name) or (path / MANIFEST).exists():
        return read_checkpoint(path)
    store = CheckpointStore(path)
    found = store.best() if which == "best" else store.latest()
    if found is None:
        raise CheckpointError(
            f"{path} has no {which} checkpoint that is whole",
            rule="a run folder holds checkpoints/step-...",
            remedy="give the folder of a run that has saved at least once" + (", or which=latest" if which == "best" else ""),
        )
    return found


def read_checkpoint(path: Path) -> Checkpoint:
    """Check every byte of one checkpoint folder and return it. Raises CheckpointError naming the first thing that is wrong."""
    manifest = _read_manifest(path)
    files = _files(path)
    for name in sorted(files.keys() | manifest["files"].keys()):
        if name not in files or name not in manifest["files"]:
            raise _damaged(path, f"{name} is {'missing' if name not in files else 'not in its manifest'}")
        if file_digest(files[name]) != manifest["files"][name]["sha256"]:
            raise _damaged(path, f"{name} does not have the sha256 of the manifest")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return Checkpoint(path, manifest["step"], manifest["position"], manifest["extra"], config, manifest)


def check_same_experiment(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise CheckpointError naming every key that differs and changes the maths (see MAY_CHANGE)."""
    old, new = _flatten(before), _flatten(now)
    for key, value in CAME_LATER.items():
        if key in new:
            old.setdefault(key, value)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key, "(absent)") != new.get(key, "(absent)"))
    keys = [key for key in keys if not any(key == free or key.startswith(free + ".") for free in MAY_CHANGE)]
    if keys:
        changes = "; ".join(f"{key} was {old.get(key, '(absent)')!r}, is {new.get(key, '(absent)')!r}" for key in keys)
        raise CheckpointError(
            f"the run was started with another configuration: {changes}",
            rule="a resumed run is the same experiment",
            remedy="set these back, or start anew in another `out`",
        )


def saved_weights(model: Model) -> dict[str, torch.Tensor]:
    """The live tensors a checkpoint holds: the adapters when there are any, else every parameter (a tied one once) and buffer."""
    if lora_layers(model):
        return {name: parameter.detach() for name, parameter in trainable_parameters(model).items()}
    return _all_weights(model)


@lru_cache(maxsize=1)
def code_version() -> dict[str, str]:
    """Versions of what decides the bits, and a digest of our own source (a checkout may differ from its version number)."""
    root = Path(longtake.__file__).parent
    source = [part for path in sorted(root.rglob("*.py")) for part in (str(path.relative_to(root)), path.read_bytes())]
    return {
        "longtake": longtake.__version__,
        "source": digest_of(*source),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def _all_weights(model: Model) -> dict[str, torch.Tensor]:
    persistent = model.hf.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.hf.named_buffers() if name in persistent}
    return {name: parameter.detach() for name, parameter in model.hf.named_parameters()} | buffers


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, f"{MANIFEST} cannot be read ({type(error).__name__})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("sha256") != _manifest_digest(manifest):
        raise _damaged(path, f"{MANIFEST} is not one of format {FORMAT}, or was changed")
    return manifest


def _manifest_digest(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return digest_of(json.dumps(rest, sort_keys=True))


def _looks_whole(path: Path) -> bool:
    """The cheap half of `read_checkpoint`: a true manifest, and every file there in its full size."""
    try:
        wanted = {name: entry["bytes"] for name, entry in _read_manifest(path)["files"].items()}
    except CheckpointError:
        return False
    return wanted == {name: file.stat().st_size for name, file in _files(path).items()}


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: {what}", rule="a checkpoint is whole", remedy="delete the folder; an older one is used")


def _files(path: Path) -> dict[str, Path]:
    """Every file the manifest vouches for, by its name inside the checkpoint."""
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    return {name: file for name, file in files.items() if name not in (MANIFEST, MARKER)}


def _order(path: Path) -> tuple[int, int]:
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _flush(folder: Path) -> None:
    """fsync every file, then every folder from the inside out: the rename must not reach the disk before the bytes."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        _flush_folder(Path(parent))


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
