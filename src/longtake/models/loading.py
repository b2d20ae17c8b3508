"""From a configuration to a model: which directory, which family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from longtake.config.sections import ModelConfig
from longtake.errors import ModelError
from longtake.models import qwen2_5_vl
from longtake.models.family import Model
from longtake.models.tiny import TINY_PATH

FAMILIES: dict[str, Callable[[Path, ModelConfig, bool], Model]] = {"qwen2_5_vl": qwen2_5_vl.load}
"""`model_type` of config.json -> loader."""


def load_model(config: ModelConfig, *, on_meta: bool = False) -> Model:
    """Load the checkpoint directory `config.path` (`tiny`: the model that ships in the package).

    Local directories of safetensors only: nothing is downloaded, no pickle is read, no code of a checkpoint runs. Raises ModelError.
    `on_meta`: everything but the weights, which have no memory until `training.shard_loading.fill`.
    """
    path = model_folder(config)
    loader = FAMILIES[_model_type(path)]
    _check_safetensors(path)
    return loader(path, config, on_meta)


def model_folder(config: ModelConfig) -> Path:
    """The directory that `config.path` means. Raises ModelError when it is none."""
    path = TINY_PATH if config.path == "tiny" else Path(config.path).expanduser()
    if not path.is_dir():
        raise ModelError(
            f"model.path = {config.path!r} is no directory",
            rule="a model is a local checkpoint directory, or `tiny`",
            remedy=f"download it first (`hf download {config.path} --local-dir DIR`) and give DIR",
        )
    return path


def _model_type(path: Path) -> str:
    try:
        model_type = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}/config.json: {type(error).__name__}: {error}",
            rule="a checkpoint directory has a config.json with a model_type",
            remedy="give the directory that holds config.json and *.safetensors",
        ) from error
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelError(
            f"{path} is of model_type {model_type!r}", rule=f"supported: {', '.join(FAMILIES)}", remedy="use one of these families"
        )
    return model_type


def _check_safetensors(path: Path) -> None:
    if not any(path.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
        found = f"only {', '.join(pickles)}" if pickles else "no weights"
        raise ModelError(
            f"{path} holds {found}",
            rule="weights are *.safetensors; pickled weights can run code and are never read",
            remedy="convert them once with transformers: from_pretrained(...).save_pretrained(DIR), on a machine you can lose",
        )
