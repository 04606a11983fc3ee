"""timm backbones split in two equal timm's networks, use no random numbers, and train on any ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import ModelConfig
from adadf_dist.distributed.world import World
from adadf_dist.engine.batch_norm import synchronize_batch_norm
from adadf_dist.engine.ddp import DDPEngine
from adadf_dist.engine.optimizer import build_optimizer
from adadf_dist.errors import UserError
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import BatchSlice
from adadf_dist.method.model import DualBranch
from adadf_dist.method.pretrained import load_pretrained
from tests.helpers.forked import train_forked
from tests.helpers.ranks import run_ranks, single_process_world
from tests.helpers.runs import records, settings
from tests.helpers.steps import over_ranks, take_step

timm = pytest.importorskip("timm")
timm_backbones = pytest.importorskip("adadf_dist.method.timm_backbones")

CLASSES = 7
FAMILIES = {
    "convnext_atto": 32,
    "efficientnet_b0": 32,
    "mobilenetv3_small_050": 48,
    "swin_tiny_patch4_window7_224": 64,
    "vit_tiny_patch16_224": 48,
    "deit3_small_patch16_224": 32,
    "vit_base_patch16_siglip_224": 32,
    "regnetx_002": 32,
}
"""A member of each, and a side in pixels. deit3 adds positions to its patches alone; siglip pools by attention."""
SIZED = ("swin", "vit", "deit")
HEAVY = ("vit_base_patch16_siglip_224",)


def images(rows: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))


def timms_own(name: str, side: int) -> nn.Module:
    """Random weights and statistics, so that every part has an effect, unlike zeros at initialization."""
    sized = {"img_size": side} if name.startswith(SIZED) else {}
    whole: nn.Module = timm.create_model(name, num_classes=CLASSES, **sized).eval()
    generator = torch.Generator().manual_seed(1)
    for key, value in whole.state_dict().items():
        if value.is_floating_point():
            noise = 0.1 * torch.rand(value.shape, generator=generator)
            value.add_(noise if key.endswith("running_var") else noise - 0.05)
    return whole


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in FAMILIES])
def test_baseline_equals_timms_network(name: str, tmp_path: Path) -> None:
    """A file of timm's own tensors loads by name, and gives timm's logits."""
    side = FAMILIES[name]
    whole = timms_own(name, side)
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    config = ModelConfig(backbone=f"timm:{name}", pretrained=str(tmp_path / "w.pt"))
    model = DualBranch(config, CLASSES, auxiliary=False, image_size=side)
    loaded = load_pretrained(model, config)
    classifier = whole.get_classifier()  # type: ignore[operator]
    assert len(loaded.ignored) == 2
    model.target.classifier.load_state_dict(classifier.state_dict())
    model.eval()
    with torch.no_grad():
        expected = whole(images(3, side))
        assert expected.std() > 0.01
        torch.testing.assert_close(model(images(3, side)).target_logits, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0", "vit_tiny_patch16_224"])
def test_split_point_changes_only_what_is_shared(name: str) -> None:
    side, sizes, logits = FAMILIES[name], [], []
    whole = timms_own(name, side)
    prefix = "stages" if name == "convnext_atto" else "blocks"
    for split in (f"{prefix}.0", f"{prefix}.2"):
        model = DualBranch(ModelConfig(backbone=f"timm:{name}", shared_until=split), CLASSES, image_size=side).eval()
        for part in (model.extractor, model.target.stages, model.target.pool):
            part.load_state_dict({key: whole.state_dict()[key] for key in part.state_dict()})
        sizes.append(sum(p.numel() for p in model.extractor.parameters()))
        with torch.no_grad():
            logits.append(model.target.features(model.extractor(images(2, side))))
    assert sizes[0] < sizes[1]
    torch.testing.assert_close(*logits, rtol=1e-6, atol=1e-6)


def test_branch_starts_as_a_copy_and_shares_nothing() -> None:
    model = DualBranch(ModelConfig(backbone="timm:vit_tiny_patch16_224"), CLASSES, image_size=32)
    assert model.auxiliary is not None
    pairs = list(zip(model.auxiliary.parameters(), model.target.parameters(), strict=True))
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "efficientnet_b0", "vit_tiny_patch16_224"])
def test_training_uses_no_random_numbers(name: str) -> None:
    """Whatever the state of the generators: timm's Swin drops paths at random by default."""
    side = FAMILIES[name]
    model = DualBranch(ModelConfig(backbone=f"timm:{name}"), CLASSES, image_size=side).train()
    answers = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        answers.append(model(images(4, side)).target_logits)
    assert torch.equal(*answers)


def test_frozen_extractor_is_unchanged() -> None:
    model = DualBranch(ModelConfig(backbone="timm:efficientnet_b0"), CLASSES, image_size=32)
    model.freeze_extractor()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(images(4, 32)).target_logits.square().sum().backward()
    optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("extractor."))
    assert not torch.equal(before["target.stages.bn2.running_mean"], after["target.stages.bn2.running_mean"])


def test_head_learning_rate_excludes_transformer_attention() -> None:
    config = build_config([ConfigLayer("test", {"optimizer.attention_lr_mult": 0.5})])
    model = DualBranch(ModelConfig(backbone="timm:vit_tiny_patch16_224"), CLASSES, image_size=32)
    optimizer = build_optimizer(model, config.optimizer, torch.device("cpu"))
    _, heads = (sum(p.numel() for p in group["params"]) for group in optimizer.param_groups)
    assert heads == 2 * (192 + 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", r"model\.backbone is 'resnet19'; allowed: resnet10, .*did you mean resnet18\?"),
        ("convnext_tiny", r"allowed: .* or timm:NAME"),
        ("timm:convnext_tini", r"does not have; did you mean timm:convnext_tiny\?"),
        ("timm:convnext_atto.nowhere", r"no weights 'nowhere' for convnext_atto; available: d2_in1k"),
    ],
)
def test_unknown_names_are_rejected(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_config([ConfigLayer("test", {"model.backbone": name})])
    assert "\n" not in str(caught.value)


def test_missing_timm_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    build_config([ConfigLayer("test", {"model.backbone": "resnet50"})])
    with pytest.raises(UserError, match=r"pip install 'adadf_dist\[timm\]'"):
        build_config([ConfigLayer("test", {"model.backbone": "timm:convnext_atto"})])


@pytest.mark.parametrize(
    ("config", "side", "message"),
    [
        (
            ModelConfig(shared_until="layer7"),
            32,
            r"model\.shared_until is 'layer7'.*end with layer1, layer2, layer3 \(default: layer1",
        ),
        (ModelConfig(shared_until="layer4"), 32, r"end with layer1, layer2, layer3"),
        (ModelConfig(backbone="timm:convnext_atto", shared_until="stage.0"), 32, r"did you mean stages\.0\?"),
        (ModelConfig(backbone="timm:maxvit_pico_rw_256"), 100, r"does not support data\.image_size 100"),
        (ModelConfig(backbone="timm:pvt_v2_b0"), 64, "cannot be split"),
        # a ReLU in place comes next
        (
            ModelConfig(backbone="timm:vgg11", shared_until="features.3"),
            32,
            r"'features\.3': .* modifies its input in place",
        ),
    ],
)
def test_unsplittable_networks_are_rejected(config: ModelConfig, side: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        DualBranch(config, CLASSES, image_size=side)
    assert "\n" not in str(caught.value)


def test_network_that_differs_from_timm_is_rejected() -> None:
    whole, config = timm.create_model("convnext_atto", num_classes=0), ModelConfig(backbone="timm:convnext_atto")
    backbone = timm_backbones.split_sequential(whole, config)
    own = whole.forward_features
    whole.forward_features = lambda x: own(x).relu()
    with pytest.raises(UserError, match="do not compute the same features"):
        timm_backbones.verify_against_timm(whole, backbone, config, 32)


SLICES = (5, 4)


def train_steps(world: World, name: str, side: int) -> tuple[list[list[float]], dict[str, Tensor]]:
    """Losses of each step and the gradients of the first, in float64, on this rank's slice."""
    torch.set_default_dtype(torch.float64)
    try:
        values = {"model.backbone": name, "data.image_size": side, "loss.rank_margin": 1.0, "runtime.precision": "fp32"}
        config = build_config([ConfigLayer("test", values)])
        engine = DDPEngine(config, CLASSES, world)
        classes = ClassDistributions(CLASSES, config.class_distributions, world)
        losses, gradients = [], {}
        for step in range(2):
            first, end = (0, sum(SLICES))
            if world.size > 1:
                first, end = sum(SLICES[: world.rank]), sum(SLICES[: world.rank + 1])
            batch = images(sum(SLICES), side, step).double()[first:end], torch.arange(first, end) % CLASSES
            _, found = take_step(engine, classes, batch, (world, BatchSlice(first, sum(SLICES))), config.loss)
            losses.append(over_ranks(found, world).tolist())
            if not step:
                gradients = {n: p.grad.clone() for n, p in engine.model.named_parameters() if p.grad is not None}
        return losses, gradients
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b0",
        pytest.param("convnext_atto", marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
        pytest.param("vit_tiny_patch16_224", marks=pytest.mark.slow),
    ],
)
def test_steps_of_two_ranks_equal_one(name: str) -> None:
    """timm's BatchNorm with activation sees the global batch; every parameter has a gradient."""
    one, gradients = train_steps(single_process_world(), f"timm:{name}", FAMILIES[name])
    assert one[0][3] > 0.5  # rank regularization is active
    for many, theirs in run_ranks(train_steps, 2, f"timm:{name}", FAMILIES[name], timeout=240):
        torch.testing.assert_close(many[0], one[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(many[1], one[1], rtol=1e-6, atol=1e-6)  # Adam amplifies the rounding of a gradient
        assert theirs.keys() == gradients.keys()
        for key in gradients:
            torch.testing.assert_close(theirs[key], gradients[key], rtol=1e-8, atol=1e-9, msg=lambda m, k=key: k + m)


def refuse_one_dimension(world: World) -> str:
    with pytest.raises(UserError) as caught:
        synchronize_batch_norm(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), world)
    return str(caught.value)


def test_unsynchronizable_batch_norm_gives_a_warning() -> None:
    for said in run_ranks(refuse_one_dimension, 2):
        assert said.startswith("the backbone's BatchNorm1d cannot be synchronized across ranks on cpu")


def test_gpu_uses_torchs_synchronized_batch_norm() -> None:
    """Converted layers keep names and activation; in evaluation they need no GPU."""
    whole, faces = timms_own("efficientnet_b0", 32), images(2, 32)
    with torch.no_grad():
        before, names = whole(faces), list(whole.state_dict())
        synchronize_batch_norm(whole, World(torch.device("cuda"), 0, 2))
        assert not any(type(module).__name__ == "BatchNormAct2d" for module in whole.modules())
        assert any(isinstance(module, nn.SyncBatchNorm) for module in whole.modules())
        assert list(whole.state_dict()) == names
        torch.testing.assert_close(whole(faces), before)


@pytest.mark.parametrize(
    "name", ["convnext_atto", pytest.param("efficientnet_b0", marks=pytest.mark.slow), "vit_tiny_patch16_224"]
)
def test_parts_are_plain_modules(name: str) -> None:
    """torch.export exports the whole target branch, and torch.compile each part in one graph."""
    side = FAMILIES[name]
    model = DualBranch(ModelConfig(backbone=f"timm:{name}"), CLASSES, image_size=side).eval()
    faces = images(2, side)
    exported = torch.export.export(Predicting(model), (faces,)).module()
    torch.testing.assert_close(exported(faces), model.predict(faces))
    maps = model.extractor(faces)
    for part, given in ((model.extractor, faces), (model.target.stages, maps)):
        assert torch._dynamo.explain(part)(given).graph_break_count == 0


class Predicting(nn.Module):
    def __init__(self, model: DualBranch) -> None:
        super().__init__()
        self.model = model

    def forward(self, faces: Tensor) -> Tensor:
        return self.model.predict(faces)


def test_timm_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`imagenet` requests them from timm at the image size; a stub replaces the network access."""
    trained, asked = timms_own("vit_tiny_patch16_224", 48), []
    own = timm.create_model

    def fetch(name: str, pretrained: bool = False, **more: Any) -> nn.Module:
        asked.append((name, pretrained, more.get("img_size")))
        model: nn.Module = own(name, **more)
        if pretrained:
            model.load_state_dict({k: v for k, v in trained.state_dict().items() if not k.startswith("head.")})
        return model

    monkeypatch.setattr(timm, "create_model", fetch)
    config = ModelConfig(backbone="timm:vit_tiny_patch16_224", pretrained="imagenet")
    model = DualBranch(config, CLASSES, image_size=48)
    loaded = load_pretrained(model, config)
    assert asked == [("vit_tiny_patch16_224", False, 48), ("vit_tiny_patch16_224", True, 48)]
    assert loaded.source == "imagenet"
    assert torch.equal(model.extractor.pos_embed, trained.pos_embed)  # type: ignore[arg-type]
    assert model.extractor_frozen
    assert model.auxiliary is not None
    for branch in (model.target, model.auxiliary):
        assert torch.equal(branch.stages.norm.weight, trained.norm.weight)  # type: ignore[union-attr, arg-type]


def test_unavailable_weights_are_one_line(faces: Path, tmp_path: Path) -> None:
    values = settings(faces, tmp_path / "run", model__backbone="timm:convnext_atto", model__pretrained="imagenet")
    done = train_forked(values, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "model.pretrained imagenet: timm could not download the convnext_atto weights" in done.stderr
    assert "Traceback" not in done.stderr


def finished(faces: Path, out: Path, ranks: int = 1, **changed: str) -> list[dict[str, object]]:
    done = train_forked(settings(faces, out, **changed), ranks, timeout=280)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "result.json").read_text())["test"]["samples"] == 30
    return records(out, "epoch")


@pytest.mark.slow
def test_run_of_two_epochs_on_two_ranks(faces: Path, tmp_path: Path) -> None:
    """Two epochs on two ranks in bf16, and therefore channels last."""
    epochs = finished(
        faces, tmp_path / "run", 2, model__backbone="timm:mobilenetv3_small_050", runtime__precision="bf16"
    )
    assert len(epochs) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["convnext_atto", "efficientnet_b0", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"]
)
def test_every_family_trains_and_resumes(name: str, faces: Path, tmp_path: Path) -> None:
    """Two epochs and a third from the checkpoint equal three epochs."""
    backbone, more = f"timm:{name}", {"runtime__precision": "fp32", "data__image_size": str(FAMILIES[name])}
    finished(faces, tmp_path / "a", model__backbone=backbone, **more)
    resumed = finished(faces, tmp_path / "a", model__backbone=backbone, epochs="3", **more)
    at_once = finished(faces, tmp_path / "b", model__backbone=backbone, epochs="3", **more)
    assert [e["total"] for e in resumed] == [e["total"] for e in at_once]
    assert [e["validation"] for e in resumed] == [e["validation"] for e in at_once]
