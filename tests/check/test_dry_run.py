"""`train --dry-run` prints the plan of a run and does nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

from adadf_dist import train
from adadf_dist.check import __main__ as check
from adadf_dist.check import throughput
from adadf_dist.check.dry_run import activation_bytes
from adadf_dist.config.load import base_config
from adadf_dist.method.backbones import build_resnet
from tests.helpers.runs import command, finish, settings


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is measured for a fraction of a second: no speed is asserted."""
    monkeypatch.setattr(throughput, "BUDGET_S", 0.5)


def planned(values: dict[str, str], output: pytest.CaptureFixture[str]) -> str:
    """What `train --dry-run` prints."""
    output.readouterr()
    train.main([*command(values)[3:], "--dry-run"])
    return output.readouterr().out


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_plan_of_a_new_run(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compared with torchvision's network and the dataset: 64 samples in batches of 16, twice."""
    whole = torchvision.models.resnet18(weights=None)
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    more = {"model__backbone": "resnet18", "model__pretrained": str(tmp_path / "w.pt")}
    before = content(tmp_path)
    output = planned(settings(faces, tmp_path / "run", **more), capsys)
    assert content(tmp_path) == before
    assert not (tmp_path / "run").exists()
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in whole.named_children()}
    frozen = counts["conv1"] + counts["bn1"] + counts["layer1"]
    branch = counts["layer2"] + counts["layer3"] + counts["layer4"] + (512 + 1) + (512 + 1) * 7
    assert f"{2 * branch:,} parameters are trained, {frozen:,} are frozen" in output
    assert f"gradients {8 * branch / 2**20:,.1f} MiB, Adam's moments {16 * branch / 2**20:,.1f} MiB" in output
    assert "train 64, validation 20, test 30" in output
    assert "4 per epoch (64 samples, sampler all), 8 in 2 epochs" in output
    assert "warning        loss.epoch_threshold = 3 is beyond the run's 2 epochs" in output
    assert "batch_size = 16 (preset rafdb: 64)" in output
    assert "no run in it yet" in output
    assert re.search(r"measured: [\d.]+ s, \d+ images/s on 1 rank on cpu", output)


def test_step_is_measured_at_the_largest_actual_batch(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """64 samples make one batch of 64, whatever the batch size."""
    plan = planned({**settings(faces, tmp_path / "run"), "batch_size": "640"}, capsys)
    assert "of activations per step (64 images per rank)" in plan
    assert "batch_size = 640 is at least the number of samples per epoch" in plan


def test_plan_gives_the_size_of_stored_maps(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of each of 64 training samples, 20 and 30 others; 64 maps of a quarter of the side."""
    torch.save(build_resnet("resnet10").state_dict(), tmp_path / "w.pt")
    more = {"model__pretrained": str(tmp_path / "w.pt"), "model__cached_augmentations": "3", "data__image_size": "128"}
    before = content(tmp_path)
    plan = planned(settings(faces, tmp_path / "run", data__cache_dir=str(tmp_path / "cache"), **more), capsys)
    size = (2 * 64 + 20 + 30) * 64 * 32 * 32 * 4 / 1e9
    assert f"maps           {size:.2f} GB in {tmp_path / 'cache'} on each node" in plan
    assert "with 2 augmentations of each training sample" in plan  # a third epoch would use the third
    assert content(tmp_path) == before and not (tmp_path / "cache").exists()


def test_plan_of_a_resumed_run(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = settings(faces, tmp_path / "run", epochs="1")
    train.main(command(values)[3:])
    assert capsys.readouterr().out.count("warning: loss.epoch_threshold = 3 is beyond the run's 1 epochs") == 1
    before = content(tmp_path)
    assert "contains a run with 1 finished epochs (will resume)" in planned({**values, "epochs": "3"}, capsys)
    assert "would be refused" in planned({**values, "optimizer.lr": "0.5"}, capsys)
    assert content(tmp_path) == before


def test_check_offers_the_same_plan(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the measured lines, which differ from call to call."""

    def exact(output: str) -> list[str]:
        return [line for line in output.splitlines() if "measured" not in line and not line.startswith("time ")]

    values = settings(faces, tmp_path / "run")
    plan = planned(values, capsys)
    check.main([*command(values)[3:], "--dry-run"])
    output = capsys.readouterr().out
    assert exact(output) == exact(plan)
    assert "train 64, validation 20, test 30" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_only_one_of_two_ranks_prints(faces: Path, tmp_path: Path) -> None:
    done = finish([*command(settings(faces, tmp_path / "run"), 2), "--dry-run"], timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    assert "2 ranks on cpu" in done.stdout
    assert not (tmp_path / "run").exists()


def test_user_error_is_one_line(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        planned(settings(faces / "nowhere", tmp_path / "run"), capsys)
    assert ended.value.code == 2
    assert "nowhere" in capsys.readouterr().err


def test_memory_saved_for_backward_is_counted() -> None:
    """A linear layer saves its input, a ReLU its output, in float32; weights are not counted."""
    layer, images = nn.Linear(10, 30), torch.randn(4, 10)
    steps = []

    def step() -> None:
        steps.append(layer(images).relu().sum().backward())

    kept = activation_bytes(SimpleNamespace(engine=SimpleNamespace(model=layer), step=step))  # type: ignore[arg-type]
    assert len(steps) == 1
    assert kept == 4 * (4 * 10 + 4 * 30)


@pytest.mark.parametrize(
    ("words", "origin"),
    [
        ([], "preset demo"),
        (["--preset", "rafdb"], "preset rafdb"),
        (["--config", "x.toml"], "the defaults"),
        (["--config", "x.toml", "--preset", "sfew"], "preset sfew"),
    ],
)
def test_comparison_baseline_is_the_preset_or_the_defaults(words: list[str], origin: str) -> None:
    assert base_config(words)[0] == origin
