"""The device, precision and torch settings to compute with."""

import ctypes
import os
import sys

import torch

from scenes.console import UserError
from scenes.environment import processor

# Parts of RuntimeErrors' messages that mean out of memory.
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
    "Unable to find a valid cuDNN algorithm",  # none whose workspace fits
    "GET was unable to find an engine to execute this computation",
)


def choose_device() -> torch.device:
    """Chooses a GPU if there is one (a launcher's processes get one each), else the CPU, and sets torch up for it.

    On a GPU, cuDNN benchmarks its algorithms on the first batch of each shape, and float32 products use TF32;
    `set_determinism` turns both off.

    Raises:
        UserError: If a launcher started more processes than there are GPUs.
    """
    if torch.cuda.is_available():
        processes, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if processes > devices:
            raise UserError(f"{processes} processes for {devices} GPUs: start at most one for each GPU")
        _set_fast_cuda(not torch.are_deterministic_algorithms_enabled())
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    _keep_freed_memory()
    return torch.device("cpu")


def _set_fast_cuda(on: bool) -> None:
    torch.backends.cudnn.benchmark = on
    torch.backends.cudnn.allow_tf32 = on
    torch.backends.cuda.matmul.allow_tf32 = on


def _keep_freed_memory() -> None:
    """Lets glibc reuse the memory of large tensors instead of asking the kernel for zeroed pages at every layer.

    This doubles the training speed of EfficientNet-Lite0 on two cores. Without glibc it does nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mmap_max, trim_threshold = -4, -1  # constants of glibc's malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def set_determinism(deterministic: bool) -> None:
    """Makes a GPU give the same bytes every time, or compute as fast as it can; a CPU gives the same bytes anyway.

    The settings apply to the whole process, so each training run sets them again.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts: before the first layer
    if deterministic != torch.are_deterministic_algorithms_enabled():  # setting it imports torch's compiler
        torch.use_deterministic_algorithms(deterministic)
    _set_fast_cuda(not deterministic)


def synchronise(device: torch.device) -> None:
    """Waits until a GPU has finished its queued work, before a clock is read; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the machine is out of memory.

    torch has its own error class for the CUDA allocator only: cuDNN, cuBLAS and the CPU allocator raise RuntimeErrors.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)


def choose_precision(wanted: str, device: torch.device) -> str:
    """Resolves ``auto``: bf16 where the device is fast at it, else fp16 on a GPU and fp32 on a CPU.

    Args:
        wanted: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: Where to compute.

    Raises:
        UserError: If the device cannot compute in the requested precision.
    """
    return _choose_precision(wanted, device)[0]


def explain_precision(wanted: str, device: torch.device) -> str:
    """Says what `choose_precision` chooses and why, e.g. ``fp32 (auto: this CPU has no fast bf16)``."""
    precision, reason = _choose_precision(wanted, device)
    return f"{precision} ({reason})"


def _choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("train.precision, infer.precision: fp16 needs a GPU; on a CPU use fp32 or auto")
    if wanted != "auto":
        return wanted, "as set"
    if device.type != "cpu":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "auto: this GPU computes in it") if has_bf16 else ("fp16", "auto: this GPU has no bf16")
    # AMD's AVX-512 multiplies bf16 twice as fast as fp32, Intel's half as fast: on Intel only AMX is fast.
    if torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and "AMD" in processor()):
        return "bf16", "auto: this CPU computes in it"
    return "fp32", "auto: this CPU has no fast bf16"
