"""Describe the machine on which a benchmark runs."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def describe_machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}"
    )


def processor() -> str:
    """Return the name of the processor, from /proc/cpuinfo if it exists."""
    known = Path("/proc/cpuinfo")
    for line in known.read_text(encoding="utf-8").splitlines() if known.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
