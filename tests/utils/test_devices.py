"""Devices and precisions."""

import pytest
import torch

from haystack_distill import DistilError
from haystack_distill.utils.devices import AUTO_PRECISION_VARIABLE, autocast, resolve_device, resolve_precision

CPU = torch.device("cpu")


def test_device_auto_prefers_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert resolve_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "3")  # one of several processes
    assert resolve_device() == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device() == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device() == CPU


def test_a_named_device_is_taken() -> None:
    assert resolve_device("cuda:3") == torch.device("cuda", 3)
    assert resolve_device(CPU) == CPU


def test_an_unknown_device_is_a_clear_error() -> None:
    with pytest.raises(DistilError, match="gpu"):
        resolve_device("gpu")


@pytest.mark.parametrize(
    ("device", "fast_bf16", "wanted"),
    [
        ("cpu", True, "bf16"),
        ("cpu", False, "fp32"),
        ("cuda", True, "bf16"),
        ("cuda", False, "fp16"),
        ("mps", True, "fp32"),
    ],
)
def test_precision_auto_is_what_the_device_does_fast(
    device: str, fast_bf16: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(AUTO_PRECISION_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: fast_bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: fast_bf16 or including_emulation
    )
    assert resolve_precision("auto", torch.device(device)) == wanted


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_the_environment_decides_what_auto_is(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTO_PRECISION_VARIABLE, wanted)
    for fast_bf16 in (True, False):
        monkeypatch.setattr("haystack_distill.utils.devices._cpu_multiplies_bf16", lambda fast=fast_bf16: fast)
        assert resolve_precision("auto", CPU) == wanted
    assert resolve_precision("fp32", CPU) == "fp32"  # what is named is taken as before
    monkeypatch.setenv(AUTO_PRECISION_VARIABLE, "half")
    with pytest.raises(DistilError, match=f"{AUTO_PRECISION_VARIABLE} must be one of .*, not 'half'"):
        resolve_precision("auto", CPU)
    assert resolve_precision("bf16", CPU) == "bf16"


def test_a_model_that_overflows_in_less_runs_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTO_PRECISION_VARIABLE, "bf16")
    assert resolve_precision("auto", CPU, "deberta-v2") == "bf16"
    assert resolve_precision("auto", CPU, "deberta") == "fp32"
    with pytest.raises(DistilError, match="deberta models overflow in bf16; use precision 'auto' or 'fp32'"):
        resolve_precision("bf16", CPU, "deberta")


def test_a_named_precision_is_taken() -> None:
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("fp32", torch.device("cuda")) == "fp32"
    assert resolve_precision("fp16", torch.device("cuda")) == "fp16"


def test_precision_errors() -> None:
    with pytest.raises(DistilError, match="precision must be one of auto, fp32, bf16, fp16, not 'int8'"):
        resolve_precision("int8", CPU)
    with pytest.raises(DistilError, match="fp16 is for GPUs"):
        resolve_precision("fp16", CPU)


def test_autocast() -> None:
    linear, ones = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with autocast(CPU, "bf16"):
        assert linear(ones).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert linear(ones).dtype == torch.float32
