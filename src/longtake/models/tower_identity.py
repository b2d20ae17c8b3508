"""A name for the weights of a vision tower as they are now, without reading all of them again after every update."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from longtake.observe.digest import digest_of


def weights_digest(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """sha256 over names, dtypes, shapes and bytes, whatever the order."""
    return digest_of(*(part for name, tensor in sorted(named, key=lambda pair: pair[0]) for part in (name, tensor)))


class TowerIdentity:
    """Names the weights of one tower: equal names mean equal weights within a run, and for weights as loaded in every run.

    A frozen tower's name is the digest of its bytes, taken anew only after something wrote to them. A trained tower is named by the
    digest of the weights as loaded, the updates counted by the trainer, and the writes seen since the last counted update. A resumed
    run loads the same weights and counts on: it gives the same names as one that was never interrupted. Weights that are sharded
    over ranks are never gathered for it, and keep their name while they are gathered for a moment. Two RUNS may give one such name to
    different weights: what is made with updated weights must not outlive the process (`has_changed`).
    """

    def __init__(self, tower: nn.Module, *, trains: bool, loaded: str | None = None) -> None:
        """`loaded`: the `weights_digest` of the checkpoint, where the weights are not here to be read (sharded, or still on `meta`)."""
        self.trains = trains
        self._tower = tower
        self._loaded = loaded if loaded is not None else weights_digest(tower.state_dict().items()) if trains else ""
        self._content = self._loaded
        self._state = self._stamp() if self._loaded else ()
        self._sharded = False
        self._update = self._writes = self._lineage = 0

    def name(self, update: int) -> str:
        """`update`: optimizer steps so far, as the trainer counts them; 0 for a tower that does not train."""
        stamp, sharded = self._stamp(), self._is_sharded()
        if sharded and not self._sharded:  # sharding moved the weights, it did not change them
            self._state, self._sharded = stamp, True
        gathered = self._sharded and not sharded
        written = not gathered and stamp != self._state
        self._state = self._state if gathered else stamp
        if not self._sharded and (not self.trains or update == self._update == 0):
            if written:
                self._content = weights_digest(self._tower.state_dict().items())
            return self._content
        if not self.trains:
            return self._loaded
        self._lineage += update < self._update  # other weights were loaded: counts start again, names must not
        self._writes = self._writes + written if update == self._update else 0
        self._update = update
        counted = (self._lineage, update, self._writes)
        return digest_of("tower after updates 1", self._loaded, *counted) if any(counted) else self._loaded

    def has_changed(self, update: int) -> bool:
        """Whether a trained tower has left the weights that were loaded."""
        return self.trains and self.name(update) != self._loaded

    def _stamp(self) -> tuple[int, ...]:
        """A tensor's version counts what was written to it (optimizer steps, loading); its address tells a replaced one."""
        tensors = [getattr(tensor, "_local_tensor", tensor) for tensor in (*self._tower.parameters(), *self._tower.buffers())]
        return (*(tensor._version for tensor in tensors), *(tensor.data_ptr() for tensor in tensors))

    def _is_sharded(self) -> bool:
        return any(hasattr(tensor, "_local_tensor") for tensor in self._tower.parameters())
