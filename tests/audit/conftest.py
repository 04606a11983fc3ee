"""A run on noisy labels, and its audit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageColor

from adadf_dist.audit.__main__ import main
from adadf_dist.audit.run_data import AuditInputs, load_audit_inputs
from adadf_dist.data.jpeg import decode
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from tests.helpers.dataset_builds import run_build
from tests.helpers.runs import settings, train_here

CPU = torch.device("cpu")
COLORS = ("red", "lime", "blue", "yellow", "magenta", "cyan", "white")


@pytest.fixture(scope="package")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic faces tinted by class, so that a network learns them in a few steps.

    There is no validation split: the trainer holds samples out for it.
    """
    folder = tmp_path_factory.mktemp("shards")
    split = build_synthetic_dataset(folder / "plain", {"train": 280}, size=32, workers=1).split("train")
    names = ["<script>", *split.classes[1:]]  # which no page may take for a tag
    for place, (key, label) in enumerate(zip(split.keys.tolist(), split.labels.tolist(), strict=True)):
        tint = Image.new("RGB", (32, 32), ImageColor.getrgb(COLORS[label]))
        file = folder / "tinted" / names[label] / f"{key}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.blend(decode(bytes(split.read(place))).convert("RGB"), tint, 0.6).save(file)
    return run_build("folder", folder / "drawn", "--root", folder / "tinted", "--validation-fraction", 0).folder


@pytest.fixture(scope="package")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on labels a fifth of which are wrong."""
    out = tmp_path_factory.mktemp("runs") / "noisy"
    more = {"augment__policy": "none", "augment__erase_prob": "0", "optimizer__attention_lr_mult": "0.02"}
    train_here(settings(dataset, out, epochs="3", data__label_noise_rate="0.2", **more))
    return out


@pytest.fixture(scope="package")
def audit_folder(run: Path) -> Path:
    main([str(run), "--max-images", "60"])
    return run / "audit"


@pytest.fixture(scope="package")
def inputs(run: Path) -> Iterator[AuditInputs]:
    with load_audit_inputs(run, "selected", {}, CPU) as opened:
        yield opened
