"""Linear probe of face recognition weights: how well expressions can be read from features that were not trained."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from adadf_dist.config.backbone_names import DLIB_RESNET
from adadf_dist.config.schema import ModelConfig
from adadf_dist.data.dataset import Split, check_trainable, open_dataset
from adadf_dist.data.loaders.base import DeviceTransform, decode_image, resize_image
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.distributed.world import pick_device
from adadf_dist.files.outputs import write_output
from adadf_dist.method.dlib_resnet import POOLED
from adadf_dist.method.model import DualBranch
from adadf_dist.method.pretrained import load_pretrained

SPLITS = ("train", "test")
MAX_ITERATIONS = 200


def add_options(probe: argparse.ArgumentParser) -> None:
    probe.add_argument(
        "--weights", type=Path, required=True, metavar="FILE", help="file of `python -m adadf_dist.weights dlib`"
    )
    probe.add_argument("--shards", type=Path, required=True, metavar="DIR", help="dataset folder")
    probe.add_argument("--image-size", type=int, default=150, metavar="N", help="side in pixels (default: %(default)s)")
    probe.add_argument("--batch-size", type=int, default=64, help="images at a time (default: %(default)s)")
    probe.add_argument("--num-samples", type=int, metavar="N", help="first N samples of each split (default: all)")
    probe.add_argument(
        "--l2", type=float, default=0.1, help="weight of half the squared norm of the weights (default: %(default)s)"
    )
    probe.set_defaults(run=bench_face_probe)


def bench_face_probe(options: argparse.Namespace) -> None:
    """Fit a softmax regression to the train split's features and print its test accuracy. Raises `UserError`."""
    dataset = open_dataset(options.shards)
    splits = [first_samples(dataset.split(name), options.num_samples) for name in SPLITS]
    check_trainable(splits[0])
    extractor = load_extractor(options.weights, len(dataset.classes), options.image_size)
    preprocessing = Preprocessing(options.image_size, dataset.classes, "torch")
    train, test = (
        np.concatenate(list(extract(extractor, split, preprocessing, options.batch_size))) for split in splits
    )
    scaler = StandardScaler()
    # scikit-learn sums the cross entropy over the samples, instead of averaging it
    classifier = LogisticRegression(C=1 / (options.l2 * len(train)), max_iter=MAX_ITERATIONS)
    classifier.fit(scaler.fit_transform(train), splits[0].labels)
    accuracy = float(classifier.score(scaler.transform(test), splits[1].labels))
    report = {
        "dataset": dataset.name,
        "features": train.shape[1],
        "l2": options.l2,
        "train_samples": len(train),
        "test_samples": len(test),
        "test_accuracy": accuracy,
    }
    print(
        f"{dataset.name}: softmax regression on {train.shape[1]:,} frozen features of {len(train):,} training faces: "
        f"accuracy {accuracy:.2%} on {len(test):,} test faces"
    )
    if options.json is not None:
        write_output(options.json, report)


def first_samples(split: Split, count: int | None) -> Split:
    return split if count is None else split.subset(np.arange(min(count, len(split))), split.name)


def load_extractor(weights: Path, num_classes: int, image_size: int) -> nn.Module:
    """Return the frozen extractor on the GPU, or on the CPU if there is none. Raises `UserError`."""
    config = ModelConfig(backbone=DLIB_RESNET, shared_until=POOLED, pretrained=str(weights))
    model = DualBranch(config, num_classes, auxiliary=False, image_size=image_size)
    load_pretrained(model, config)
    return model.extractor.eval().to(pick_device())


@torch.inference_mode()
def extract(
    extractor: nn.Module, split: Split, preprocessing: Preprocessing, batch_size: int
) -> Iterator[NDArray[np.float32]]:
    """Yield the features of a split's images without augmentation, [n, F] per batch."""
    device = next(extractor.parameters()).device
    transform = DeviceTransform(preprocessing, device)
    for start in range(0, len(split), batch_size):
        samples = range(start, min(start + batch_size, len(split)))
        pixels = np.stack([resize_image(decode_image(split.read(n)), preprocessing.resized) for n in samples])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
        no_boxes = torch.zeros(len(samples), 4, dtype=torch.int64, device=device)
        yield extractor(transform(images, no_boxes)).cpu().numpy()
