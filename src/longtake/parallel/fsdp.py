"""Weights, gradients and optimizer states cut into one part per rank (PyTorch's FSDP2); `parallel.gradients` is for whole ones.

    shard_model(model, world)          # in place, after choose_trainable; every function that ran the model runs it as before
    with gathered(model): ...          # rollouts, evaluation: whole weights on every rank, no gradients, no exchange inside

One FSDP root of ours holds decoder, embeddings and head. What is embedded, decoded and scored for one backward is ONE forward of it:
functions that do so carry `one_forward`. A tower that trains is a second root, called as it is. Sharding the decoder alone would untie a
tied head, and a child of a sharded root cannot be called from outside of it.

Gradients are SUMMED over all ranks, as losses are divided by counts of the whole step. Every rank must run every pass, and passes must come
in the same order everywhere: where a rank has no work, `packed_policy.idle_pass`; `Encoder(equal_calls=True)`
for the tower. Otherwise the run hangs until its timeout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from longtake.models.family import Model
from longtake.parallel.mesh import World

P = ParamSpec("P")
T = TypeVar("T")


class ModelRoot(nn.Module):
    """Runs tasks inside its forward, where the weights of its own unit (embeddings, last norm, head) are whole."""

    def __init__(self, decoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.decoder, self.head = decoder, head
        self.entered = False
        """Inside a task, or with all weights gathered: what is called runs as it is."""

    def forward(self, task: Callable[[], Any]) -> tuple[Any, list[Tensor]]:
        """What the task returned, and the tensors in it from which a backward may start: FSDP hooks onto those to gather weights again."""
        self.entered = True
        try:
            result = task()
        finally:
            self.entered = False
        return result, list(_graph_tensors(result))


def one_forward(function: Callable[Concatenate[Model, P], T]) -> Callable[Concatenate[Model, P], T]:
    """For functions of a model that call its embed, decoder and head: on a sharded model they run inside its root, once.

    What such a function returns is a tensor, a tuple of them, or has `graph_tensors()`: all tensors from which backward may start.
    """

    @wraps(function)
    def inside(model: Model, /, *args: P.args, **given: P.kwargs) -> T:
        if model.root is None or model.root.entered:
            return function(model, *args, **given)
        result: T = model.root(partial(function, model, *args, **given))[0]
        if not torch.is_grad_enabled():
            # FSDP lets the root go in backward, of which there is none; whole weights would be kept, and be those before the next step.
            model.root.reshard()
        return result

    return inside


def _graph_tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for entry in result:
            yield from _graph_tensors(entry)
    elif hasattr(result, "graph_tensors"):
        yield from result.graph_tensors()


def shard_model(model: Model, world: World, *, compute_dtype: torch.dtype | None = None) -> Model:
    """Cut the model's parameters over all ranks, in place; returns it. A single process keeps them as they are.

    Call it on every rank, with equal weights, after `choose_trainable` (and after a copy for a reference was made), before the optimizer is
    built. `model.hf.named_parameters()` keeps its names; a tied head stays tied. The tower is cut only if it trains: a frozen one stays
    whole, so that ranks may encode unequally often. `compute_dtype`: forward and backward in this type; weights, sums of gradients and
    optimizer states stay in the type that the weights have.
    """
    if world.device_mesh is None:
        return model
    root = ModelRoot(model.hf.model.language_model, model.hf.lm_head)
    policy = _policy(model, compute_dtype)
    _shard_tree(root, model.hf.model.language_model.layers, world.device_mesh, policy)
    model.root = root
    tower = model.hf.model.visual
    if model.train_vision:
        _shard_tree(tower, tower.blocks, world.device_mesh, policy)
    for unit in units(model):
        # Sums, not means; gloo has no other reduction that scales.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    if compute_dtype is not None:
        model.dtype = compute_dtype
        if not model.train_vision:
            cast_parameters(tower, compute_dtype)
    if not any(parameter.is_meta for parameter in model.hf.parameters()):
        wake(model)
    return model


def _shard_tree(root: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    """A unit for each layer and one for the rest; in backward each gathers the one before it.

    Left to itself FSDP gathers in backward what ran forward before, passes inside `gathered` included, of which ranks have unequally many:
    it would then gather a layer more on some ranks than on others, which hangs.
    """
    chain = [root, *layers]
    for module in reversed(chain):
        # A tower may run without a backward: nothing of it stays whole. The other root is needed again at once.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=not isinstance(module, ModelRoot))
    for before, module in zip(chain, [*chain[1:], root], strict=True):
        cast(FSDPModule, module).set_modules_to_backward_prefetch([cast(FSDPModule, before)])


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Not `module.to`, which would round the frequencies of rotary embeddings, too."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def _policy(model: Model, compute_dtype: torch.dtype | None) -> MixedPrecisionPolicy:
    """Inputs are never cast: the model casts its own, and its rotary tables must reach the tower in float32."""
    if compute_dtype is None:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    stored = torch.promote_types(torch.float32, model.dtype)
    return MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=stored, cast_forward_inputs=False)


def units(model: Model) -> list[FSDPModule]:
    """What is gathered and let go together: layers, blocks and the roots; none on a model that is not sharded."""
    if model.root is None:
        return []
    modules = [*model.root.modules(), *model.hf.model.visual.modules()]
    return [module for module in modules if isinstance(module, FSDPModule)]


def wake(model: Model) -> None:
    """Tell the layers who their root is, and make every unit's whole parameters once, one unit at a time.

    A layer that is called before its root has run would become a root itself; a parameter that is first gathered while frozen for a
    moment (`adapters_off`) would never train.
    """
    assert model.root is not None
    with torch.no_grad():
        model.root(_nothing)
    for unit in units(model):
        unit.unshard()
        unit.reshard()


def _nothing() -> None:
    return None


@contextmanager
def gathered(model: Model, *, with_tower: bool = False) -> Iterator[None]:
    """All weights of the language model whole on every rank, without gradients; ranks may run it as often as they like.

    For rollouts and evaluation. Costs the memory of the whole language model (in the compute dtype), and one gathering of it; `with_tower`:
    of a tower that trains, too. Every rank must enter and leave. Does nothing on a model that is not sharded.
    """
    root = model.root
    if root is None or root.entered:
        yield
        return
    roots = (root, model.hf.model.visual) if with_tower else (root,)
    held = [module for one in roots for module in one.modules() if isinstance(module, FSDPModule)]
    for unit in held:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    root.entered = True
    try:
        with torch.no_grad():
            yield
    finally:
        root.entered = False
        for unit in held:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not root, recurse=False)
