"""What one device holds for a policy that is trained and sampled from, in bytes and in closed form.

The one model of memory: `aipo plan` asks it about GPUs that nobody has yet, `aipo doctor` and `aipo train`
about the machine that they run on. It counts what is there at the worst moment: a pass with as many tokens as
it may have, every rollout as long as it may become.

Activations are the tensors that autograd keeps of a transformers decoder run layer by layer, whose attention
stores no scores; `benchmarks/memory.py` measures how near that comes. Not counted: what Python, torch and a
GPU's context take by themselves, the scores of `policy.attention = "eager"`, and a checkpoint's copy, which
is made only where there is room for it.
"""

from dataclasses import dataclass

from aipo.planning.model import BYTES_BF16, ModelShape

BYTES_FP32 = 4
ADAM_BYTES = 2 * BYTES_FP32
"""The two moments of AdamW, of one parameter."""
LOGIT_BYTES = 3 * BYTES_FP32
"""Of one logit of our update: itself, its log-probability, and the entropy's factor or the gradient."""
DRAWN_LOGIT_BYTES = 5 * BYTES_FP32
"""Of one logit that is sampled from: itself, its log-probability, its probability, and a sum in float64."""
PREFETCHED_LAYERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What the memory of one device depends on."""

    shape: ModelShape
    parameters: int
    """All of them."""
    trained: int
    """Those that the optimiser changes: all, or the adapters."""
    weight_bytes: int = BYTES_FP32
    """Of a parameter that is not an adapter; what is trained has float32 or this."""
    trained_bytes: int = BYTES_FP32
    """Of a trained parameter, and of its gradient."""
    moment_bytes: float = ADAM_BYTES
    """Of the optimiser, for a trained parameter."""
    compute_bytes: int
    """Of what linear layers and attention compute in."""
    residual_bytes: int
    """Of the stream between layers: float32 under autocast, what is computed in under FSDP's precision."""
    shards: int = 1
    """Devices that share one copy of what is trained."""
    whole_sampler: bool = False
    """Whether a whole copy of the weights samples beside those that are split (our FSDP)."""
    buckets: bool = False
    """Whether gradients are held a second time, on their way to other ranks (DDP)."""
    tokens: int
    """Of one forward and backward pass."""
    gradient_checkpointing: bool
    logits: float
    """In memory at a time, in the update."""
    logit_bytes: int = LOGIT_BYTES
    reference: bool = False
    """Whether a frozen copy of the start is beside it, whose logits an update holds too (KL)."""
    cache_tokens: float = 0
    """Of all rollouts in flight; 0: another process samples."""
    rows: int = 0
    """Rollouts that decode at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes of one device, by what they are for."""

    weights: float
    gradients: float
    optimiser: float
    gathered: float
    """Weights once more: layers that are whole while they are computed, or cast to the products' type."""
    activations: float
    logits: float
    """In the update, with the gradient of the head on its way."""
    cache: float
    """Keys and values of all rollouts in flight."""
    drawn_logits: float
    """Of the rows that are sampled from at the same time."""

    @property
    def update(self) -> float:
        """While the policy is updated: the end of a forward pass, with gradients and optimiser there."""
        state = self.weights + self.gradients + self.optimiser
        return state + self.gathered + self.activations + self.logits

    @property
    def sampling(self) -> float:
        """While rollouts are sampled in the trainer's process, after the first update."""
        return self.weights + self.optimiser + self.gathered + self.cache + self.drawn_logits

    @property
    def peak(self) -> float:
        """The larger of the two."""
        return max(self.update, self.sampling)


def device_memory(of: Footprint) -> DeviceMemory:
    """Return what a device holds."""
    shape = of.shape
    frozen, trained = of.parameters - of.trained, of.trained / of.shards
    # A head that is trained has its gradient made beside the one that it is added to.
    head = shape.embedding * of.trained_bytes if of.trained == of.parameters else 0
    copies = of.parameters * of.weight_bytes * (of.whole_sampler + of.reference)
    return DeviceMemory(
        weights=frozen * of.weight_bytes + trained * of.trained_bytes + copies,
        gradients=trained * of.trained_bytes * (2 if of.buckets else 1),
        optimiser=trained * of.moment_bytes,
        gathered=_gathered(of),
        activations=float(of.tokens * activation_bytes_per_token(of)),
        logits=float(of.logits * of.logit_bytes * (2 if of.reference else 1) + head),
        cache=of.cache_tokens * shape.kv_bytes_per_token * of.compute_bytes / BYTES_BF16,
        drawn_logits=float(of.rows * shape.vocabulary * DRAWN_LOGIT_BYTES),
    )


def _gathered(of: Footprint) -> float:
    shape = of.shape
    if of.shards > 1:
        layer = (shape.multiplied - shape.embedding) / shape.layers
        return of.compute_bytes * (PREFETCHED_LAYERS * layer + shape.embedding)
    return float(of.compute_bytes * of.parameters if of.compute_bytes < of.weight_bytes else 0)


def activation_bytes_per_token(of: Footprint) -> int:
    """Return what autograd keeps of a token from the forward to the backward pass.

    Of each norm its input in float32, its normalised input, and its output as the next products take it; of
    attention queries, keys and values as they are attended to, keys and values repeated for each query head,
    and what comes out; of the gated layer the gate, its activation, the other factor, and their product.
    """
    shape = of.shape
    norm = shape.hidden * (BYTES_FP32 + of.residual_bytes + of.compute_bytes)
    attention = 4 * shape.heads * shape.head_dim
    layer = 2 * norm + of.compute_bytes * (attention + 4 * shape.intermediate)
    if of.gradient_checkpointing:
        return shape.layers * shape.hidden * of.residual_bytes + layer + norm
    return shape.layers * layer + norm
