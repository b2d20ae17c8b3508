"""AdamW with warm-up, a schedule, clipping by global norm, and a state that is plain tensors by parameter name."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from longtake.errors import CheckpointError, LongtakeError
from longtake.parallel.sharded_tensors import clip_grad_norm, cut
from longtake.training.trainable import trainable_parameters

if TYPE_CHECKING:
    from longtake.config.sections import OptimizerConfig
    from longtake.models.family import Model

logger = logging.getLogger(__name__)

COUNTERS = ("num_steps", "skipped", "skipped_in_a_row")
MAX_SKIPPED_IN_A_ROW = 10
"""So many non-finite gradients in a row are no accident: the run is refused instead of idling to its end."""


def lr_at(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of update number `step`, counted from 0, of a run of `total_steps`.

    Warm-up over w steps: lr (step + 1) / (w + 1), so that update w is the first at the peak. Then constant, or
    lr (m + (1 - m) (1 + cos(pi x)) / 2) with m = min_lr_fraction and x from 0 at update w to 1 at the last update.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    span = total_steps - 1 - warmup
    done = min(1.0, (step - warmup) / span) if span > 0 else 0.0
    low = config.min_lr_fraction
    return config.lr * (low + (1.0 - low) * (1.0 + math.cos(math.pi * done)) / 2.0)


class Optimizer:
    """AdamW over named parameters.

    A step whose global gradient norm is not finite is SKIPPED: weights and moments stay as they are, the gradients are
    dropped, `skipped` counts it, and the schedule moves on (so that a run of n steps stays n steps long). After
    MAX_SKIPPED_IN_A_ROW of them in a row `step` raises LongtakeError.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], no_decay: set[str], config: OptimizerConfig, total_steps: int) -> None:
        if not named:
            raise LongtakeError("the model has no trainable parameter", rule="an optimizer needs one", remedy="check the model section")
        self.named = dict(named)
        self.config, self.total_steps = config, total_steps
        self.num_steps = 0
        """Calls of `step` so far, skipped ones included."""
        self.skipped = 0
        self.skipped_in_a_row = 0
        groups = [
            {"params": [p for name, p in self.named.items() if name not in no_decay], "weight_decay": config.weight_decay},
            {"params": [p for name, p in self.named.items() if name in no_decay], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, foreach=True)

    @property
    def lr(self) -> float:
        """Learning rate of the NEXT update."""
        return lr_at(self.num_steps, self.total_steps, self.config)

    def step(self) -> float:
        """One update from the gradients in place, which are then dropped. Returns the global norm before clipping."""
        norm = clip_grad_norm(self.named.values(), self.config.max_grad_norm)
        if math.isfinite(norm):
            self._update()
        else:
            self._skip(norm)
        self.num_steps += 1
        self.zero_grad()
        return norm

    def zero_grad(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """`exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME` per parameter that has had a gradient, and int64 counters.

        The tensors are the optimizer's own (no copy): write them or clone them before the next step.
        """
        state: dict[str, torch.Tensor] = {}
        for name, parameter in self.named.items():
            for kind, tensor in self.adamw.state.get(parameter, {}).items():
                state[f"{kind}.{name}"] = tensor
        for counter in COUNTERS:
            state[f"counter.{counter}"] = torch.tensor(getattr(self, counter), dtype=torch.int64)
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over a `state_dict`. Raises CheckpointError when it names a parameter we do not train, or of another shape."""
        for key, tensor in state.items():
            self._check(key, tensor)
        self.adamw.state.clear()
        for key, tensor in state.items():
            kind, name = key.split(".", 1)
            if kind == "counter":
                setattr(self, name, int(tensor))
                continue
            parameter = self.named[name]
            # As AdamW keeps them: moments beside the parameter and cut as it is, the step count on the CPU.
            self.adamw.state[parameter][kind] = tensor.detach().clone().cpu() if kind == "step" else cut(tensor, parameter)

    def _check(self, key: str, tensor: torch.Tensor) -> None:
        kind, name = key.split(".", 1)
        if kind == "counter":
            fits = name in COUNTERS
        else:
            fits = name in self.named and kind in ("exp_avg", "exp_avg_sq", "step")
            fits = fits and (kind == "step" or tensor.shape == self.named[name].shape)
        if not fits:
            raise CheckpointError(
                f"optimizer state has {key} {tuple(tensor.shape)}",
                rule="it belongs to the parameters that train",
                remedy="resume with the model section the run was started with",
            )

    def _update(self) -> None:
        lr = self.lr
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.skipped_in_a_row = 0

    def _skip(self, norm: float) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        logger.warning("step %d skipped: gradient norm is %s (%d skipped so far)", self.num_steps, norm, self.skipped)
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise LongtakeError(
                f"{self.skipped_in_a_row} gradients in a row were not finite",
                rule="training needs finite gradients",
                remedy="lower optimizer.lr, check the data, or use float32 or bfloat16",
            )


def build_optimizer(model: Model, config: OptimizerConfig, total_steps: int) -> Optimizer:
    """AdamW over the trainable parameters of the model (see `trainable.choose_trainable`, to be called first)."""
    named = trainable_parameters(model)
    return Optimizer(named, names_without_decay(model.hf, named), config, total_steps)


def names_without_decay(module: nn.Module, named: Mapping[str, nn.Parameter]) -> set[str]:
    """Norm weights and biases (fewer than two axes), and embeddings: a head that is tied to one is one."""
    embeddings = {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
    return {name for name, parameter in named.items() if parameter.ndim < 2 or id(parameter) in embeddings}
