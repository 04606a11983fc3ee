"""`--dry-run` of train and check: print the resolved plan and a cost estimate from one synthetic step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from adadf_dist.check.dataset import DatasetInfo, inspect_dataset, with_largest_batch
from adadf_dist.check.results import describe_error
from adadf_dist.check.run_dir import describe_run_dir
from adadf_dist.check.throughput import describe_speed, estimate_duration, measure_trainer
from adadf_dist.config.keys import flatten
from adadf_dist.config.load import base_config, parse_cli, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.console.formats import format_gb, format_mib, plural
from adadf_dist.data.sampling import check_batch_size
from adadf_dist.diagnostics.run_length import find_problems
from adadf_dist.distributed.world import World, init_world
from adadf_dist.errors import UserError
from adadf_dist.training.consistency import check_consistency
from adadf_dist.training.out_of_memory import report_out_of_memory
from adadf_dist.training.setup import resolve_auto
from adadf_dist.training.synthetic_step import SyntheticTrainer


def dry_run(argv: Sequence[str]) -> None:
    """Print on rank 0 what a run with this command line would do. Raises `UserError` if the run would."""
    config = parse_cli(argv)
    origin, base = base_config(argv)
    with init_world(config.runtime.timeout_s, finish_steps=False) as world:
        check_consistency(config, world)
        check_batch_size(config.batch_size, world.size)
        resolved = resolve_auto(config, world)
        print_row(world, "dry run: nothing will be trained or written", "")
        for name, text in (("settings", origin), *config_diff(resolved, base, origin)):
            print_row(world, name, text)
        dataset, line = inspect_dataset(resolved, world)
        if dataset is None:
            raise UserError(line.message, line.hint)
        for name, text in (*describe_dataset(resolved, dataset, line.message), *describe_folder(resolved)):
            print_row(world, name, text)
        with report_out_of_memory(resolved, world):
            for name, text in measure_step(resolved, dataset, world):
                print_row(world, name, text)


def print_row(world: World, name: str, text: str) -> None:
    if world.is_main:
        print(f"{name:<14} {text}".rstrip(), flush=True)


def config_diff(config: Config, base: Config, origin: str) -> Iterator[tuple[str, str]]:
    """Yield a row for each key whose value differs from `base`; `origin` names `base` in the output."""
    base_values = dict(flatten(to_dict(base)))
    for key, value in flatten(to_dict(config)):
        if value != base_values[key] and key != "out":
            yield "", f"{key} = {value} ({origin}: {base_values[key]})"


def describe_dataset(config: Config, dataset: DatasetInfo, found: str) -> Iterator[tuple[str, str]]:
    yield "dataset", found
    test = "unknown until downloaded" if dataset.test is None else f"{dataset.test:,}"
    yield "splits", f"train {dataset.train:,}, validation {dataset.validation:,}, test {test}"
    steps, trained = len(dataset.batches), sum(dataset.batches)
    text = f"{steps:,} per epoch ({trained:,} samples, sampler {config.data.sampler}), {steps * config.epochs:,} in "
    yield "steps", text + f"{config.epochs} epochs"
    for problem in find_problems(config, steps):
        yield "warning", problem.line


def describe_folder(config: Config) -> Iterator[tuple[str, str]]:
    try:
        state = describe_run_dir(config, Path(config.out))
    except (ValueError, OSError) as error:
        state = f"would be refused: {describe_error(error)}"
    if config.resume not in ("auto", "never"):
        state = f"{state}; starts from {config.resume}"
    yield "run folder", f"{config.out}: {state}"


def measure_step(config: Config, dataset: DatasetInfo, world: World) -> Iterator[tuple[str, str]]:
    """Yield rows on parameters, memory and time of a step on random images. Collective: every rank must call this."""
    config = with_largest_batch(config, dataset, world)
    trainer = SyntheticTrainer(config, dataset.classes, world)
    parameters = list(trainer.engine.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trained
    weights = trainer.engine.weights.describe()
    yield "model", f"{config.model.backbone} from {weights}: {trained:,} parameters are trained, {frozen:,} are frozen"
    activations = activation_bytes(trainer)
    size = parameters[0].element_size()
    average = (trained + frozen) * bool(config.optimizer.ema_decay)
    counted = f"weights {format_mib((trained + frozen + average) * size)}, "
    counted += f"gradients {format_mib(trained * size)}, Adam's moments "
    rows = len(trainer.images)
    yield "memory", f"calculated: {counted}{format_mib(2 * trained * size)} per process"
    yield "", f"measured: {format_mib(activations)} of activations per step ({rows} images per rank)"
    measured = measure_trainer(trainer)
    owner = "the process" if world.device.type == "cpu" else "the GPU"
    yield "", f"measured: {format_mib(measured.peak)} total peak memory of {owner} during a step"
    if number := min(config.model.cached_augmentations, config.epochs):
        samples = number * dataset.train + dataset.validation + (dataset.test or 0)
        text = f"{format_gb(samples * trainer.images[0].nbytes)} in {config.data.cache_dir} on each node for the "
        yield "maps", text + f"extractor's outputs, with {plural(number, 'augmentation')} of each training sample"
    where = f"{plural(world.size, 'rank')} on {world.device.type}, {config.runtime.precision}"
    yield "step", f"measured: {describe_speed(config, measured.step_s)} on {where}"
    for line in estimate_duration(config, dataset, measured, 0.0):
        yield "time", line.message


def activation_bytes(trainer: SyntheticTrainer) -> int:
    """Return the bytes that autograd stores between the forward and backward passes of a step, excluding weights."""
    own = {p.untyped_storage().data_ptr() for p in trainer.engine.model.parameters()}
    stored: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.step()
    return sum(stored.values())
