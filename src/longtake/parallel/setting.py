"""What a prediction is made for: how fast the devices are, how many there are, what trains. Pure records; the rates are inputs."""

from __future__ import annotations

from dataclasses import dataclass

from longtake.types import ModelCosts

GIB = 1 << 30


@dataclass(frozen=True)
class DeviceRates:
    """How fast one rank computes and sends. Measured (`calibrate`) or from ASSUMED_RATES."""

    name: str
    matmul_flops: float
    """Operations per second of large products in the dtype of the run."""
    attention_flops: float
    """Operations per second of the attention kernel, forward and backward together."""
    memory_bytes: float
    """Bytes per second of device memory, read and written."""
    call_s: float
    """Seconds that one small kernel costs however little it does."""
    link_bytes: float = float("inf")
    """Bytes per second that one rank sends to ranks of its own node."""
    node_link_bytes: float = float("inf")
    """The same to ranks of other nodes."""
    collective_s: float = 0.0
    """Seconds that one exchange costs however little it sends."""
    hidden_share: float = 0.0
    """Share of the compute beside which sharded weights may travel (prefetch); 0 where they wait for each other."""


@dataclass(frozen=True)
class Cluster:
    """The ranks: `nodes` x `ranks_per_node`, neighbours on one node."""

    nodes: int
    ranks_per_node: int
    rank_bytes: int
    """Device memory a rank may use; on a CPU its share of the host's."""
    host_bytes: int
    """Host memory of a node."""
    device: str = "cuda"

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node

    def crosses_nodes(self, num_ranks: int) -> bool:
        """Whether a group of so many neighbouring ranks reaches over a node's border."""
        return num_ranks > self.ranks_per_node or self.ranks_per_node % num_ranks != 0


@dataclass(frozen=True)
class TrainingCosts:
    """What trains and what is kept for it, in parameters and bytes per parameter."""

    trained_parameters: int
    trained_bytes: int
    """Bytes of a trained weight, of its gradient, and of each of AdamW's two moments."""
    adapters: bool = False
    """The trained parameters are beside the model's own, which stay frozen."""
    train_vision: bool = False
    reference_passes: bool = False
    """A KL term asks for the log-probs of the starting weights."""
    sharded: bool = False
    """Weights, gradients and moments are split over all ranks (FSDP); otherwise every rank holds them whole."""

    @property
    def reference_copy(self) -> bool:
        """The starting weights are held beside the trained ones; adapters are switched off instead."""
        return self.reference_passes and not self.adapters


@dataclass(frozen=True)
class Setting:
    """All that stays the same from batch to batch."""

    costs: ModelCosts
    training: TrainingCosts
    cluster: Cluster
    rates: DeviceRates


def training_costs(
    costs: ModelCosts,
    *,
    lora_rank: int | None = None,
    lora_targets: tuple[str, ...] = (),
    train_vision: bool = False,
    reference_passes: bool = False,
    sharded: bool = False,
) -> TrainingCosts:
    """Full training in the dtype of the run, or adapters, which are kept in float32."""
    if lora_rank is not None:
        sizes = linear_sizes(costs)
        adapters = costs.layers * lora_rank * sum(sum(sizes[name]) for name in lora_targets if name in sizes)
        return TrainingCosts(adapters, 4, adapters=True, reference_passes=reference_passes, sharded=sharded)
    trained = costs.language_parameters + (costs.tower.parameters if train_vision else 0)
    return TrainingCosts(trained, costs.dtype_bytes, train_vision=train_vision, reference_passes=reference_passes, sharded=sharded)


def linear_sizes(costs: ModelCosts) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the linear layers of one decoder layer, by their names in transformers."""
    keys = costs.kv_heads * costs.head_dim
    return {
        "q_proj": (costs.width, costs.attention_width),
        "k_proj": (costs.width, keys),
        "v_proj": (costs.width, keys),
        "o_proj": (costs.attention_width, costs.width),
        "gate_proj": (costs.width, costs.mlp_width),
        "up_proj": (costs.width, costs.mlp_width),
        "down_proj": (costs.mlp_width, costs.width),
    }


@dataclass(frozen=True)
class AssumedDevice:
    """A GPU by its published peaks, and the shares of them that training reaches. Assumed, not measured by us."""

    memory_gib: float
    half_flops: float
    """Dense bfloat16 tensor operations per second."""
    single_flops: float
    """float32 without tensor cores (torch's default)."""
    memory_bytes: float
    link_bytes: float
    """NVLink, one direction."""


MATMUL_SHARE, ATTENTION_SHARE, MEMORY_SHARE, LINK_SHARE = 0.65, 0.40, 0.80, 0.70
NODE_LINK_BYTES = 50e9
"""400 Gbit/s per GPU, one direction."""
KERNEL_S, COLLECTIVE_S, HIDDEN_SHARE = 8e-6, 3e-5, 0.8
ASSUMED_DEVICES = {
    "a100": AssumedDevice(79, 312e12, 19.5e12, 2.04e12, 300e9),
    "h100": AssumedDevice(79, 989e12, 67e12, 3.35e12, 450e9),
    "h200": AssumedDevice(139, 989e12, 67e12, 4.8e12, 450e9),
    "b200": AssumedDevice(178, 2250e12, 75e12, 8.0e12, 900e9),
}


def assumed_rates(name: str, dtype_bytes: int) -> DeviceRates:
    """Rates of a GPU of ASSUMED_DEVICES at the stated shares of its published peaks."""
    device = ASSUMED_DEVICES[name]
    peak = device.half_flops if dtype_bytes == 2 else device.single_flops
    return DeviceRates(
        name=f"{name} (assumed)",
        matmul_flops=MATMUL_SHARE * peak,
        attention_flops=ATTENTION_SHARE * peak,
        memory_bytes=MEMORY_SHARE * device.memory_bytes,
        call_s=KERNEL_S,
        link_bytes=LINK_SHARE * device.link_bytes,
        node_link_bytes=LINK_SHARE * NODE_LINK_BYTES,
        collective_s=COLLECTIVE_S,
        hidden_share=HIDDEN_SHARE,
    )
