"""The record of the processor."""

from pathlib import Path

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
