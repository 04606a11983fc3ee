"""Convert the face recognition weights of the npm package to `model.backbone dlib_resnet29`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from adadf_dist.config.backbone_names import DLIB_RESNET
from adadf_dist.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import atomic_file
from adadf_dist.method.backbones import sequential
from adadf_dist.method.dlib_resnet import build_units
from adadf_dist.method.pretrained import first_few
from adadf_dist.weights.face_api import HOW_TO_GET, FaceApiPackage, read_tensors

Arrays = Mapping[str, NDArray[np.float64]]

DLIB_MEAN = (122.782, 117.001, 104.298)
DLIB_DIVISOR = 256.0
"""dlib's network expects (pixel - mean) / divisor, for RGB pixels from 0 to 255."""
STEM = "conv32_down"
DESCRIPTOR = "fc"
"""Last layer, from 256 average-pooled features to the 128 values that dlib compares between faces. It is kept in the
file as `fc.weight`, though training ignores it."""
DESCRIPTOR_SHAPE = (256, 128)
LICENSE = (
    "weights: public domain (dnn_face_recognition_resnet_model_v1, according to the README of dlib-models); the npm "
    "package that contains them: MIT"
)


def convert_package(package: FaceApiPackage) -> dict[str, Tensor]:
    """Return the tensors of `dlib_resnet29`, for images normalized like all images here. Raises `UserError`."""
    arrays = read_tensors(package)
    check_tensors(arrays, package.path)
    renamed = {own: to_torch_layout(arrays[theirs]) for own, theirs in package_names().items()}
    renamed |= fold_normalization(renamed["stem.conv.weight"], renamed["stem.conv.bias"])
    renamed["fc.weight"] = arrays[DESCRIPTOR].T
    return {name: torch.from_numpy(np.ascontiguousarray(array, np.float32)) for name, array in renamed.items()}


def own_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of the backbone."""
    with torch.device("meta"):
        network = sequential(build_units())
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def package_names() -> dict[str, str]:
    """Return the package's tensor name for each parameter of the backbone.

    The package counts blocks from 1, without those that halve the resolution: `conv64.0.conv2.weight` is
    `conv64_down/conv2/conv/filters`, and `conv64.1.affine1.bias` is `conv64_1/conv1/scale/biases`.
    """
    leaves = {
        ("conv", "weight"): "conv/filters",
        ("conv", "bias"): "conv/bias",
        ("affine", "weight"): "scale/weights",
        ("affine", "bias"): "scale/biases",
    }
    names = {}
    for own in own_shapes():
        *block, layer, kind = own.split(".")
        leaf = leaves[layer.rstrip("12"), kind]
        if block == ["stem"]:
            names[own] = f"{STEM}/{leaf}"
        else:
            names[own] = f"{block_name(block[0], int(block[1]))}/conv{layer[-1]}/{leaf}"
    return names


def block_name(stage: str, index: int) -> str:
    """Return the package's name of a block."""
    if stage == "conv32":
        return f"{stage}_{index + 1}"
    if stage == "conv256_out":
        return "conv256_down_out"
    return f"{stage}_{index}" if index else f"{stage}_down"


def check_tensors(arrays: Arrays, path: Path) -> None:
    """Raise `UserError` unless the package has exactly the expected tensors, with the expected shapes."""
    shapes = own_shapes()
    expected = {theirs: to_package_shape(shapes[own]) for own, theirs in package_names().items()}
    expected[DESCRIPTOR] = DESCRIPTOR_SHAPE
    for problem, names in (
        ("lacks", sorted(expected.keys() - arrays.keys())),
        ("has unexpected", sorted(arrays.keys() - expected.keys())),
        (
            "has a different shape for",
            sorted(name for name in expected.keys() & arrays.keys() if arrays[name].shape != expected[name]),
        ),
    ):
        if names:
            raise UserError(f"--from {path}: the face recognition model {problem} {first_few(names)}", HOW_TO_GET)


def to_package_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return TensorFlow's shape of a parameter: filters are [height, width, inputs, outputs]."""
    return shape if len(shape) == 1 else (shape[2], shape[3], shape[1], shape[0])


def to_torch_layout(array: NDArray[np.float64]) -> NDArray[np.float64]:
    return array if array.ndim == 1 else array.transpose(3, 2, 0, 1)


def fold_normalization(weight: NDArray[np.float64], bias: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return the first convolution for images x normalized by ImageNet's mean and std, instead of dlib's input.

    dlib's input is a * x + b per channel, with a = 255 std / 256 and b = (255 mean - dlib's mean) / 256. The
    convolution is not padded, so the change is exact: weights times a, and a bias plus the sum of weights times b.
    """
    factor = 255 * np.array(IMAGENET_STD) / DLIB_DIVISOR
    offset = (255 * np.array(IMAGENET_MEAN) - np.array(DLIB_MEAN)) / DLIB_DIVISOR
    shift = np.einsum("oihw,i->o", weight, offset)
    return {"stem.conv.weight": weight * factor[:, None, None], "stem.conv.bias": bias + shift}


def write_weights(path: Path, tensors: Mapping[str, Tensor], package: FaceApiPackage) -> None:
    """Write a safetensors file atomically. Its metadata say where the weights come from and what they expect."""
    metadata = {
        "format": "pt",
        "architecture": DLIB_RESNET,
        "input": "RGB images [n, 3, H, W] in [0, 1], minus `mean`, divided by `std`; trained on 150x150",
        "mean": json.dumps(IMAGENET_MEAN),
        "std": json.dumps(IMAGENET_STD),
        "source": f"npm package {package.name}",
        "source_sha256": package.sha256 or "unknown: converted from a folder",
        "weights_sha256": hashlib.sha256(package.weights).hexdigest(),
        "license": LICENSE,
    }
    with atomic_file(path) as partial:
        partial.write_bytes(save(dict(tensors), metadata))  # save_file makes it readable only for its owner
