"""GPUs, how they are joined, and which share of a data sheet's figure software reaches.

Every figure of a preset is the vendor's, for the dense case and for one direction; what is lost on the way to
it stands in `Efficiency`, in one place.
"""

from dataclasses import dataclass
from math import ceil

GB, TFLOPS = 1e9, 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its data sheet describes it; bandwidths are per direction."""

    name: str
    bf16_flops: float
    """Dense; data sheets of Hopper print twice as much, "with sparsity"."""
    memory_bytes: float
    hbm_bytes_s: float
    nvlink_bytes_s: float
    network_bytes_s: float
    """To other nodes, this GPU's share of the node's adapters."""
    pcie_bytes_s: float


A100 = Gpu(
    # 312 TFLOPS, 80 GB, 2,039 GB/s, NVLink 600 GB/s and PCIe 4.0 64 GB/s, both directions together:
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-nvidia-us-2188504-web.pdf
    # Network: 8 x 200 Gb/s for 8 GPUs, https://docs.nvidia.com/dgx/dgxa100-user-guide/introduction-to-dgxa100.html
    name="a100", bf16_flops=312 * TFLOPS, memory_bytes=80 * GB, hbm_bytes_s=2039 * GB,
    nvlink_bytes_s=300 * GB, network_bytes_s=25 * GB, pcie_bytes_s=32 * GB,
)  # fmt: skip
H100 = Gpu(
    # SXM: 1,979 TFLOPS with sparsity, 80 GB, 3.35 TB/s, NVLink 900 GB/s, PCIe 5.0 128 GB/s, both directions:
    # https://www.nvidia.com/en-us/data-center/h100/
    # Network: 8 x 400 Gb/s for 8 GPUs, https://docs.nvidia.com/dgx/dgxh100-user-guide/introduction-to-dgxh100.html
    name="h100", bf16_flops=989.5 * TFLOPS, memory_bytes=80 * GB, hbm_bytes_s=3350 * GB,
    nvlink_bytes_s=450 * GB, network_bytes_s=50 * GB, pcie_bytes_s=64 * GB,
)  # fmt: skip
H200 = Gpu(
    # SXM: 1,979 TFLOPS with sparsity, 141 GB, 4.8 TB/s, NVLink 900 GB/s, PCIe 5.0 128 GB/s:
    # https://www.nvidia.com/en-us/data-center/h200/
    # Network as H100: https://docs.nvidia.com/dgx/dgxh100-user-guide/introduction-to-dgxh100.html
    name="h200", bf16_flops=989.5 * TFLOPS, memory_bytes=141 * GB, hbm_bytes_s=4800 * GB,
    nvlink_bytes_s=450 * GB, network_bytes_s=50 * GB, pcie_bytes_s=64 * GB,
)  # fmt: skip
GPUS = {gpu.name: gpu for gpu in (A100, H100, H200)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Assumptions about software: none was measured on a GPU by this project."""

    update: float = 0.35
    """Share of peak FLOP/s in forward and backward passes (MFU). Dense pretraining of Llama 3 on H100 reached
    0.38-0.43 (arXiv 2407.21783, table 4); jagged RL batches reach less."""
    prefill: float = 0.5
    decode: float = 0.5
    """Share of peak FLOP/s where decoding is bound by products."""
    memory: float = 0.7
    """Share of the memory's bandwidth where decoding is bound by reading."""
    collective: float = 0.75
    """Share of links' bandwidth in all-gather and reduce-scatter."""
    hop_s: float = 10e-6
    """Latency of one hop of a ring between nodes."""
    near_hop_s: float = 2e-6
    """The same within a node."""
    step_overhead_s: float = 3e-3
    """Scheduling, sampling and launching of a decode step."""
    sequence_overhead_s: float = 10e-6
    """The same for each sequence of a batch."""
    usable_memory: float = 0.9


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal GPUs in nodes of `per_node`."""

    gpu: Gpu
    gpus: int
    per_node: int = 8

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.per_node < 1:
            raise ValueError(f"--gpus {self.gpus}, --gpus-per-node {self.per_node}: give at least 1 of each")

    @property
    def nodes(self) -> int:
        """How many nodes they fill."""
        return ceil(self.gpus / self.per_node)


def gathered_s(cluster: Cluster, size_bytes: float, among: int, efficiency: Efficiency) -> float:
    """Return how long `among` GPUs take until each has all of `size_bytes` that lie scattered over them.

    A ring: each receives (n-1)/n of it. Between nodes NCCL's rings use all adapters of a node at once, so the
    slower of NVLink and the node's adapters together counts
    (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md). A reduce-scatter takes as long.
    Degenerate case: one GPU, 0.
    """
    if among <= 1:
        return 0.0
    link = cluster.gpu.nvlink_bytes_s
    if among > cluster.per_node:
        link = min(link, cluster.per_node * cluster.gpu.network_bytes_s)
    return size_bytes * (among - 1) / among / (link * efficiency.collective)


def ring_latency_s(cluster: Cluster, among: int, efficiency: Efficiency) -> float:
    """Return the latency of one collective operation: its ring's hops. Degenerate case: one GPU, 0."""
    near = min(among, cluster.per_node) - 1
    far = ceil(among / cluster.per_node) - 1
    return near * efficiency.near_hop_s + far * efficiency.hop_s


def exchanged_s(cluster: Cluster, size_bytes: float, copies: int, efficiency: Efficiency) -> float:
    """Return how long an all-reduce of `size_bytes` takes among `copies` nodes, each GPU through its adapter.

    Degenerate case: one copy, 0.
    """
    if copies <= 1:
        return 0.0
    link = cluster.gpu.network_bytes_s * efficiency.collective
    return 2 * size_bytes * (copies - 1) / copies / link + 2 * (copies - 1) * efficiency.hop_s
