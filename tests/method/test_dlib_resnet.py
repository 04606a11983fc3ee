"""dlib's face recognition network: its blocks against loops in numpy, its splits, and training and export with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adadf_dist.checkpoint.trained_model import load_trained_model
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import ModelConfig
from adadf_dist.errors import UserError
from adadf_dist.export.__main__ import main as export
from adadf_dist.export.exported_model import load_model
from adadf_dist.export.target_network import TargetNetwork
from adadf_dist.method.backbones import sequential
from adadf_dist.method.dlib_resnet import Affine, Block, MultiStagePool, build_units
from adadf_dist.method.model import DualBranch
from adadf_dist.method.pretrained import load_pretrained
from tests.helpers.networks import random_network, save_checkpoint, small_config
from tests.helpers.runs import final_weights, records, settings, train_here

Maps = NDArray[np.float64]
NAME = "dlib_resnet29"
GRIDS = {"conv32": 4, "conv64": 4, "conv128": 4, "conv256": 4, "conv256_out": 2}


def dlib_config(shared_until: str = "", pretrained: Path | str = "") -> ModelConfig:
    return ModelConfig(backbone=NAME, shared_until=shared_until, pretrained=str(pretrained))


def images(rows: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random scales and offsets too, which are 1 and 0 at initialization."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, Affine):
            part.weight.data.uniform_(0.5, 1.5, generator=generator)
            part.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return module.eval()


def convolve(maps: Maps, layer: nn.Module, stride: int, border: int) -> Maps:
    """Maps [K, h, w], surrounded by `border` zeros, under every position of the filters."""
    weight, bias = (value.detach().double().numpy() for value in (layer.weight, layer.bias))
    channels, height, width = maps.shape
    around = np.zeros((channels, height + 2 * border, width + 2 * border))
    around[:, border : border + height, border : border + width] = maps
    side = weight.shape[-1]
    rows, columns = ((around.shape[i] - side) // stride + 1 for i in (1, 2))
    out = np.zeros((len(weight), rows, columns))
    for y in range(rows):
        for x in range(columns):
            window = around[:, y * stride : y * stride + side, x * stride : x * stride + side]
            out[:, y, x] = (weight * window).sum(axis=(1, 2, 3)) + bias
    return out


def scale(maps: Maps, layer: nn.Module) -> Maps:
    weight, bias = (value.detach().double().numpy() for value in (layer.weight, layer.bias))
    return np.stack([maps[k] * weight[k] + bias[k] for k in range(len(maps))])


def naive_block(block: Block, maps: Maps, halve: bool) -> Maps:
    if halve:  # maps that are smaller than a convolution end with zeros
        enough = np.zeros((len(maps), max(3, maps.shape[1]), max(3, maps.shape[2])))
        enough[:, : maps.shape[1], : maps.shape[2]] = maps
        maps = enough
    inner = scale(convolve(maps, block.conv1, 2 if halve else 1, 0 if halve else 1), block.affine1)
    residual = scale(convolve(np.maximum(inner, 0), block.conv2, 1, 1), block.affine2)
    shortcut = maps
    if halve:
        rows, columns = maps.shape[1] // 2, maps.shape[2] // 2
        shortcut = np.zeros((len(maps), rows, columns))
        for y in range(rows):
            for x in range(columns):
                shortcut[:, y, x] = maps[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean(axis=(1, 2))
    total = np.zeros((len(residual), *shortcut.shape[1:]))
    total[: len(shortcut)] += shortcut
    total[:, : residual.shape[1], : residual.shape[2]] += residual
    return np.maximum(total, 0)


@pytest.mark.parametrize(
    ("halve", "channels", "height", "width"),
    [
        (False, (3, 3), 5, 6),
        (False, (3, 3), 1, 1),
        (True, (2, 4), 7, 7),
        (True, (2, 4), 8, 8),
        (True, (3, 3), 8, 9),
        (True, (2, 3), 9, 6),
        (True, (3, 4), 2, 2),
        (True, (2, 2), 1, 1),
    ],
)
def test_block_equals_loops(halve: bool, channels: tuple[int, int], height: int, width: int) -> None:
    torch.manual_seed(0)
    block = Block(*channels, halve)
    randomize(block)
    maps = torch.randn(2, channels[0], height, width)
    with torch.no_grad():
        found = block(maps)
    expected = np.stack([naive_block(block, rows.double().numpy(), halve) for rows in maps])
    assert found.shape == expected.shape
    assert (expected > 0).any()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_stem_equals_loops() -> None:
    torch.manual_seed(0)
    stem = randomize(build_units()["stem"])
    picture = torch.randn(1, 3, 16, 19)
    with torch.no_grad():
        found = stem(picture)[0]
    maps = np.maximum(scale(convolve(picture[0].double().numpy(), stem.conv, 2, 0), stem.affine), 0)
    rows, columns = (maps.shape[1] - 3) // 2 + 1, (maps.shape[2] - 3) // 2 + 1
    largest = [
        [maps[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3].max(axis=(1, 2)) for x in range(columns)] for y in range(rows)
    ]
    np.testing.assert_allclose(found.numpy(), np.array(largest).transpose(2, 0, 1), atol=1e-5)


def test_network_has_the_published_size() -> None:
    """29 convolutions; at 150 pixels, maps of 35, 35, 17, 8, 4 and 2 pixels; 128 x 256 weights follow."""
    units = build_units()
    convolutions = [module for module in sequential(units).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 29
    maps, sides = images(1, 150), []
    with torch.no_grad():
        for unit in units.values():
            maps = unit(maps)
            assert maps.shape[2] == maps.shape[3]
            sides.append(maps.shape[2])
    assert sides == [35, 35, 17, 8, 4, 2]
    assert maps.shape[1] == 256


@pytest.mark.parametrize("side", [55, 64, 71, 102, 103, 112])
def test_split_point_changes_only_what_is_shared(side: int) -> None:
    """The features for an image are those of the whole network, averaged, at any size."""
    torch.manual_seed(1)
    whole = randomize(sequential(build_units()))
    with torch.no_grad():
        expected = whole(images(2, side)).mean(dim=(2, 3))
        assert expected.std() > 1e-3
        counts = []
        for split in ("", "conv64", "conv256"):
            model = DualBranch(dlib_config(split), 7, image_size=side).eval()
            for part in (model.extractor, model.target.stages):
                part.load_state_dict({key: whole.state_dict()[key] for key in part.state_dict()})
            assert torch.equal(model.target.features(model.extractor(images(2, side))), expected)
            counts.append(sum(p.numel() for p in model.extractor.parameters()))
    assert counts == sorted(set(counts))


def pool_naively(maps: Maps, grid: int) -> Maps:
    """Means of maps [K, h, w] over the cells of a grid; cells overlap where the side is no multiple of it."""
    side = maps.shape[-1]
    starts = [int(np.floor(cell * side / grid)) for cell in range(grid)]
    ends = [int(np.ceil((cell + 1) * side / grid)) for cell in range(grid)]
    cells = [
        [maps[:, starts[y] : ends[y], starts[x] : ends[x]].mean(axis=(1, 2)) for x in range(grid)] for y in range(grid)
    ]
    return np.array(cells).transpose(2, 0, 1)


@pytest.mark.parametrize("side", [64, 150])
def test_pooled_maps_of_every_stage_are_concatenated(side: int) -> None:
    units = build_units()
    pooling = randomize(MultiStagePool(units))
    maps, expected = images(1, side), []
    with torch.no_grad():
        found = pooling(images(1, side))
        for name, unit in units.items():
            maps = unit(maps)
            if name in GRIDS:
                expected.append(pool_naively(maps[0].double().numpy(), GRIDS[name]).ravel())
    assert found.shape == (1, 8704)
    np.testing.assert_allclose(found[0].numpy(), np.concatenate(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shared", ["", "all"])
def test_every_trained_parameter_has_a_gradient(shared: str) -> None:
    """DDP waits for the gradient of each trained parameter."""
    model = DualBranch(dlib_config(shared), 7, image_size=64)
    torch.stack([part.sum() for part in model(images(2, 64))]).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    model.freeze_extractor()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("extractor.")}
    if shared:
        own = {name.removeprefix("target.") for name in trained if name.startswith("target.")}
        assert {name for name in own if name.startswith("stages.")} == {
            "stages.norm.weight",
            "stages.norm.bias",
            "stages.linear.weight",
            "stages.linear.bias",
        }


@pytest.mark.parametrize("shared", ["conv128", "all"])
def test_training_uses_no_random_numbers(shared: str) -> None:
    model = DualBranch(dlib_config(shared), 7, image_size=64).train()
    answers = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        answers.append(model(images(2, 64)).target_logits)
    assert torch.equal(*answers)


@pytest.mark.parametrize("shared", ["", "all"])
def test_features_in_bf16_are_close(shared: str) -> None:
    model = randomize(DualBranch(dlib_config(shared), 7, image_size=64))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model(images(2, 64)).target_logits
    assert low.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(low, model(images(2, 64)).target_logits, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("shared", "side", "message"),
    [
        ("", 54, r"^data\.image_size is 54, too small for model\.backbone dlib_resnet29; use at least 55"),
        ("all", 32, r"^data\.image_size is 32, too small"),
        ("conv256_out", 64, r"end with conv32, conv64, conv128, conv256, all \(default: conv32\)"),
        ("conv65", 64, r"model\.shared_until is 'conv65'; did you mean conv64\?"),
    ],
)
def test_invalid_configuration_is_one_line(shared: str, side: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        DualBranch(dlib_config(shared), 7, image_size=side)
    assert "\n" not in str(caught.value)


def test_misspelled_name_gets_a_hint() -> None:
    with pytest.raises(UserError, match=r"model\.backbone is 'dlib_resnet'; .*did you mean dlib_resnet29\?"):
        build_config([ConfigLayer("test", {"model.backbone": "dlib_resnet"})])


def test_imagenet_weights_are_refused() -> None:
    config = dlib_config(pretrained="imagenet")
    with pytest.raises(UserError, match=r"only face recognition weights; .*python -m adadf_dist\.weights dlib"):
        load_pretrained(DualBranch(config, 7, image_size=64), config)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the backbone with random weights."""
    path = tmp_path_factory.mktemp("weights") / "trunk.pt"
    torch.manual_seed(3)
    torch.save(randomize(sequential(build_units())).state_dict(), path)
    return path


def test_head_of_a_shared_network_keeps_its_random_weights(weights: Path) -> None:
    config = dlib_config("all", weights)
    model = DualBranch(config, 7, image_size=64)
    before = {name: value.clone() for name, value in model.target.stages.state_dict().items()}
    loaded = load_pretrained(model, config)
    expected = torch.load(weights)
    assert loaded.matched == len(expected)
    assert model.extractor_frozen
    found = model.extractor.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert model.auxiliary is not None
    for branch in (model.target, model.auxiliary):
        assert all(torch.equal(value, before[name]) for name, value in branch.stages.state_dict().items())


def test_head_in_a_file_is_loaded(weights: Path, tmp_path: Path) -> None:
    head = DualBranch(dlib_config("all"), 7, image_size=64).target.stages.state_dict()
    head = {name: torch.full_like(value, 0.5) for name, value in head.items()}
    torch.save({**torch.load(weights), **head}, tmp_path / "all.pt")
    config = dlib_config("all", tmp_path / "all.pt")
    model = DualBranch(config, 7, image_size=64)
    load_pretrained(model, config)
    assert all(bool((value == 0.5).all()) for value in model.target.stages.state_dict().values())


@pytest.mark.parametrize(
    ("shared", "lost", "added", "message"),
    [
        ("all", "conv64.1.affine1.bias", "", r"is missing conv64\.1\.affine1\.bias; is it a dlib_resnet29"),
        ("", "conv256_out.0.conv2.weight", "", r"is missing conv256_out\.0\.conv2\.weight"),
        ("all", "", "linear.weight", r"is missing linear\.bias, norm\.bias, norm\.weight"),
        ("conv64", "", "linear.weight", r"has unknown linear\.weight"),
    ],
)
def test_only_a_missing_head_is_accepted(
    shared: str, lost: str, added: str, message: str, weights: Path, tmp_path: Path
) -> None:
    tensors = {name: value for name, value in torch.load(weights).items() if name != lost}
    torch.save(tensors | ({added: torch.zeros(512, 8704)} if added else {}), tmp_path / "w.pt")
    config = dlib_config(shared, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        load_pretrained(DualBranch(config, 7, image_size=64), config)


def small_run(faces: Path, out: Path, **changed: str) -> dict[str, str]:
    return settings(faces, out, model__backbone=NAME, data__image_size="64", epochs="1", **changed)


def test_run_from_random_weights(faces: Path, tmp_path: Path) -> None:
    train_here(small_run(faces, tmp_path / "run"))
    (epoch,) = records(tmp_path / "run", "epoch")
    assert np.isfinite(float(str(epoch["total"])))


def test_run_with_a_frozen_shared_network(weights: Path, faces: Path, tmp_path: Path) -> None:
    train_here(small_run(faces, tmp_path / "run", model__shared_until="all", model__pretrained=str(weights)))
    after, before = final_weights(tmp_path / "run"), torch.load(weights)
    assert all(torch.equal(after[f"extractor.{name}"], value) for name, value in before.items())
    heads = [after[f"{branch}.stages.linear.weight"] for branch in ("target", "auxiliary")]
    assert not torch.equal(*heads)


@pytest.mark.parametrize(("shared", "side"), [("", 64), ("all", 70)])
def test_target_branch_is_one_graph(shared: str, side: int) -> None:
    """torch.export traces it for any batch size, for maps with and without an odd side."""
    model = DualBranch(dlib_config(shared), 7, image_size=side)
    branch = TargetNetwork(model)
    dynamic = {"images": {0: torch.export.Dim("n")}}
    program = torch.export.export(branch, (images(2, side),), dynamic_shapes=dynamic)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(3, side)), model.predict(images(3, side)))


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["", "all"])
def test_network_exports_to_every_format(shared: str, tmp_path: Path) -> None:
    config = small_config({"model.backbone": NAME, "model.shared_until": shared, "data.image_size": 64})
    model = random_network(config, 3)
    randomize(model)
    save_checkpoint(tmp_path / "drawn.pt", config, model, ("a", "b", "c"))
    files = {kind: tmp_path / f"model.{kind}" for kind in ("onnx", "safetensors", "pt2")}
    words = ["--onnx", files["onnx"], "--safetensors", files["safetensors"], "--torch-export", files["pt2"]]
    export([str(tmp_path / "drawn.pt"), *map(str, words)])
    faces = images(3, 64, 9)
    with torch.no_grad():
        expected = load_trained_model(tmp_path / "drawn.pt").model(faces).target_logits
    assert expected.std(dim=0).max() > 1e-3
    session = onnxruntime.InferenceSession(files["onnx"])
    found = torch.from_numpy(session.run(None, {"images": faces.numpy()})[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for kind in ("safetensors", "pt2"):
        torch.testing.assert_close(load_model(files[kind], "cpu").logits(faces), expected, atol=1e-5, rtol=1e-4)
