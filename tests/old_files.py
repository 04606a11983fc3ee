"""Files written by version 0.1.0, kept as they were: `tests/data/v0`.

`faces` is a dataset of the synthetic source, `ddp` and `deepspeed` are runs of two epochs on it, `study` is a search of
one configuration beside the default. Checkpoints are left out, but for the layout of one: names, shapes and plain
values, from which `write_checkpoint` makes one whose weights are all alike.

python -m shards.build synthetic --train 14 --validation 7 --test 7 --image-size 32 --out faces
python -m adadf_dist.train --preset demo --data.shards faces --data.embedded_faces [] --data.image_size 32 \
    --data.workers 0 --data.loader torch --batch_size 7 --epochs 2 --loss.epoch_threshold 1 --evaluation.report false \
    --runtime.tensorboard false --runtime.log_every 1 --runtime.history_faces 2 --engine ENGINE --out ENGINE
python -m tune.search (the same keys) --local --num-trials 1 --num-seeds 2 --finalists 1 --scheduler none --out study
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

FOLDER = Path(__file__).with_name("data") / "v0"


def fill(layout: Any) -> Any:
    """Content of a checkpoint: tensors of the given shapes, all 0.01, where their values are not given."""
    if isinstance(layout, list):
        return [fill(value) for value in layout]
    if not isinstance(layout, dict):
        return layout
    if "tensor" not in layout:
        return {key: fill(value) for key, value in layout.items()}
    dtype = getattr(torch, layout["tensor"])
    if "values" in layout:
        return torch.tensor(layout["values"], dtype=dtype)
    return torch.full(layout["shape"], 0.01 if dtype.is_floating_point else 0, dtype=dtype)


def write_checkpoint(run: Path) -> Path:
    """The last checkpoint of a copy of an old run, in the layout of its version."""
    content = fill(json.loads((FOLDER / "checkpoint_layout.json").read_text()))
    content["config"] = yaml.safe_load((run / "config.yaml").read_text())
    content["rng"] = torch.get_rng_state()
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    content["progress"]["epochs"] = [record for record in lines if record["kind"] == "epoch"]
    path = run / "checkpoints" / "checkpoint-0002-000000.pt"
    path.parent.mkdir()
    torch.save(content, path)
    return path
