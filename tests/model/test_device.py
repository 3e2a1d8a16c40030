"""The precision depends on the device and on what is computed."""

import pytest
import torch

from scenes.console import UserError
from scenes.model import device
from scenes.model.device import choose_precision, explain_precision, is_out_of_memory

CPU, GPU = torch.device("cpu"), torch.device("cuda")


BF16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.mark.parametrize(
    ("processor", "instructions", "chosen"),
    [
        ("AMD EPYC 9R14", BF16[:1], "bf16"),
        ("Intel(R) Xeon(R) Processor", BF16[:1], "fp32"),
        ("Intel(R) Xeon(R) Processor", BF16, "bf16"),
        ("AMD EPYC 7R13", (), "fp32"),
    ],
)
def test_a_cpu_computes_in_bf16_where_that_is_faster(
    processor: str, instructions: tuple[str, ...], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "processor", lambda: processor)
    for name in BF16:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in instructions)
    assert choose_precision("auto", CPU) == chosen
    assert choose_precision("fp32", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp16")])
def test_older_gpus_compute_in_fp16(native: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert choose_precision("auto", GPU) == chosen


def test_the_reason_goes_with_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BF16:
        monkeypatch.setattr(torch.cpu, name, lambda: True)
    assert explain_precision("auto", CPU) == "bf16 (auto: this CPU computes in it)"
    assert explain_precision("fp32", CPU) == "fp32 (as set)"


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_full_memory_is_recognised(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) == is_memory
