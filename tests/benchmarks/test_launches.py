"""The GPU path, run on fake CUDA tensors: no host wait, no mixed devices, and no more launches than the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from adadf_dist.data.augment import apply_torch
from adadf_dist.data.loaders.base import DeviceTransform
from benchmarks.launches.command import compare, count_all, find_faults, make_budget, read_budget, torch_release
from benchmarks.launches.fake_cuda import DEVICE, fake_cuda, find_compiler
from benchmarks.launches.recorder import OpRecorder
from benchmarks.launches.scenarios import SCENARIOS, Counts, measure

TRANSFORM = "evaluation transform of a chunk, ten crops"
"""A scenario that runs without gradients, and so without the stub."""


@pytest.fixture(scope="module")
def counts() -> Mapping[str, Counts]:
    if find_compiler() is None:
        pytest.skip("no C compiler")
    return count_all()


def test_gpu_path_never_waits_and_never_mixes_devices(counts: Mapping[str, Counts]) -> None:
    assert set(counts) == set(SCENARIOS)
    assert find_faults(counts) == []


def test_gpu_path_launches_what_the_budget_allows(counts: Mapping[str, Counts]) -> None:
    if read_budget()["torch"] != torch_release():
        pytest.skip(f"the budget is for torch {read_budget()['torch']}")
    assert compare(counts, read_budget()) == []


def recorded(code: Callable[[Tensor], object]) -> OpRecorder:
    """Record code that gets a fake tensor [8] on the device; fake tensors refuse some faults."""
    recorder = OpRecorder()
    with fake_cuda():
        values = torch.ones(8, device=DEVICE)
        try:
            with recorder:
                code(values)
        except Exception:
            assert recorder.faults
    return recorder


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("_local_scalar_dense", lambda x: x.sum().item()),
        ("_local_scalar_dense", lambda x: 1 if x.sum() > 0 else 0),
        ("nonzero", lambda x: x.nonzero()),
        ("boolean mask", lambda x: x[x > 0]),
        ("boolean mask", lambda x: x.__setitem__(x > 0, torch.zeros_like(x))),
        ("masked_select", lambda x: x.masked_select(x > 0)),
        ("repeat_interleave", lambda x: x.repeat_interleave(x.long())),
        ("to the host", lambda x: x.cpu()),
        ("to the host", lambda x: torch.empty(8).copy_(x)),
        ("blocking _to_copy to the device", lambda x: torch.ones(8).to(DEVICE)),
        ("blocking _to_copy to the device", lambda x: torch.tensor([1.0, 2.0], device=DEVICE)),
        ("blocking _to_copy to the device", lambda x: x.new_tensor([1.0, 2.0])),
        ("blocking copy_ to the device", lambda x: x.copy_(torch.ones(8))),
        ("different devices", lambda x: x + torch.ones(8)),
        ("different devices", lambda x: x[torch.arange(3)]),
    ],
)
def test_recorder_detects(fault: str, code: Callable[[Tensor], object]) -> None:
    faults = recorded(code).faults
    assert any(fault in found and "test_launches.py:" in found for found in faults), faults


def test_recorder_counts_what_launches_a_kernel() -> None:
    def code(values: Tensor) -> Tensor:
        torch.ones(8) + 1  # on the host
        more = torch.arange(8).to(DEVICE, non_blocking=True)
        empty = torch.empty_like(values).unsqueeze(0)
        return (values * 2 + more).view(2, 4).t().sum() + empty[0, 0]

    recorder = recorded(code)
    assert dict(recorder.ops) == {"mul": 1, "add": 2, "sum": 1}
    assert (recorder.launches, recorder.copies_to_device, recorder.faults) == (4, 1, [])


def test_one_more_operation_in_the_package_exceeds_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    before = measure(SCENARIOS[TRANSFORM])
    budget = make_budget({TRANSFORM: before})
    assert compare({TRANSFORM: measure(SCENARIOS[TRANSFORM])}, budget) == []
    normalize = DeviceTransform.normalize
    monkeypatch.setattr(DeviceTransform, "normalize", lambda self, images: normalize(self, images).neg())
    (problem,) = compare({TRANSFORM: measure(SCENARIOS[TRANSFORM])}, budget)
    assert f"{before['launches'] + 1} launches, but the budget is {before['launches']}" in problem
    (missing, _) = compare({}, budget)
    assert TRANSFORM in missing


def test_a_wait_in_the_package_is_reported_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def normalize(self: DeviceTransform, images: Tensor) -> Tensor:
        return images / images.max().item()

    monkeypatch.setattr(DeviceTransform, "normalize", normalize)
    (wait,) = find_faults({TRANSFORM: measure(SCENARIOS[TRANSFORM])})
    assert wait.startswith(f"{TRANSFORM}: _local_scalar_dense at benchmarks/test_launches.py:")
    monkeypatch.undo()
    monkeypatch.setattr(apply_torch, "to_device_of", lambda values, images: torch.from_numpy(values).to(images.device))
    (blocking,) = find_faults({TRANSFORM: measure(SCENARIOS[TRANSFORM])})
    assert "blocking _to_copy to the device" in blocking
