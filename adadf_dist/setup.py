"""Before the first step: what `auto` means here, demo faces where they are wanted, and the facts of a run."""

from __future__ import annotations

from pathlib import Path

from adadf_dist.config import Config
from adadf_dist.data.embedded import build_embedded
from adadf_dist.data.open import Data
from adadf_dist.errors import UserError
from adadf_dist.runtime.engine import Engine, resolve_precision
from adadf_dist.settings import override
from adadf_dist.world import World, check_batch_size


def resolve(config: Config, world: World) -> Config:
    """Replace every `auto` by what it means on this machine, and draw the embedded faces where they are missing.

    A collective: the answer is rank 0's. Raises `UserError` for what no step could be run with.
    """
    check_batch_size(config.batch_size, world)
    if not config.data.shards:
        raise UserError("data.shards is empty: give the folder that `python -m shards.build` wrote")
    draw_missing_faces(config, world)
    settled = {
        "data.loader": "torch" if config.data.loader == "auto" else config.data.loader,
        "runtime.precision": resolve_precision(config, world.device),
    }
    return override(config, world.share(settled))  # type: ignore[arg-type]


def draw_missing_faces(config: Config, world: World) -> None:
    """Rank 0 draws `data.embedded_faces` into `data.shards`; the others wait."""
    folder = Path(config.data.shards)
    if not config.data.embedded_faces or folder.exists():
        return
    if world.is_main:
        train, validation, test = config.data.embedded_faces
        build_embedded(folder, {"train": train, "validation": validation, "test": test}, workers=2)
    world.barrier()


def facts(data: Data, engine: Engine, world: World) -> dict[str, object]:
    """What a reader of the run folder wants to know first."""
    splits = {
        "train": len(data.train_split),
        "validation": len(data.validation_split),
        "test": len(data.test_split) if data.test_split is not None else 0,
    }
    noise = {} if data.noise is None else {"label noise": data.noise.describe()}
    weights = engine.weights._asdict() if engine.weights.source else "none: from scratch"
    return {
        "dataset": data.name,
        "faces": splits,
        "classes": list(data.classes),
        **noise,
        "ranks": f"{world.size} on {world.device.type}",
        "pretrained weights": weights,
    }
