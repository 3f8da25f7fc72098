"""What verl 0.9.1 and vLLM's CPU build lack to train on a CPU: for tests only, never in the package.

verl imports it in each of its processes (`VERL_USE_EXTERNAL_MODULES=cpu_for_verl`). It gives verl a platform
without an accelerator that says it is one (Ray is told of one GPU, which nothing uses), and the two places of
verl's that take a GPU for granted: vLLM packs weights on a CPU, so that new ones go through `reload_weights`;
and a bucket of weights must be copied, because on a CPU "to the device" is no copy.
"""

import importlib.abc
import importlib.util
import os
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.distributed
from verl.plugin.platform import PlatformBase, PlatformRegistry, set_platform

os.environ["VERL_ENGINE_DEVICE"] = "cuda"  # verl registers its FSDP engines for cuda and npu


class _Device(ModuleType):
    """Stands for torch.cuda: torch.cpu where that has it, torch where it is about draws, else nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if "rng_state" in name or name.startswith("manual_seed"):
            return getattr(torch, name.removesuffix("_all"))
        if "memory" in name or name == "mem_get_info":
            return lambda *_, **__: (1 << 34, 1 << 34) if name == "mem_get_info" else 0
        if name == "get_device_name":
            return lambda *_: "CPU"
        return getattr(torch.cpu, name, lambda *_, **__: None)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """A CPU in the place of an accelerator."""

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: _Device("torch_cpu"))

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...
    def synchronize(self, device_index: int | None = None) -> None: ...
    def set_allocator_settings(self, settings: str) -> None: ...
    def empty_cache(self) -> None: ...
    def profiler_start(self) -> None: ...
    def profiler_stop(self) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Any:
        yield

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


set_platform(PlatformCPU())

_begin = torch.distributed.init_process_group


def _init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
    """Take "cpu:gloo,cpu:gloo", which verl makes of its device's name and back end, as "cpu:gloo"."""
    return _begin(",".join(dict.fromkeys(backend.split(","))) if backend else backend, *args, **kwargs)


torch.distributed.init_process_group = _init_process_group


def _update_weights_from_ipc(
    self: Any, peft_config: Any = None, base_sync_done: bool = False, use_shm: bool = False
) -> None:
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver

    received: list[tuple[str, torch.Tensor]] = []
    receiver = BucketedWeightReceiver(self._get_zmq_handle(), torch.device("cpu"), use_shm)
    receiver.receive_weights(
        on_bucket_received=lambda weights, is_last: received.extend((name, w.clone()) for name, w in weights)
    )
    self.reload_weights(weights_iterator=iter(received))


class _PatchOnImport(importlib.abc.MetaPathFinder):
    """Patches vLLM's worker extension of verl's when a process imports it."""

    name = "verl.workers.rollout.vllm_rollout.utils"

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def patched(module: ModuleType) -> None:
            load(module)
            module.vLLMColocateWorkerExtension.update_weights_from_ipc = _update_weights_from_ipc

        spec.loader.exec_module = patched  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _PatchOnImport())
