"""Measure, side by side in one run: `python -m benchmarks data|step|epoch|pictures|scaling|cost|paired`.

Timings on shared machines wander, so what counts is the ratio of two measurements of the same work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adadf_dist.console.exit import cli_errors
from adadf_dist.console.parser import Parser
from adadf_dist.files.outputs import add_force_option, check_output_path
from benchmarks import epoch, loader_images, loaders, paired, step
from benchmarks.scaling import cost_tables
from benchmarks.scaling import measure as scaling

COMMANDS = {
    "data": (
        loaders,
        "images/s of the loaders, against what one would use instead and against the limit",
        "Encoded faces from shards to the network's input, epoch after epoch: both loaders of adadf_dist; torchvision "
        "and a DataLoader over image files; webdataset and torchvision; DALI's own reader and rand_augment; and as "
        "limits the bare read and the bare decode. Each in a process of its own, all with the same cores.",
    ),
    "step": (
        step,
        "images/s of the network alone, on batches that are there already",
        "Forward, losses, backward and Adam of both branches, on one synthetic batch again and again.",
    ),
    "epoch": (
        epoch,
        "one whole training process of one epoch, against a conventional loop over the same faces",
        "Train one epoch and test, whole process: adadf_dist against a conventional loop (PIL decode and transforms, "
        "DataLoader, fp32, NCHW, a second full pass for the class distributions). Faces are stored 100x100 and trained "
        "at 224x224, batch 64, extractor frozen.",
    ),
    "pictures": (
        loader_images,
        "what both loaders make of the same faces, side by side in one picture",
        "The first batch of a training epoch by both loaders, and their difference, as a PNG.",
    ),
    "scaling": (
        scaling,
        "what more ranks cost and gain on this machine: compute, communication, waiting, bytes",
        "The same synthetic global batch on 1, 2 and more ranks of this machine, started here: gloo on the CPU, one "
        "NCCL rank a GPU where there are some. Communication: what a step's messages take when they are sent alone, "
        "all ranks together. Waiting: what the step stood still beyond that. Compute: the rest. MB sent: by the "
        "counter of the loopback device.",
    ),
    "cost": (
        cost_tables,
        "bytes of every message, and a projection to other machines; nothing is timed",
        "Messages of a step and an epoch counted from the network itself, and the time of a step on other machines "
        "from stated assumptions. As Markdown.",
    ),
    "paired": (
        paired,
        "two ways of training on the same seeds: difference, interval, equivalence",
        "Train both ways on each seed and compare the accuracies on validation after the last epoch. For instance:\n"
        "paired --first '--batch_size 64' --second '--batch_size 512 --optimizer.lr_scaling sqrt' --out runs/large -- "
        "--preset fer2013",
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, brief, description) in COMMANDS.items():
        command = commands.add_parser(name, help=brief, description=description)
        module.add_options(command)
        if module not in (loader_images, cost_tables, paired):
            rounds = 3 if module is scaling else 1
            command.add_argument(
                "--repeat", type=int, default=rounds, help="rounds, interleaved (default: %(default)s)"
            )
        if module is not loader_images:
            command.add_argument("--json", type=Path, help="also write the figures here")
        add_force_option(command, "an output file")
    options = parser.parse_args(argv)
    with cli_errors("benchmarks"):
        image = options.out if options.command == "pictures" else None  # --out of paired is a folder of resumed runs
        for option, path in (("--json", getattr(options, "json", None)), ("--out", image)):
            if path is not None:
                check_output_path(path, options.force, option)
        options.run(options)


if __name__ == "__main__":
    main()
