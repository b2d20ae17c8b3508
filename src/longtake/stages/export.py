"""`longtake export`: a run's checkpoint as a plain transformers directory."""

from __future__ import annotations

from pathlib import Path

from longtake.config.sections import ModelConfig
from longtake.config.stages import ExportConfig
from longtake.models import load_model
from longtake.observe.progress import say
from longtake.training.checkpoint import CheckpointStore, find_checkpoint
from longtake.training.export import export_model
from longtake.training.trainable import choose_trainable


def run(config: ExportConfig) -> None:
    """Write config.out, which `from_pretrained` loads; adapters are merged."""
    checkpoint = find_checkpoint(config.run, config.which)
    setting = ModelConfig.model_validate(checkpoint.config["model"]).model_copy(update={"device": "cpu"})
    model = load_model(setting)
    choose_trainable(model, setting, checkpoint.config["seed"])
    CheckpointStore(Path(checkpoint.path).parent.parent).load(checkpoint, model)
    export_model(model, config.out)
    say(f"export: step {checkpoint.step} of {config.run} -> {config.out}")
