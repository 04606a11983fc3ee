"""Print the predicted cost of distributed training: communication volume, and step times under stated assumptions."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace

from adadf_dist.config.load import ConfigLayer, build_config, override
from adadf_dist.config.schema import Config
from adadf_dist.console.tables import markdown_table
from adadf_dist.data.sampling import MIN_SAMPLES_PER_RANK
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import write_output
from adadf_dist.method.model import DualBranch
from benchmarks.scaling.comm_volume import Communication, Device, epoch_traffic, network, step_traffic
from benchmarks.scaling.cost_model import PUBLISHED, Assumptions, ComputeWork, Step, estimate_step, measure_work
from benchmarks.step import CLASSES


def add_options(cost: argparse.ArgumentParser) -> None:
    cost.add_argument("--backbone", default="resnet18", help="model.backbone (default: %(default)s)")
    cost.add_argument("--image-size", type=int, default=224, help="side in pixels (default: %(default)s)")
    cost.add_argument("--frozen", action="store_true", help="freeze the feature extractor, as with pretrained weights")
    cost.add_argument(
        "--num-samples", type=int, default=283_901, help="samples per epoch (default: AffectNet, %(default)s)"
    )
    cost.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[64, 512, 4096], help="global batch sizes (default: 64 512 4096)"
    )
    cost.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512], help="GPU counts (default: 1 8 64 512)")
    assumptions = cost.add_argument_group("assumptions")
    for field in fields(Assumptions):
        kind = type(field.default)
        meaning = f"{field.metadata['meaning']} (default: %(default)s)"
        assumptions.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=meaning)
    cost.set_defaults(run=bench_cost)


def bench_cost(options: argparse.Namespace) -> None:
    """Print Markdown tables of communication volume and predicted step times."""
    assumptions = Assumptions(**{field.name: getattr(options, field.name) for field in fields(Assumptions)})
    values = {"model.backbone": options.backbone, "data.image_size": options.image_size, "runtime.precision": "fp32"}
    config = build_config([ConfigLayer("bench", {**values, "batch_size": options.batch_sizes[0]})])
    assumptions = check(options, assumptions)
    model = network(config, CLASSES, options.frozen)
    work = measure_work(config, options.frozen)
    projected = [
        (case, gpus, estimate_step(case, model, work, gpus, assumptions))
        for case in config_grid(config, options.batch_sizes)
        for gpus in options.gpus
    ]
    extractor = "frozen" if options.frozen else "trained"
    print(f"{options.backbone}, extractor {extractor}, global batch {config.batch_size}\n")
    for text in (
        *bytes_table(config, model, options.num_samples),
        *assumption_lines(config, work, assumptions),
        *projection_table(projected),
    ):
        print(text)
    if options.json is not None:
        steps = [
            {"sync_batch_norm": case.runtime.sync_batch_norm, **step._asdict(), "total": step.total}
            for case, _, step in projected
            if step is not None
        ]
        report = {"backbone": options.backbone, "frozen": options.frozen, "assumptions": asdict(assumptions)}
        write_output(options.json, {**report, "work": work._asdict(), "steps_ms": steps})


def check(options: argparse.Namespace, assumptions: Assumptions) -> Assumptions:
    """Validate the options and return the assumptions, with the published images/s if none is given.

    Raises `UserError` if an option is invalid.
    """
    for name, values in {"gpus": options.gpus, "num-samples": [options.num_samples]}.items():
        if min(values) < 1:
            raise UserError(f"--{name} {min(values)}: must be at least 1")
    for name, value in asdict(assumptions).items():
        if value < 0 or (
            value == 0 and name not in ("reference_images_per_s", "sync_operations") and "_us" not in name
        ):
            raise UserError(f"--{name.replace('_', '-')} {value:g}: must be greater than 0")
    if not assumptions.reference_images_per_s and options.backbone not in PUBLISHED:
        raise UserError(f"--backbone {options.backbone}: no published images/s is known; pass --reference-images-per-s")
    for gpus in options.gpus:
        if gpus > assumptions.gpus_per_node and gpus % assumptions.gpus_per_node:
            raise UserError(f"--gpus {gpus}: must be a multiple of --gpus-per-node {assumptions.gpus_per_node}")
    rate = assumptions.reference_images_per_s or PUBLISHED[options.backbone]
    return replace(assumptions, reference_images_per_s=rate)


def config_grid(config: Config, batch_sizes: Sequence[int]) -> Iterator[Config]:
    """Yield a configuration for each batch size, with global and with per-rank BatchNorm."""
    for batch_size in batch_sizes:
        for synchronized in (True, False):
            yield override(config, {"batch_size": batch_size, "runtime.sync_batch_norm": synchronized})


def bytes_table(config: Config, model: DualBranch, faces: int) -> Iterator[str]:
    """Yield tables of the messages of a step and of an epoch, with the bytes sent per rank, for 2, 8 and 512 ranks."""
    worlds: list[tuple[int, Device]] = [(2, "cpu"), (8, "cuda"), (512, "cuda")]
    steps = math.ceil(faces / config.batch_size)
    columns = [step_traffic(model, config, ranks, device) for ranks, device in worlds]
    heads = ["messages", "2 CPU ranks", "8 GPUs", "512 GPUs"]
    rows = []
    for row in zip(*columns, strict=True):
        cells = [f"{traffic.sent(ranks) / 1e3:,.1f}" for traffic, (ranks, _) in zip(row, worlds, strict=True)]
        rows.append([row[0].part, str(row[0].calls), *cells])
    yield from markdown_table(["per step; kB sent per rank", *heads], rows)
    yield ""
    whole = [bytes_sent(column, ranks) * steps / 1e3 for column, (ranks, _) in zip(columns, worlds, strict=True)]
    calls = sum(traffic.calls for traffic in columns[0]) * steps
    rows = [[f"{steps:,} steps as above", f"{calls:,}", *(f"{kb:,.1f}" for kb in whole)]]
    for traffic in epoch_traffic(config, CLASSES, faces):
        rows.append([traffic.part, f"{traffic.calls:,}", *(f"{traffic.sent(ranks) / 1e3:,.1f}" for ranks, _ in worlds)])
    yield from markdown_table([f"per epoch of {faces:,} samples; kB sent per rank", *heads], rows)


def assumption_lines(config: Config, work: ComputeWork, assumptions: Assumptions) -> Iterator[str]:
    """Yield lines with the counted work of a step and the assumptions."""
    backbone, size = config.model.backbone, config.data.image_size
    rate = assumptions.reference_images_per_s * (assumptions.reference_size / size) ** 2 / work.arithmetic
    yield f"\nCounted: a step has {work.arithmetic:.2f}x the FLOPs of the plain {backbone} and about"
    yield f"{work.operations} operations. Assumptions, giving {rate:,.0f} images/s on one GPU at {size}x{size}:\n"
    for field in fields(Assumptions):
        yield f"- {field.name} {getattr(assumptions, field.name):g}: {field.metadata['meaning']}"
    yield ""


def bytes_sent(messages: Iterable[Communication], ranks: int) -> float:
    """Return the total number of bytes that a rank sends for all messages."""
    return sum(traffic.sent(ranks) for traffic in messages)


def projection_table(projected: Sequence[tuple[Config, int, Step | None]]) -> Iterator[str]:
    """Yield a table of predicted milliseconds per step and of the speed-up over one GPU with the same batch."""
    yield "Predicted milliseconds per step, and speed-up over one GPU with the same batch:\n"
    yield (
        "| batch | BatchNorm over | GPUs | arithmetic | launches | BatchNorm | gradients | attention | step | speed-up "
        "| bottleneck |"
    )
    yield "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"
    alone = {config.batch_size: step.total for config, gpus, step in projected if step is not None and gpus == 1}
    for config, gpus, step in projected:
        over = "all ranks" if config.runtime.sync_batch_norm else "one rank"
        head = f"| {config.batch_size:,} | {over} | {gpus} |"
        if step is None:
            most = config.batch_size // MIN_SAMPLES_PER_RANK
            yield f"{head} | | | | | | | invalid: needs {MIN_SAMPLES_PER_RANK} samples per rank (max. {most:,} GPUs) |"
            continue
        parts = (step.arithmetic, step.launches, step.batch_norm, step.gradients, step.attention, step.total)
        speed_up = f"{alone[config.batch_size] / step.total:.1f}" if config.batch_size in alone else ""
        yield f"{head} {' | '.join(f'{part:.2f}' for part in parts)} | {speed_up} | {step.bottleneck} |"
