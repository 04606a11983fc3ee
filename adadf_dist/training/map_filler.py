"""Compute the outputs ("maps") of a frozen extractor for all samples of a split, once per node.

The ranks of a node share the work: each decodes its slice of every batch, as in training, and writes its rows of one
file. All ranks of a run fill the same store at the same time; if another run is filling it, they wait.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from adadf_dist.console.logs import get_logger
from adadf_dist.data.batch import Batch
from adadf_dist.data.loaders.map_loader import EVALUATION, Variant
from adadf_dist.data.map_store import MapStore
from adadf_dist.data.remote.cache import SETTING, lock_path
from adadf_dist.data.sampling import Samples, rank_slice, split_batches
from adadf_dist.distributed.world import World
from adadf_dist.engine.ddp import Engine
from adadf_dist.files.locks import exclusive_lock
from adadf_dist.training.setup import RunContext

logger = get_logger(__name__)

ROUND_BATCHES = 16
"""Number of global batches between checks for a stop request; ranks synchronize at each check."""
POLL_S = 0.5
"""Interval in seconds at which all ranks check whether another run has finished with a store."""


class NodeRank(NamedTuple):
    """A rank among the ranks of its node."""

    number: int
    ranks: int
    """Number of ranks on the node."""
    host: str
    """Name of the node; empty if the run has only one."""

    @property
    def is_first(self) -> bool:
        return self.number == 0


class StopRequestedError(Exception):
    """The run was asked to stop while it computed maps. Complete stores are kept."""


def find_node_rank(world: World) -> NodeRank:
    """Return this rank's place on its node. Collective: every rank must call this."""
    hosts = world.all_gather_object(socket.gethostname())
    host = hosts[world.rank]
    return NodeRank(hosts[: world.rank].count(host), hosts.count(host), host if len(set(hosts)) > 1 else "")


@dataclass(frozen=True)
class MapFiller:
    """Fills stores with the outputs of an engine's extractor. Every method is a collective."""

    context: RunContext
    engine: Engine
    node: NodeRank

    def fill(self, variant: Variant, store: MapStore) -> None:
        """Compute the maps of a store that is incomplete on any node. Raises `StopRequestedError`."""
        world, is_first = self.context.world, self.node.is_first
        with self._lock(store):
            if not any(world.all_gather_object(is_first and not store.is_complete())):
                return
            if is_first:
                store.create()
            world.barrier()
            found = world.all_gather_object(self._compute(variant, store))
            if is_first:
                store.finish({row: substitute for replaced in found for row, substitute in replaced.items()})
            world.barrier()

    @contextmanager
    def _lock(self, store: MapStore) -> Iterator[None]:
        """Hold a store's lock on every node; if another run has it, wait. Raises `StopRequestedError`."""
        world, path, waited = self.context.world, lock_path(store.entry, "fill"), False
        while True:
            with ExitStack() as attempt:
                acquired = not self.node.is_first or attempt.enter_context(exclusive_lock(path, SETTING))
                if all(world.all_gather_object(acquired)):
                    yield
                    return
            if not waited:
                logger.info(f"maps: waiting for another run to finish computing {store.entry}")
            waited = True
            world.heartbeat.beat("waiting for another run to compute maps")
            if world.should_stop():
                raise StopRequestedError
            time.sleep(POLL_S)

    def _compute(self, variant: Variant, store: MapStore) -> dict[int, int]:
        """Write this rank's rows of a store. Return its samples that failed to decode, with their replacements."""
        split, number = variant
        doing = f"computing maps of {split}"
        if number != EVALUATION:
            doing += f", augmentation {number + 1} of {self.context.config.model.cached_augmentations}"
        plan = split_batches(np.arange(store.samples), self.context.config.batch_size)
        replaced: dict[int, int] = {}
        with store.writer() as write:
            for samples, batch in self.context.world.heartbeat.wrap(self._own_batches(variant, plan), doing, len(plan)):
                write(int(samples[0]), self.engine.extract(batch.images))
                stored = zip(samples.tolist(), batch.sample_ids.tolist(), strict=True)
                replaced |= {row: substitute for row, substitute in stored if row != substitute}
        return replaced

    def _own_batches(self, variant: Variant, plan: Sequence[Samples]) -> Iterator[tuple[Samples, Batch]]:
        """Yield this rank's share of the batches in `plan`: the samples of each, and their images."""
        (split, number), world, node = variant, self.context.world, self.node
        for start in range(0, len(plan), ROUND_BATCHES):
            slices = [
                batch[slice(*rank_slice(len(batch), node.number, node.ranks))] for batch in plan[start:][:ROUND_BATCHES]
            ]
            own = [samples for samples in slices if len(samples)]
            # a loader takes its rank's slice of each batch: of n copies, that is one copy
            copies = [np.tile(samples, world.size) for samples in own]
            yield from zip(own, self.context.data.loader.batches(split, copies, number), strict=True)
            if world.should_stop():
                raise StopRequestedError
