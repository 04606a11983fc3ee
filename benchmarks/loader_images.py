"""Write an image that shows the output of both loaders for the same samples side by side."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.data.datamodule import open_data
from adadf_dist.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.distributed.world import pick_device
from adadf_dist.files.outputs import atomic_file

AMPLIFIED = 32
"""Factor that amplifies differences for display; a difference of 8 gray levels is white."""
STORED_SIZE, COLUMNS, GAP = 100, 4, 4


def add_options(pictures: argparse.ArgumentParser) -> None:
    pictures.add_argument("--shards", type=Path, help="dataset directory (default: synthetic faces, 100x100)")
    pictures.add_argument("--num-samples", type=int, default=32, help="number of samples (default: %(default)s)")
    pictures.add_argument("--image-size", type=int, default=128, help="side in pixels (default: %(default)s)")
    pictures.add_argument("--out", type=Path, default=Path("loaders.png"), help="output file (default: %(default)s)")
    pictures.set_defaults(run=write_loader_images)


def write_loader_images(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        shards = options.shards
        if shards is None:
            shards = Path(name) / "faces"
            build_synthetic_dataset(
                shards, {"train": options.num_samples, "validation": 8, "test": 8}, size=STORED_SIZE
            )
        torch_made, dali_made = (first_batch(shards, loader, options) for loader in ("torch", "dali"))
    difference = np.abs(torch_made.astype(int) - dali_made.astype(int))
    largest = np.clip(AMPLIFIED * difference, 0, 255).astype(np.uint8)
    triples = [np.concatenate(triple, axis=1) for triple in zip(torch_made, dali_made, largest, strict=True)]
    with atomic_file(options.out) as partial:
        Image.fromarray(tile(triples)).save(partial)
    print(
        f"{options.out}: torch | dali | difference x {AMPLIFIED}, {len(triples)} samples at {options.image_size} pixels"
    )
    print(f"mean difference {difference.mean():.4f} levels, {(difference <= 4).mean():.4%} of the values within 4")


def first_batch(shards: Path, loader: str, options: argparse.Namespace) -> NDArray[np.uint8]:
    """Return the first batch of an epoch, with full augmentation, as 8-bit pixels [n, H, W, 3]."""
    values = {"data.shards": str(shards), "data.loader": loader, "data.image_size": options.image_size}
    config = build_config([ConfigLayer("loader-images", {**values, "batch_size": options.num_samples})])
    with open_data(config, 0, 1, pick_device()) as data:
        images = next(iter(data.train_batches(0))).images.cpu()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (images * std + mean).mul(255).round().clamp(0, 255).byte()
    return pixels.permute(0, 2, 3, 1).numpy()


def tile(tiles: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Arrange tiles [H, W, 3] in rows on one page, separated by white gaps."""
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // COLUMNS)
    page = np.full((rows * (height + GAP) - GAP, COLUMNS * (width + 3 * GAP) - 3 * GAP, 3), 255, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // COLUMNS * (height + GAP), number % COLUMNS * (width + 3 * GAP)
        page[top : top + height, left : left + width] = tile
    return page
