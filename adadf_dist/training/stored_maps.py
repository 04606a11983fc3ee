"""Train on stored outputs ("maps") of a frozen extractor (`model.cached_augmentations`); compute missing ones first.

Each node has its own maps. What they depend on is part of a cache entry's name, so other weights or another
augmentation are another entry.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

import adadf_dist
from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.config.schema import Config
from adadf_dist.console.formats import format_gb
from adadf_dist.console.logs import get_logger
from adadf_dist.data.dataset import Split
from adadf_dist.data.loaders.map_loader import EVALUATION, MapLoader, Variant
from adadf_dist.data.map_store import MapStore
from adadf_dist.data.remote.cache import GB, SETTING, SpaceRequest, cache_folder, evict_to_fit, lock_path
from adadf_dist.engine.ddp import Engine
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import os_errors_as_user_errors
from adadf_dist.files.locks import shared_lock
from adadf_dist.training.consistency import package_version, source_hash
from adadf_dist.training.map_filler import MapFiller, NodeRank, StopRequestedError, find_node_rank
from adadf_dist.training.setup import RunContext

logger = get_logger(__name__)

FORMAT_VERSION = 1
"""To be raised when the content of a store changes."""
METHOD = "adadf_dist.method"
"""Package of our own layers."""
LIBRARIES = ("torch", "torchvision", "timm", "nvidia-dali-cuda120")
"""Packages whose versions can change an image or an extractor's output."""


@contextmanager
def use_stored_maps(context: RunContext, engine: Engine, progress: TrainingProgress) -> Iterator[RunContext | None]:
    """Yield a context whose loader yields maps instead of images, and let the engine expect them.

    Yields `context` itself unless `model.cached_augmentations` is set and epochs remain, and None if the run was asked
    to stop. Collective: every rank must call this. Raises `UserError`, for example without enough disk space.
    """
    config, data = context.config, context.data
    if not config.model.cached_augmentations or progress.epoch >= config.epochs:
        yield context
        return
    with ExitStack() as held:
        node = find_node_rank(context.world)
        stores = plan_stores(context, engine, progress.epoch, node)
        reserve_space(context, list(stores.values()), node, held)
        filler = MapFiller(context, engine, node)
        try:
            for variant, store in stores.items():
                filler.fill(variant, store)
        except StopRequestedError:
            ready = None
        else:
            engine.skip_extractor()
            loader = MapLoader(data.loader, stores, config.model.cached_augmentations)
            ready = replace(context, data=replace(data, loader=loader))
        yield ready


def plan_stores(context: RunContext, engine: Engine, first_epoch: int, node: NodeRank) -> dict[Variant, MapStore]:
    """Return the stores that the rest of the run uses, complete or not."""
    config, data = context.config, context.data
    period, size = config.model.cached_augmentations, config.data.image_size
    used = sorted({epoch % period for epoch in range(first_epoch, config.epochs)})
    variants: list[tuple[Split, int]] = [(data.train_split, number) for number in used]
    variants.append((data.validation_split, EVALUATION))
    if data.test_split is not None and (config.evaluation.run_test or config.evaluation.protocol == "paper"):
        variants.append((data.test_split, EVALUATION))
    example = engine.extract(torch.zeros(1, 3, size, size, device=context.world.device))[0]
    assert engine.model.extractor_frozen  # `validate` refuses other configurations
    common = {
        **describe_extraction(context),
        "extractor": digest_network(engine.eval_model.extractor),
        "node": node.host,
    }
    entries = cache_folder(config.data) / "entries"
    stores = {}
    for split, number in variants:
        origin = {**common, **describe_samples(config, split, number)}
        name = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:16]
        store = MapStore(entries / f"maps-{name}", len(split), tuple(example.shape), example.dtype, origin)
        stores[split.name, number] = store
    return stores


def describe_extraction(context: RunContext) -> dict[str, object]:
    """Return what the maps of all samples depend on, except the extractor's weights."""
    config, data = context.config, context.data
    package = Path(adadf_dist.__file__).parent / "data"
    preprocessing = data.preprocessing.to_dict()
    del preprocessing["classes"]
    return {
        "format": FORMAT_VERSION,
        "versions": {name: package_version(name) for name in LIBRARIES},
        "code": [source_hash(package / name) for name in ("augment", "loaders")],
        "device": context.world.device.type,
        "precision": config.runtime.precision,
        "preprocessing": preprocessing,
        "backbone": [config.model.backbone, config.model.shared_until],
        "dataset": dict(data.source.digests),
    }


def describe_samples(config: Config, split: Split, number: int) -> dict[str, object]:
    """Return what the maps of a split under augmentation `number` depend on in addition."""
    samples = {"split": split.name, "samples": split.digest(), "augmentation": number}
    if number == EVALUATION:
        return samples
    return {**samples, "augment": asdict(config.augment), "seed": config.seed}


def digest_network(extractor: nn.Module) -> str:
    """Return the SHA-256 of a network's layers, parameters and buffers.

    The types of layers are left out, because BatchNorm's depends on the number of ranks; the code of our own is not.
    """
    digest = hashlib.sha256()
    for name, module in extractor.named_modules():
        digest.update(f"{name} {module.extra_repr()}\n".encode())
    own = {inspect.getfile(type(m)) for m in extractor.modules() if type(m).__module__.startswith(METHOD)}
    for path in sorted(own):
        digest.update(Path(path).read_bytes())
    for name, value in extractor.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def reserve_space(context: RunContext, stores: Sequence[MapStore], node: NodeRank, held: ExitStack) -> None:
    """Protect the entries from eviction until `held` closes, and reserve space for the missing ones.

    Collective: every rank must call this. Raises `UserError` on all ranks if a node lacks space.
    """
    problem = ""
    if node.is_first:
        try:
            lock_and_reserve(stores, context.config, held)
        except UserError as error:
            problem = str(error)
    if text := next(filter(None, context.world.all_gather_object(problem)), ""):
        raise UserError(text)


def lock_and_reserve(stores: Sequence[MapStore], config: Config, held: ExitStack) -> None:
    """Do the work of `reserve_space` on a node's first rank."""
    for store in stores:
        held.enter_context(shared_lock(lock_path(store.entry, "use"), SETTING))
        with os_errors_as_user_errors(store.entry):
            store.entry.mkdir(parents=True, exist_ok=True)
            os.utime(store.entry)  # time of last use, for eviction
    missing = [store for store in stores if not store.is_complete()]
    total, needed = (sum(store.nbytes for store in some) for some in (stores, missing))
    folder, number = stores[0].entry.parent, config.model.cached_augmentations
    if not missing:
        logger.info(
            f"maps: reusing {len(stores)} of {len(stores)} sets of frozen extractor outputs ({format_gb(total)}) in "
            f"{folder}"
        )
        return
    limit = config.data.cache_size_gb
    if limit and total > limit * GB:
        raise UserError(
            f"data.cache_size_gb is {limit:g}, but model.cached_augmentations = {number} needs {total / GB:.3g} GB; "
            "raise the limit, or lower model.cached_augmentations"
        )
    owner = f"model.cached_augmentations = {number}"
    for store in missing:
        space = SpaceRequest(owner, store.nbytes, needed, "lower model.cached_augmentations")
        evict_to_fit(store.entry, space, config.data)
    found = f", reusing {len(stores) - len(missing)}" if len(missing) < len(stores) else ""
    logger.info(
        f"maps: computing {len(missing)} of {len(stores)} sets of frozen extractor outputs ({format_gb(needed)})"
        f"{found} in {folder}"
    )
