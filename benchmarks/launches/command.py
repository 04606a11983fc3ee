"""Count the operations that the GPU path launches, and compare them with the committed budget. No GPU is needed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypedDict

import torch

from adadf_dist.console.tables import align_columns
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import write_text
from benchmarks.launches.fake_cuda import run_with_stub
from benchmarks.launches.scenarios import Counts

BUDGET = Path(__file__).with_name("budget.json")
COLUMNS: tuple[Literal["launches", "copies_to_device"], ...] = ("launches", "copies_to_device")
REGENERATE = "python -m benchmarks launches --write"


class Budget(TypedDict):
    """Accepted numbers of each scenario, for one release of torch, which decides how operations are composed."""

    torch: str
    scenarios: dict[str, dict[str, int]]


def add_options(launches: argparse.ArgumentParser) -> None:
    launches.add_argument("--ops", action="store_true", help="also list the operations of each scenario")
    launches.add_argument("--write", action="store_true", help=f"write the numbers to {BUDGET.name}, the budget")
    launches.set_defaults(run=bench_launches)


def bench_launches(options: argparse.Namespace) -> None:
    counts = count_all()
    rows = [["scenario", *COLUMNS, "host waits"]]
    for name, found in counts.items():
        rows.append([name, str(found["launches"]), str(found["copies_to_device"]), str(len(found["faults"]))])
        if options.ops:
            rows += [[f"  {op}", str(number), "", ""] for op, number in found["ops"].items()]
    print("\n".join(align_columns(rows)))
    if options.write:
        write_text(BUDGET, json.dumps(make_budget(counts), indent=2) + "\n")
    if problems := [*find_faults(counts), *compare(counts, read_budget())]:
        raise UserError("benchmarks launches: " + "; ".join(problems))


def count_all() -> dict[str, Counts]:
    """Measure all scenarios in a process of their own. Raises `UserError` if it fails or there is no C compiler."""
    lines = run_with_stub("benchmarks.launches.scenarios").splitlines()
    found: dict[str, Counts] = json.loads(lines[-1])
    return found


def torch_release() -> str:
    """Return torch's version without the patch release and build, such as 2.15."""
    return ".".join(torch.__version__.split(".")[:2])


def make_budget(counts: Mapping[str, Counts]) -> Budget:
    numbers = {name: {column: found[column] for column in COLUMNS} for name, found in counts.items()}
    return Budget(torch=torch_release(), scenarios=numbers)


def read_budget() -> Budget:
    budget: Budget = json.loads(BUDGET.read_text(encoding="utf-8"))
    return budget


def find_faults(counts: Mapping[str, Counts]) -> list[str]:
    """Describe each host wait and each operation on mixed devices."""
    return [f"{name}: {fault}" for name, found in counts.items() for fault in found["faults"]]


def compare(counts: Mapping[str, Counts], budget: Budget) -> list[str]:
    """Describe each number that differs from the budget; fewer launches also count, so that the budget stays tight.

    Returns nothing if the budget is for another release of torch.
    """
    if budget["torch"] != torch_release():
        return []
    measured, accepted = make_budget(counts)["scenarios"], budget["scenarios"]
    return [
        f"{name}: {measured.get(name, {}).get(column)} {column}, but the budget is "
        f"{accepted.get(name, {}).get(column)}; if this is intended, run {REGENERATE}"
        for name in {**accepted, **measured}
        for column in COLUMNS
        if measured.get(name, {}).get(column) != accepted.get(name, {}).get(column)
    ]
