"""Names of a tower's weights: one name, one set of weights; the same names after a resume."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from longtake.models import tower_identity
from longtake.models.tower_identity import TowerIdentity, weights_digest


def tower(value: float = 1.0) -> nn.Linear:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.fill_(value)
        module.bias.zero_()
    return module


def write(module: nn.Linear, value: float) -> None:
    with torch.no_grad():
        module.weight.fill_(value)


def digest(module: nn.Module) -> str:
    return weights_digest(module.state_dict().items())


def test_a_frozen_tower_is_named_by_its_bytes_whatever_was_written():
    module = tower()
    identity = TowerIdentity(module, trains=False)
    names = []
    for value in (1.0, 2.0, 1.0):  # the third as a resumed run loads it again
        write(module, value)
        names.append(identity.name(0))
        assert names[-1] == digest(module)
    assert names[0] == names[2] != names[1]
    assert not identity.has_changed(0)


def test_bytes_are_read_again_only_after_a_write(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(tower_identity, "weights_digest", lambda named: calls.append(1) or weights_digest(named))
    module = tower()
    frozen, trained = TowerIdentity(module, trains=False), TowerIdentity(module, trains=True)
    for _ in range(3):
        frozen.name(0)
    for update in range(1, 5):
        write(module, float(update))
        trained.name(update)
    assert len(calls) == 2  # the frozen one when first asked, the trained one when loaded


def test_every_write_and_every_update_gives_a_trained_tower_a_new_name():
    module = tower()
    identity = TowerIdentity(module, trains=True)
    names = [identity.name(0)]
    assert names[0] == digest(module) and not identity.has_changed(0)
    for update, value in [(0, 2.0), (1, 2.0), (1, 3.0), (1, 4.0), (2, 4.0)]:
        write(module, value)
        names += [identity.name(update)]
        assert identity.name(update) == names[-1] and identity.has_changed(update)
    # An earlier checkpoint is loaded, and its updates are counted on with other data.
    for update, value in [(1, 9.0), (2, 8.0)]:
        write(module, value)
        names += [identity.name(update)]
    assert len(set(names)) == len(names)


def test_a_resumed_run_gives_the_names_of_one_that_was_never_interrupted():
    """Two optimizer steps per counted update; the resumed one loads the base, then the checkpoint of update 2, and counts on."""

    def names(module: nn.Linear, identity: TowerIdentity, updates: range) -> list[str]:
        found = []
        for update in updates:
            found.append(identity.name(update))
            for half in (0.25, 0.5):
                write(module, update + half)
                found.append(identity.name(update))
            write(module, update + 1.0)
        return found

    module = tower()
    whole = names(module, TowerIdentity(module, trains=True), range(4))
    module = tower()
    identity = TowerIdentity(module, trains=True)
    write(module, 2.0)
    assert names(module, identity, range(2, 4)) == whole[6:]


def test_another_start_gives_other_names_to_the_same_number_of_updates():
    assert TowerIdentity(tower(1.0), trains=True).name(3) != TowerIdentity(tower(2.0), trains=True).name(3)


class Shard(nn.Parameter):
    """Stands for a tensor of which a rank holds a part."""

    _local_tensor: torch.Tensor


def test_sharding_moves_the_weights_and_changes_no_name():
    for trains in (False, True):
        module = tower()
        loaded = digest(module)
        identity = TowerIdentity(module, trains=trains, loaded=loaded)
        assert identity.name(0) == loaded
        for name in ("weight", "bias"):
            shard = Shard(torch.zeros(1))
            shard._local_tensor = getattr(module, name).detach()[:1].clone()
            setattr(module, name, shard)
        assert identity.name(0) == loaded
        module.weight._local_tensor.add_(1.0)
        assert (identity.name(0) != loaded) == trains  # nothing writes to a frozen tower but what loads the same weights
        assert (identity.name(1) != identity.name(0)) == trains
