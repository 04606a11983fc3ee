"""`train --dry-run`: what a run would be, on one page, from a rehearsed step. It trains nothing and writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from adadf_dist.check.dataset import Faces, find_faces, with_largest_batch
from adadf_dist.check.results import describe_error
from adadf_dist.check.run_dir import what_is_there
from adadf_dist.check.throughput import Measured, peak_memory, project, seconds
from adadf_dist.config.load import command_line_base, config_from_command_line, flatten, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.diagnostics.run_length import find_problems
from adadf_dist.distributed.world import World, check_batch_size, open_world
from adadf_dist.errors import UserError
from adadf_dist.training.consistency import agree
from adadf_dist.training.out_of_memory import memory_told
from adadf_dist.training.setup import settle
from adadf_dist.training.synthetic_step import Rehearsal

MIB = 2**20


def dry_run(argv: Sequence[str]) -> None:
    """Print the plan of a command line on rank 0. Raises `UserError` for what the run itself would refuse."""
    config = config_from_command_line(argv)
    origin, base = command_line_base(argv)
    with open_world(config.runtime.timeout_s, finish_steps=False) as world:
        agree(config, world)
        check_batch_size(config.batch_size, world)
        resolved = settle(config, world)
        say(world, "a dry run: nothing is trained, and nothing written", "")
        for name, text in (("settings", origin), *differences(resolved, base, origin)):
            say(world, name, text)
        faces, line = find_faces(resolved, world)
        if faces is None:
            raise UserError(": ".join(part for part in (line.text, line.mend) if part))
        for name, text in (*describe_faces(resolved, faces, line.text), *describe_folder(resolved)):
            say(world, name, text)
        with memory_told(resolved, world):
            for name, text in rehearse(resolved, faces, world):
                say(world, name, text)


def say(world: World, name: str, text: str) -> None:
    if world.is_main:
        print(f"{name:<14} {text}".rstrip(), flush=True)


def differences(config: Config, base: Config, origin: str) -> Iterator[tuple[str, str]]:
    """Keys whose value is another than in `base`, which is called `origin`."""
    usual = dict(flatten(to_dict(base)))
    for key, value in flatten(to_dict(config)):
        if value != usual[key] and key != "out":
            yield "", f"{key} = {value} ({origin}: {usual[key]})"


def describe_faces(config: Config, faces: Faces, found: str) -> Iterator[tuple[str, str]]:
    yield "dataset", found
    test = "not known before it is fetched" if faces.test is None else f"{faces.test:,}"
    yield "splits", f"train {faces.train:,}, validation {faces.validation:,}, test {test}"
    steps, trained = len(faces.batches), sum(faces.batches)
    text = f"{steps:,} an epoch ({trained:,} faces, sampler {config.data.sampler}), {steps * config.epochs:,} in "
    yield "steps", text + f"{config.epochs} epochs"
    for problem in find_problems(config, steps):
        yield "warning", str(problem)


def describe_folder(config: Config) -> Iterator[tuple[str, str]]:
    try:
        held = what_is_there(config, Path(config.out))
    except (ValueError, OSError) as error:
        held = f"would be refused: {describe_error(error)}"
    if config.resume not in ("auto", "never"):
        held = f"{held}; starts from {config.resume}"
    yield "run folder", f"{config.out}: {held}"


def rehearse(config: Config, faces: Faces, world: World) -> Iterator[tuple[str, str]]:
    """Parameters, memory and time, from steps on random images. A collective."""
    config = with_largest_batch(config, faces, world)
    rehearsal = Rehearsal(config, faces.classes, world)
    parameters = list(rehearsal.engine.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trained
    weights = rehearsal.engine.weights.describe()
    yield "model", f"{config.model.backbone} from {weights}: {trained:,} parameters are trained, {frozen:,} are frozen"
    kept = count_kept(rehearsal)
    size = parameters[0].element_size()
    average = (trained + frozen) * bool(config.optimizer.ema)
    counted = f"weights {mib((trained + frozen + average) * size)}, gradients {mib(trained * size)}, Adam's moments "
    rows = len(rehearsal.images)
    yield "memory", f"counted: {counted}{mib(2 * trained * size)} a process"
    yield "", f"measured: {mib(kept)} that a step on {rows} images a rank keeps for its backward pass"
    step_s, infer_s = seconds(rehearsal, rehearsal.step), seconds(rehearsal, rehearsal.infer)
    peak = peak_memory(world.device)
    whose = "the process" if world.device.type == "cpu" else "the GPU"
    yield "", f"measured: {mib(peak)} at the peak of a step, of {whose}, everything in it counted"
    where = f"{world.size} rank{'s' * (world.size > 1)} on {world.device.type}, {config.runtime.precision}"
    yield "step", f"measured: {step_s:.3g} s, {config.batch_size / step_s:,.0f} images/s on {where}"
    for line in project(config, faces, Measured(step_s, infer_s, peak, 0), 0.0):
        yield "time", line.text


def count_kept(rehearsal: Rehearsal) -> int:
    """Bytes of what autograd holds between the forward and the backward pass of a step, weights not counted."""
    own = {p.untyped_storage().data_ptr() for p in rehearsal.engine.model.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        rehearsal.step()
    return sum(held.values())


def mib(count: float) -> str:
    return f"{count / MIB:,.1f} MiB"
