"""Where to compute and in which precision, chosen by what the machine has."""

import ctypes
import os
import sys

import torch

from scenes.console import UserError


def choose_device() -> torch.device:
    """The GPU if there is one (each process of a launcher its own), else the CPU.

    Raises:
        UserError: If a launcher started more processes than there are GPUs.
    """
    if torch.cuda.is_available():
        processes, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if processes > devices:
            raise UserError(f"{processes} processes for {devices} GPUs: start no more than one each")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    _keep_freed_memory()
    return torch.device("cpu")


def _keep_freed_memory() -> None:
    """Lets glibc reuse the memory of large tensors instead of asking the kernel for zeroed pages at every layer.

    Twice the training speed of EfficientNet-Lite0 on two cores. Does nothing where there is no glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mmap_max, trim_threshold = -4, -1  # numbers of glibc's malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def use_deterministic_algorithms() -> None:
    """Makes a GPU give the same bytes every time, at some cost in speed; a CPU does so anyhow."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts, so before the first layer
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def choose_precision(wanted: str, device: torch.device, bf16_pays: bool = True) -> str:
    """Resolves ``auto``: bf16 where the device computes in it, else fp16 on a GPU and fp32 on a CPU.

    Args:
        wanted: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: Where to compute.
        bf16_pays: Whether what is to be computed is faster in bf16 on a CPU too: all predictions are (1.4 to 1.8
            times, benchmarks/settings.py), training is not where convolutions are depthwise.

    Raises:
        UserError: If the device cannot compute in the precision wanted.
    """
    return _choose_precision(wanted, device, bf16_pays)[0]


def explain_precision(wanted: str, device: torch.device, bf16_pays: bool = True) -> str:
    """What `choose_precision` chooses and why, as ``fp32 (auto: this CPU has no bf16)``."""
    precision, reason = _choose_precision(wanted, device, bf16_pays)
    return f"{precision} ({reason})"


def _choose_precision(wanted: str, device: torch.device, bf16_pays: bool) -> tuple[str, str]:
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("train.precision, infer.precision: fp16 needs a GPU; on a CPU use fp32 or auto")
    if wanted != "auto":
        return wanted, "as set"
    if device.type != "cpu":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "auto: this GPU computes in it") if has_bf16 else ("fp16", "auto: this GPU has no bf16")
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "fp32", "auto: this CPU has no bf16"
    return ("bf16", "auto: this CPU computes in it") if bf16_pays else ("fp32", "auto: bf16 would be slower here")
