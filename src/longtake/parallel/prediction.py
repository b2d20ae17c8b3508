"""What the planner chose and how far it was off, as metrics of each step. Pure.

errors = PredictionErrors()                                  # once per run
plans = [plan_batch(setting, update) for update in updates]  # in each step
...
metrics |= layout_metrics(plans) | errors.metrics(plans, measured_s=seconds of "reference" and "update", measured_bytes=peak)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from longtake.parallel.layouts import Plan


class PredictionErrors:
    """Predicted against measured, step after step.

    An error is measured / predicted - 1. Rates that are wrong by a factor change no choice between layouts; the error that is left when the
    factor seen so far is taken out (the geometric mean of measured / predicted) is what can.
    """

    def __init__(self) -> None:
        self._log_ratios = 0.0
        self._count = 0

    @property
    def scale(self) -> float:
        """Geometric mean of measured / predicted seconds so far; 1 before the first step."""
        return math.exp(self._log_ratios / self._count) if self._count else 1.0

    def metrics(self, plans: Plan | Sequence[Plan], measured_s: float, measured_bytes: float | None = None) -> dict[str, float]:
        """`plan/...` of one step, all its updates together. `measured_bytes`: the peak of this rank while they ran, if it is known.

        A step that made no update (nothing predicted, or nothing measured) says nothing about errors.
        """
        plans = [plans] if isinstance(plans, Plan) else list(plans)
        predicted = sum(plan.seconds for plan in plans)
        found = {"plan/predicted_s": predicted, "plan/measured_s": measured_s}
        if predicted > 0 and measured_s > 0:
            ratio = measured_s / predicted
            found |= {"plan/seconds_error": ratio - 1, "plan/seconds_error_scaled": ratio / self.scale - 1}
            self._log_ratios += math.log(ratio)
            self._count += 1
        if measured_bytes is not None and plans:
            size = max(plan.bytes.total for plan in plans)
            found |= {"plan/predicted_bytes": size, "plan/measured_bytes": measured_bytes, "plan/bytes_error": measured_bytes / size - 1}
        return found


def layout_metrics(plans: Plan | Sequence[Plan]) -> dict[str, float]:
    """What was chosen for a step: of several layouts the means, weighted by their takes."""
    layouts = [layout for plan in ([plans] if isinstance(plans, Plan) else plans) for layout in plan.layouts]
    if not layouts:
        return {"plan/layouts": 0.0}
    weights = [max(1, layout.num_takes) for layout in layouts]
    means = {
        f"plan/{name}": sum(weight * getattr(layout, name) for weight, layout in zip(weights, layouts, strict=True)) / sum(weights)
        for name in ("ulysses", "ring", "shared_prompt", "gradient_checkpointing")
    }
    return means | {"plan/layouts": float(len(layouts)), "plan/rounds": float(sum(len(layout.rounds) for layout in layouts))}
