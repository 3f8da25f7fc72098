"""The random generators of this process: python's, numpy's, torch's on the CPU and on each GPU.

After `restore(state())` each generator draws what it would have drawn.

The package's own draws have seeds of their own (core/seeds.py) and use none of these; agents, tasks and
models of a user's own may.
"""

import random
from base64 import b64decode, b64encode
from typing import Any

import numpy
import torch


def seed(number: int) -> None:
    """Seed all of them."""
    random.seed(number)
    numpy.random.seed(number % 2**32)
    torch.manual_seed(number)


def state() -> dict[str, Any]:
    """Return the state of all of them."""
    version, words, gauss = random.getstate()
    own: Any = numpy.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = own
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), keys.tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _text(torch.get_rng_state()),
        "cuda": [_text(of_device) for of_device in _cuda_states()],
    }


def restore(saved: dict[str, Any]) -> None:
    """Set them to `saved`. Raises `ValueError` for a state of another shape or another number of GPUs."""
    version, words, gauss = saved["python"]
    name, keys, position, has_gauss, cached = saved["numpy"]
    if len(saved["cuda"]) != len(_cuda_states()):
        raise ValueError(
            f"generators of {len(saved['cuda'])} GPUs were saved, this process has {len(_cuda_states())}"
        )
    random.setstate((version, tuple(words), gauss))
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(_tensor(saved["torch"]))
    if saved["cuda"]:
        torch.cuda.set_rng_state_all([_tensor(of_device) for of_device in saved["cuda"]])


def _cuda_states() -> list[torch.Tensor]:
    """Return the states of the GPUs that this process uses; asking would otherwise start CUDA."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _text(bytes_: torch.Tensor) -> str:
    return b64encode(bytes_.cpu().numpy().tobytes()).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.tensor(list(b64decode(text)), dtype=torch.uint8)
