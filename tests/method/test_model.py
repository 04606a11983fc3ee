"""The two-branch network against torchvision's, and pretrained weights in common layouts."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from adadf_dist.config.schema import ModelConfig
from adadf_dist.errors import UserError
from adadf_dist.method.model import DualBranch
from adadf_dist.method.pretrained import NO_WEIGHTS, LoadedWeights, load_pretrained
from adadf_dist.method.weight_files import read_weights


def images(rows: int = 3) -> Tensor:
    return torch.randn(rows, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_backbone_split_into_extractor_and_branches(backbone: str) -> None:
    model = DualBranch(ModelConfig(backbone=backbone), 7)  # type: ignore[arg-type]
    whole = torchvision.models.get_model(backbone, weights=None)
    features = whole.fc.in_features
    heads = (features + 1) + (features + 1) * 7
    assert count(model.extractor) + count(model.target) == count(whole) - count(whole.fc) + heads
    assert model.auxiliary is not None
    assert count(model.auxiliary) == count(model.target)
    if backbone == "resnet18":
        assert count(model.extractor) == 157_504


@pytest.mark.parametrize("depth", [10, 18, 50])
def test_resnet_depth_matches_its_name(depth: int) -> None:
    """He et al. count layers with weights: convolutions except shortcuts, and the classifier."""
    model = DualBranch(ModelConfig(backbone=f"resnet{depth}"), 7, auxiliary=False)  # type: ignore[arg-type]
    modules = model.named_modules()
    convolutions = [n for n, m in modules if isinstance(m, torch.nn.Conv2d) and "downsample" not in n]
    assert len(convolutions) + 1 == depth


def test_auxiliary_branch_starts_as_a_copy_and_shares_nothing() -> None:
    model = DualBranch(ModelConfig(backbone="resnet10"), 7)
    assert model.auxiliary is not None
    pairs = list(zip(model.auxiliary.parameters(), model.target.parameters(), strict=True))
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)


@pytest.mark.parametrize("attention_on", ["logits", "features"])
def test_attention_acts_on_features_or_logits(attention_on: str) -> None:
    model = DualBranch(ModelConfig(backbone="resnet10", attention_on=attention_on), 5).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        output = model(images())
        features = model.target.stages(model.extractor(images())).mean(dim=(2, 3))
        w, b = model.target.classifier.weight, model.target.classifier.bias
        attention = torch.sigmoid(features @ model.target.attention.weight.T + model.target.attention.bias)
        scaled = attention * (features @ w.T + b) if attention_on == "logits" else (attention * features) @ w.T + b
    torch.testing.assert_close(output.target_logits, scaled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.target_attention, attention.squeeze(1), rtol=1e-4, atol=1e-5)


def test_prediction_uses_only_the_target_branch() -> None:
    model = DualBranch(ModelConfig(backbone="resnet10"), 7).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.predict(images()), model(images()).target_logits)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_baseline_equals_torchvisions_network(backbone: str, tmp_path: Path) -> None:
    """Equal weights give equal logits: extractor, branch and pooling are connected as in the backbone."""
    whole = torchvision.models.get_model(backbone, weights=None, num_classes=7).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    config = ModelConfig(backbone=backbone, pretrained=str(tmp_path / "w.pt"))  # type: ignore[arg-type]
    model = DualBranch(config, 7, auxiliary=False)
    load_pretrained(model, config)
    model.target.classifier.load_state_dict(whole.fc.state_dict())
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images()).target_logits, whole(images()), rtol=1e-4, atol=1e-4)


def test_frozen_extractor_is_unchanged() -> None:
    model = DualBranch(ModelConfig(backbone="resnet10"), 7)
    model.freeze_extractor()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(images()).target_logits.square().sum().backward()
    optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("extractor."))
    assert not torch.equal(
        before["target.stages.layer2.0.bn1.running_mean"], after["target.stages.layer2.0.bn1.running_mean"]
    )


@pytest.mark.parametrize("auxiliary", [True, False])
def test_every_trained_parameter_has_a_gradient(auxiliary: bool) -> None:
    """DDP waits for the gradient of each trained parameter; the baseline uses no attention head."""
    model = DualBranch(ModelConfig(backbone="resnet10"), 7, auxiliary=auxiliary)
    output = model(images())
    torch.stack([t.sum() for t in output]).sum().backward()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == (set() if auxiliary else {"target.attention.weight", "target.attention.bias"})
    assert {name for name, p in model.named_parameters() if p.grad is None} == frozen


def state() -> dict[str, Tensor]:
    return torchvision.models.resnet18(weights=None).state_dict()


def sequential(s: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as in `nn.Sequential(*resnet.children())`: torchvision's modules give the order."""
    children = dict(torchvision.models.resnet18(weights=None).named_children())
    return {".".join([str(list(children).index(k.split(".")[0])), *k.split(".")[1:]]): v for k, v in s.items()}


def features(s: dict[str, Tensor]) -> dict[str, Tensor]:
    """SCN's layout: no classifier in the sequence, but an attention head and a classifier beside it."""
    kept = {f"module.features.{k}": v for k, v in sequential(s).items() if not k.startswith("9.")}
    return {**kept, "module.fc.weight": torch.ones(7, 512), "module.alpha.0.weight": torch.ones(1, 512)}


def moco(s: dict[str, Tensor]) -> dict[str, Tensor]:
    """MoCo's layout: two encoders, of which only the query encoder was trained, and the queue."""
    other = {f"module.encoder_k.{k}": torch.zeros_like(v) for k, v in s.items()}
    return {**other, **{f"module.encoder_q.{k}": v for k, v in s.items()}, "module.queue": torch.ones(128, 16)}


OUTSIDE = {
    "SCN": {"module.fc.weight", "module.alpha.0.weight"},
    "MoCo": {"fc.bias", "fc.weight", "module.queue", *(f"module.encoder_k.{k}" for k in state())},
    "average": {"fc.bias", "fc.weight", "n_averaged"},
    "sequential": {"9.weight", "9.bias"},
    "headless": set(),
}
"""What is left of a file, where it is not just the classifier."""
LAYOUTS = {
    "torch.compile": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "DDP of torch.compile": lambda s: {"model": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "any wrapper": lambda s: {f"net.face_encoder.cnn.{k}": v for k, v in s.items()},
    "MoCo": lambda s: {"state_dict": moco(s), "epoch": 200},
    "SCN": lambda s: {"model_state_dict": features(s)},
    "sequential": sequential,
    "EMA": lambda s: {"ema_state_dict": s},
    "average": lambda s: {"model_ema": {**{f"module.{k}": v for k, v in s.items()}, "n_averaged": torch.ones(())}},
    "params": lambda s: {"params": s},
    "nested": lambda s: {"model": {"state_dict": {"params": s}}},
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "module": lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}},
    "backbone": lambda s: {f"module.backbone.{k}": v for k, v in s.items()},
    "headless": lambda s: {k: v for k, v in s.items() if not k.startswith("fc.")},
    "without counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pretrained_layouts_are_recognized(layout: str, tmp_path: Path) -> None:
    weights, path = state(), tmp_path / "weights.pt"
    torch.save(LAYOUTS[layout](weights), path)
    config = ModelConfig(pretrained=str(path))
    model = DualBranch(config, 7)
    loaded = load_pretrained(model, config)
    assert model.auxiliary is not None
    assert torch.equal(model.extractor.conv1.weight, weights["conv1.weight"])  # type: ignore[union-attr]
    for branch in (model.target, model.auxiliary):
        assert torch.equal(branch.stages.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])  # type: ignore[index, union-attr]
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(loaded.ignored) == OUTSIDE.get(layout, {"fc.bias", "fc.weight"})
    assert loaded.matched == len([k for k in weights if k[:3] != "fc."]) - 20 * (layout == "without counters")
    assert model.extractor_frozen
    assert not any(p.requires_grad for p in model.extractor.parameters())


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda: {k: v for k, v in state().items() if k != "layer3.0.conv1.weight"},
            r"is missing layer3\.0\.conv1\.weight",
        ),
        (lambda: {**state(), "extra.weight": torch.ones(1)}, r"has unknown tensors extra\.weight"),
        (lambda: {**state(), "conv1.weight": torch.ones(1)}, r"different shape for conv1\.weight"),
        (lambda: torchvision.models.resnet50(weights=None).state_dict(), "is it a resnet18"),
        (lambda: {"conv1.weight": torch.ones(1), "x": Payload()}, "not a file of plain tensors"),
        (lambda: [1, 2], "contains no state dict"),
        (lambda: {**state(), "layer2.0.bn1.bias": torch.full((128,), torch.nan)}, r"NaN .* in layer2\.0\.bn1\.bias"),
        (lambda: {**state(), "conv1.weight": torch.full((64, 3, 7, 7), torch.inf)}, r"infinite .* in conv1\.weight"),
        (lambda: {f"{n}.{k}": v for n in "ab" for k, v in state().items()}, r"the same network 2 times \(a\., b\.\)"),
        (lambda: torchvision.models.resnet18(weights=None), r"it contains torchvision\.models\.resnet\.ResNet"),
    ],
)
def test_mismatched_weights_are_rejected(
    content: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content(), tmp_path / "w.pt")  # type: ignore[operator]
    config = ModelConfig(pretrained=str(tmp_path / "w.pt"))
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(DualBranch(config, 7), config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


FILES = {
    "page": (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><title>Sign in</title></html>", r"is a web page \(HTML\)"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 46830571\n", "is a Git LFS pointer"),
    "empty": (b"", "is empty"),
    "text": (b"404: Not Found", "not a file of plain tensors"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_without_weights_are_rejected(kind: str, tmp_path: Path) -> None:
    content, message = FILES[kind]
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_weights(tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_truncated_files_are_rejected(zipped: bool, share: float, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, round(share * path.stat().st_size))
    with pytest.raises(UserError, match="is truncated or corrupt") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_safetensors_weights_are_loaded(tmp_path: Path) -> None:
    path, weights = tmp_path / "w.safetensors", state()
    save_file(weights, path)
    config = ModelConfig(pretrained=str(path))
    model = DualBranch(config, 7)
    assert load_pretrained(model, config).matched == len(weights) - 2
    assert torch.equal(model.extractor.conv1.weight, weights["conv1.weight"])  # type: ignore[union-attr]
    os.truncate(path, 1000)
    with pytest.raises(UserError, match="is truncated or corrupt"):
        load_pretrained(model, config)


def test_missing_and_unused_weight_options_are_rejected() -> None:
    with pytest.raises(UserError, match="no such file"):
        load_pretrained(DualBranch(ModelConfig(), 7), ModelConfig(pretrained="nowhere.pt"))
    with pytest.raises(UserError, match="the extractor would stay random"):
        load_pretrained(DualBranch(ModelConfig(), 7), ModelConfig(freeze="always"))


def test_resnet10_has_no_imagenet_weights() -> None:
    config = ModelConfig(backbone="resnet10", pretrained="imagenet")
    with pytest.raises(UserError, match=r"no resnet10 weights; use model\.backbone resnet18"):
        load_pretrained(DualBranch(config, 7), config)


def test_initial_weights_are_described() -> None:
    model = DualBranch(ModelConfig(backbone="resnet10"), 7)
    assert load_pretrained(model, ModelConfig(backbone="resnet10")) == NO_WEIGHTS == LoadedWeights("", "", 0, ())
    assert NO_WEIGHTS.describe() == "random weights"
    described = {
        (): "w.pt (5 tensors matched)",
        ("a", "b", "c"): "w.pt (5 tensors matched; ignored: a, b, c)",
        ("a", "b", "c", "d", "e"): "w.pt (5 tensors matched; ignored: a, b, c and 2 more)",
    }
    for ignored, text in described.items():
        assert LoadedWeights("w.pt", "0", 5, ignored).describe() == text


def test_heads_stay_float32_under_autocast() -> None:
    model = DualBranch(ModelConfig(backbone="resnet10"), 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images())
    assert {t.dtype for t in output} == {torch.float32}
