"""What is counted: one training step, evaluation step or augmentation of a chunk, each with the code of a real run.

python -m benchmarks.launches.scenarios    # in the process that `fake_cuda.run_with_stub` starts; prints JSON
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import AugmentConfig, Config, DataConfig
from adadf_dist.data.augment.policy import sample_augmentations
from adadf_dist.data.batch import Batch
from adadf_dist.data.loaders.base import LoaderConfig
from adadf_dist.data.loaders.dali_backends import GpuBackend
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.distributed.world import World
from adadf_dist.engine.ddp import build_engine
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.metrics.evaluator import MetricAccumulator, predict_batch
from adadf_dist.metrics.predictions import both_branches
from adadf_dist.tracking.logger import RunLogger
from adadf_dist.tracking.sample_history import SampleHistoryRecorder
from adadf_dist.train import TrainState, train_epoch
from adadf_dist.training.target_state import build_target_state
from benchmarks.launches.fake_cuda import DEVICE, fake_cuda
from benchmarks.launches.recorder import OpRecorder

CLASSES = 7
SAMPLES = 1000
BATCH = 64
CHUNK = 256
"""Images that the DALI loader augments together."""


class Counts(TypedDict):
    """What one scenario asked of the device."""

    launches: int
    copies_to_device: int
    ops: dict[str, int]
    faults: list[str]


class StubSplit:
    """The parts of a training split that the losses need."""

    classes = ("class",) * CLASSES
    labels = np.arange(SAMPLES) % CLASSES
    votes = np.ones((SAMPLES, CLASSES), dtype=np.float32)

    def __len__(self) -> int:
        return SAMPLES

    def class_counts(self) -> NDArray[np.int64]:
        return np.bincount(self.labels)


class StepLogger(RunLogger):
    """Logger that never copies the losses to the host, as between two flushes."""

    def flush(self, progress: TrainingProgress) -> None:
        self._losses.clear()

    def finish_training_pass(self, progress: TrainingProgress) -> dict[str, float]:
        return {}


def make_config(values: dict[str, object]) -> Config:
    fixed: dict[str, object] = {"runtime.precision": "bf16", "batch_size": BATCH, "runtime.stop_check_steps": 10**6}
    return build_config([ConfigLayer("launches", {**fixed, **values})])


def make_batch(data: DataConfig) -> Batch:
    crops = (10,) if data.ten_crop_resize else ()
    images = torch.empty(BATCH, *crops, 3, data.image_size, data.image_size, device=DEVICE)
    numbers = torch.zeros(BATCH, dtype=torch.int64, device=DEVICE)
    return Batch(images, numbers, numbers, 0, BATCH)


def training_step(recorder: OpRecorder, values: Mapping[str, object]) -> None:
    """Record the second step of an epoch; the first creates the optimizer's state."""
    with tempfile.TemporaryDirectory() as out, ExitStack() as recording:
        config = make_config({"out": out, **values})
        world = World(DEVICE)
        classes = ClassDistributions(CLASSES, config.class_distributions, world)
        history = SampleHistoryRecorder(SAMPLES, CLASSES, world, range(8))
        targets = build_target_state(config, StubSplit(), world)  # type: ignore[arg-type]
        state = TrainState(build_engine(config, CLASSES, world), classes, targets, history, TrainingProgress())

        def batches(epoch: int, first: int) -> Iterator[Batch]:
            batch = make_batch(config.data)
            yield batch
            recording.enter_context(recorder)
            yield batch
            recording.close()

        data = SimpleNamespace(num_batches=lambda epoch: 1000, train_batches=batches)
        context: Any = SimpleNamespace(config=config, world=world, data=data, log=StepLogger(config, world))
        checkpoints: Any = SimpleNamespace(should_save=lambda: False)
        train_epoch(context, state, checkpoints)


def evaluation_step(recorder: OpRecorder, both: bool) -> None:
    """Record a batch of an evaluation with annotator votes, or of the predictions of both branches."""
    config = make_config({})
    world = World(DEVICE)
    engine = build_engine(config, CLASSES, world)
    totals = MetricAccumulator(CLASSES, world)
    votes = torch.zeros(SAMPLES, CLASSES, device=DEVICE)
    batch = make_batch(config.data)
    with recorder:
        if both:
            both_branches(engine.forward_eval(batch.flatten_crops().images), batch)
        else:
            totals.update(predict_batch(engine, batch), batch.labels, votes[batch.sample_ids])


def augmentation(recorder: OpRecorder, policy: str, size: int, ten_crop: int = 0) -> None:
    """Record what the DALI loader does on the device after decoding a chunk; policy `none` is evaluation."""
    preprocessing = Preprocessing(size, ("class",) * CLASSES, "dali", ten_crop=ten_crop)
    augment = AugmentConfig(policy=policy)  # type: ignore[arg-type]
    backend = GpuBackend(LoaderConfig({}, preprocessing, augment, 0, DEVICE, 0, 1, BATCH, 1, 1, 0))
    side = preprocessing.resized
    decoded = torch.empty(CHUNK, 3, side, side, dtype=torch.uint8, device=DEVICE)
    sampled = sample_augmentations(augment, size, 0, -1 if policy == "none" else 0, np.arange(CHUNK))
    with recorder:
        backend.augment(decoded, sampled)


FROZEN = {"model.freeze": "always"}
AVERAGED = {"optimizer.ema_decay": 0.999, "optimizer.max_grad_norm": 1.0}
BASELINE = {"loss.supervision": "one_hot"}
EXTENSIONS = {
    "loss.target_adjustment": 0.7,
    "loss.min_label_prob": 0.5,
    "loss.logit_adjustment": 1.2,
    "loss.label_smoothing": 0.1,
    "optimizer.ema_decay": 0.999,
    "class_distributions.sample_momentum": 0.6,
    "class_distributions.relative_threshold": 0.8,
}
TEN_CROPS = {"data.image_size": 48, "data.ten_crop_resize": 64}

SCENARIOS: dict[str, Callable[[OpRecorder], None]] = {
    "training step": partial(training_step, values={}),
    "training step, frozen extractor": partial(training_step, values=FROZEN),
    "training step, weight average and clipping": partial(training_step, values=AVERAGED),
    "training step, baseline": partial(training_step, values=BASELINE),
    "training step, extensions": partial(training_step, values=EXTENSIONS),
    "training step, ten crops": partial(training_step, values=TEN_CROPS),
    "evaluation step": partial(evaluation_step, both=False),
    "evaluation step, both branches": partial(evaluation_step, both=True),
    "augmentation of a chunk, paper": partial(augmentation, policy="paper", size=100),
    "augmentation of a chunk, torchvision": partial(augmentation, policy="torchvision", size=100),
    "evaluation transform of a chunk, ten crops": partial(augmentation, policy="none", size=48, ten_crop=64),
}


def measure(scenario: Callable[[OpRecorder], None]) -> Counts:
    """Run a scenario on fake CUDA tensors. It ends early at a fault that fake tensors cannot continue after."""
    recorder = OpRecorder()
    with fake_cuda():
        try:
            scenario(recorder)
        except Exception:
            if not recorder.faults:
                raise
    return Counts(
        launches=recorder.launches,
        copies_to_device=recorder.copies_to_device,
        ops=dict(recorder.ops.most_common()),
        faults=recorder.faults,
    )


if __name__ == "__main__":
    print(json.dumps({name: measure(scenario) for name, scenario in SCENARIOS.items()}), flush=True)
    os._exit(0)  # the stub has nothing that torch could release when the interpreter ends
