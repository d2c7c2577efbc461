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


def test_a_quota_is_fewer_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both numbers come from elsewhere: here the process sees eight cores, and its container may use some of them."""
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    else:
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for usable, expected in ((2, 2), (8, None)):
        monkeypatch.setattr(joblib, "cpu_count", lambda usable=usable: usable)
        assert processor.usable_cores() == usable
        assert processor.quota_threads() == expected
