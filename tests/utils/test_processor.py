"""The record of the processor."""

import os
from pathlib import Path

import joblib
import pytest
import torch

from haystack_distill.utils import processor

CPU_INFO = (
    "processor\t: 0\nmodel name\t: A Processor @ 2GHz\nflags\t\t: fpu avx2 amx_bf16 avx512_vnni\n\nprocessor\t: 1\n"
)


def test_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(CPU_INFO)
    monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "cpuinfo")
    record = processor.processor_record(torch.device("cpu"))
    assert record == {
        "cpu": "A Processor @ 2GHz",
        "instructions": ["avx2", "avx512_vnni", "amx_bf16"],
        "threads": torch.get_num_threads(),
        "device": "cpu",
    }


def test_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "absent")
    record = processor.processor_record(torch.device("cpu"))
    assert record["cpu"]
    assert record["instructions"] == []


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "avx2", False),
        ("x86_64", "avx2 avx_vnni", True),
        ("x86_64", "avx512f avx512_vnni", True),
        ("aarch64", "asimd", True),
        ("x86_64", None, False),
    ],
)
def test_where_products_of_int8_numbers_are_added_in_32_bits(
    machine: str, flags: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\n")
    monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    assert processor.adds_in_32_bits() is expected


def test_a_quota_or_an_affinity_is_fewer_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both numbers come from elsewhere: here the machine has eight cores, and the process may use some of them."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for usable, expected in ((2, 2), (8, None)):
        monkeypatch.setattr(joblib, "cpu_count", lambda usable=usable: usable)
        assert processor.usable_cores() == usable
        assert processor.restricted_threads() == expected
