"""Checkpoints in the published layout: every tensor is mapped, and the network predicts the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adadf_dist.checkpoint.storage import read_checkpoint
from adadf_dist.checkpoint.trained_model import load_trained_model
from adadf_dist.convert import main
from adadf_dist.export.exported_model import load_model
from adadf_dist.method.model import DualBranch
from tests.helpers.forked import train_forked
from tests.helpers.networks import random_network, small_config
from tests.helpers.runs import records, settings

NAMES = "neutral,happy,sad,surprise,fear,disgust,anger"


@pytest.fixture(scope="module")
def network() -> DualBranch:
    """A network whose branches differ, as after training."""
    return random_network(small_config({}), 7)


def published(network: DualBranch, numbered: bool, repeated: bool) -> dict[str, Tensor]:
    """The network's tensors under the published names, module by module.

    `numbered`: places of a Sequential instead of names; `repeated`: `branch_N_feature` and `branch_N_classifier` too.
    """
    state: dict[str, Tensor] = {}

    def put(prefix: str, module: torch.nn.Module) -> None:
        state.update({f"{prefix}.{name}": value.clone() for name, value in module.state_dict().items()})

    front = network.extractor
    for place, (name, module) in enumerate(
        [
            ("conv1", front.conv1),
            ("bn1", front.bn1),
            ("act1", front.relu),
            ("maxpool", front.maxpool),
            ("layer1", front.layer1),
        ]
    ):
        put(f"feature.{place if numbered else name}", module)
    assert network.auxiliary is not None
    for number, branch in ((1, network.auxiliary), (2, network.target)):
        stages = branch.stages
        for place, name in enumerate(("layer2", "layer3", "layer4")):
            put(f"branch_{number}.{place if numbered else name}", getattr(stages, name))
            if repeated:
                put(f"branch_{number}_feature.{place if numbered else name}", getattr(stages, name))
        put(f"branch_{number}.{'4' if numbered else 'fc'}", branch.classifier)  # 3 is the pooling
        if repeated:
            put(f"branch_{number}_classifier", branch.classifier)
        put(f"alpha_{number}.0", branch.attention)
    return state


def save(path: Path, state: Mapping[str, object]) -> Path:
    torch.save(dict(state), path)
    return path


def run_import(file: Path, out: Path, classes: str = NAMES) -> None:
    main([str(file), "--classes", classes, "--out", str(out), "--image-size", "32"])


def refused(capsys: pytest.CaptureFixture[str], file: Path, classes: str = NAMES) -> str:
    out = file.with_name("refused.pt")
    with pytest.raises(SystemExit) as ended:
        run_import(file, out, classes)
    assert ended.value.code == 2
    assert not out.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("numbered", [True, False], ids=["numbered", "named"])
@pytest.mark.parametrize("repeated", [True, False], ids=["repeated", "once"])
def test_converted_network_keeps_logits_and_attention(
    network: DualBranch, numbered: bool, repeated: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = published(network, numbered, repeated)
    wrapped = {"epoch": 41, "model_state_dict": {f"module.{name}": value for name, value in state.items()}}
    run_import(save(tmp_path / "theirs.pth", wrapped), tmp_path / "ours.pt")
    said = capsys.readouterr().out
    own = len(network.state_dict())
    assert f"{len(state)} tensors: {own} converted, {len(state) - own} duplicates" in said
    images = torch.randn(3, 3, 32, 32)
    trained = load_trained_model(tmp_path / "ours.pt")
    with torch.no_grad():
        for ours, theirs in zip(trained.model(images), network(images), strict=True):
            assert torch.equal(ours, theirs)
    assert trained.classes == tuple(NAMES.split(","))
    assert trained.epoch == 0


def test_other_layouts_of_the_heads_are_converted(network: DualBranch, tmp_path: Path) -> None:
    """Classifiers only outside the branches, attention as a bare Linear, no counters, no container."""
    state = {
        name.replace("alpha_1.0.", "alpha_1.").replace("alpha_2.0.", "alpha_2."): value
        for name, value in published(network, True, True).items()
        if not name.startswith(("branch_1.4", "branch_2.4")) and not name.endswith("num_batches_tracked")
    }
    run_import(save(tmp_path / "theirs.pth", state), tmp_path / "ours.pt")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = network(images).target_logits
    torch.testing.assert_close(load_model(tmp_path / "ours.pt", "cpu").logits(images), wanted)


def test_every_tensor_is_accounted_for(network: DualBranch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def with_change(change: Mapping[str, Tensor | None]) -> Path:
        state = {**published(network, True, True), **change}
        return save(tmp_path / "theirs.pth", {name: value for name, value in state.items() if value is not None})

    line = refused(capsys, with_change({"gamma.weight": torch.zeros(3)}))
    assert "unknown tensor gamma.weight" in line
    line = refused(capsys, with_change({"feature.7.weight": torch.zeros(3)}))
    assert "unknown tensor feature.7.weight" in line
    line = refused(capsys, with_change({"feature.4.0.conv9.weight": torch.zeros(3)}))
    assert "unexpected tensors: extractor.layer1.0.conv9.weight" in line
    line = refused(capsys, with_change({"alpha_2.0.bias": None}))
    assert "missing tensors: target.attention.bias" in line
    line = refused(capsys, with_change({"branch_1_feature.1.0.conv1.weight": torch.zeros(3)}))
    assert "branch_1_feature.1.0.conv1.weight should equal branch_1.1.0.conv1.weight, but does not" in line
    line = refused(capsys, with_change({"alpha_1.0.weight": torch.zeros(1, 9)}))
    assert "shape mismatch of auxiliary.attention.weight" in line


def test_user_errors_are_one_line(network: DualBranch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(tmp_path / "theirs.pth", published(network, True, False))
    assert "6 names, but" in refused(capsys, file, "a,b,c,d,e,f")
    assert "distinct" in refused(capsys, file, "a,b,c,d,e,f,a")
    assert "no such file" in refused(capsys, tmp_path / "nowhere.pth")
    plain = save(tmp_path / "plain.pth", {"conv1.weight": torch.zeros(3)})
    assert "unknown tensor conv1.weight; pass a checkpoint of the published code" in refused(capsys, plain)
    (tmp_path / "text.pth").write_text("hello")
    assert "not a file of plain tensors" in refused(capsys, tmp_path / "text.pth")
    (tmp_path / "there.pt").touch()
    with pytest.raises(SystemExit):
        run_import(file, tmp_path / "there.pt")
    assert "already exists" in capsys.readouterr().err


def test_converted_weights_start_a_run(network: DualBranch, faces: Path, tmp_path: Path) -> None:
    """The recipe is the new run's, the weights are the file's: at a learning rate near 0 they do not change."""
    run_import(save(tmp_path / "theirs.pth", published(network, True, False)), tmp_path / "ours.pt")
    more = {"resume": str(tmp_path / "ours.pt"), "optimizer__lr": "1e-12", "class_distributions__threshold": "0.5"}
    out = tmp_path / "run"
    done = train_forked(settings(faces, out, epochs="1", **more))
    assert done.returncode == 0, done.stderr
    weights = read_checkpoint(out / "checkpoints" / "selected.pt")["engine"]["model"]
    start = network.state_dict()
    assert len(records(out, "epoch")) == 1
    for name, value in weights.items():
        if "running_" not in name and "num_batches" not in name:
            torch.testing.assert_close(value, start[name], atol=1e-6, rtol=0)


def test_run_of_another_network_rejects_converted_weights(network: DualBranch, faces: Path, tmp_path: Path) -> None:
    run_import(save(tmp_path / "theirs.pth", published(network, True, False)), tmp_path / "ours.pt")
    more = {"resume": str(tmp_path / "ours.pt"), "model__attention_on": "features"}
    done = train_forked(settings(faces, tmp_path / "run", epochs="1", **more))
    assert done.returncode == 2
    assert "model.attention_on was logits" in done.stderr
