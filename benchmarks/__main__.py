"""Run benchmarks: `python -m benchmarks loaders|step|epoch|loader-images|launches|scaling|comm-cost|audit|face-probe`.

Timings on shared machines are noisy, so compare ratios of measurements from the same run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from adadf_dist.console.exit import cli_errors
from adadf_dist.console.parser import make_parser
from adadf_dist.files.outputs import add_overwrite_option, check_output_path
from benchmarks import audit_scores, epoch, face_probe, loader_images, loaders, step
from benchmarks.launches import command as launches
from benchmarks.scaling import cost_tables
from benchmarks.scaling import measure as scaling

COMMANDS = {
    "loaders": (
        loaders,
        "images/s of the data loaders, compared with alternatives and upper limits",
        "Load encoded images up to the network's input, for repeated epochs, with: both loaders of adadf_dist; "
        "torchvision and a DataLoader over image files; webdataset and torchvision; DALI's reader and rand_augment; "
        "and, as upper limits, reading only and decoding only. Each runs in its own process with the same cores.",
    ),
    "step": (
        step,
        "images/s of the network alone, on a synthetic batch",
        "Run forward pass, losses, backward pass and Adam update of both branches repeatedly on one synthetic batch.",
    ),
    "epoch": (
        epoch,
        "a complete one-epoch training process, compared with a conventional loop on the same data",
        "Train one epoch and test, including startup: adadf_dist and a conventional loop (PIL decode and transforms, "
        "DataLoader, fp32, NCHW, a second full pass for the class distributions). Images are stored at 100x100 and "
        "trained at 224x224, batch 64, extractor frozen.",
    ),
    "loader-images": (
        loader_images,
        "output of both loaders for the same samples, side by side in one image",
        "Write a PNG of the first batch of a training epoch from each loader, and of their difference.",
    ),
    "launches": (
        launches,
        "number of operations that a step launches on a GPU, compared with the budget; no GPU, no timing",
        "Run a training step, an evaluation step and the augmentation on fake CUDA tensors, count the operations that "
        "launch kernels and the copies to the device, and look for host waits. Needs a C compiler.",
    ),
    "scaling": (
        scaling,
        "scaling over ranks on this machine: compute, communication, waiting, bytes",
        "Train on the same synthetic global batch with 1, 2 and more ranks on this machine: gloo on the CPU, or one "
        "NCCL rank per GPU. Communication: the time of a step's messages when all ranks send them alone. Waiting: "
        "other time during which the step is blocked. Compute: the rest. MB sent: by the loopback device's counter.",
    ),
    "comm-cost": (
        cost_tables,
        "predicted communication volume and step times on other machines; no timing",
        "Print Markdown tables of the messages of a step and an epoch, computed from the network, and of predicted "
        "step times on other machines under stated assumptions.",
    ),
    "audit": (
        audit_scores,
        "the audit's label error score compared with others on known label errors; no timing",
        "Print Markdown tables of the AUC and precision of label error scores on a finished run: the audit's score, "
        "scores from training dynamics, and confident learning (cleanlab). Label errors are known if the run had "
        "injected label noise, or from --reference-labels.",
    ),
    "face-probe": (
        face_probe,
        "accuracy of a linear classifier on frozen face recognition features; no timing",
        "Extract the features of dlib_resnet29 with model.shared_until pooled, fit an L2-regularized softmax "
        "regression to those of the train split, and print its accuracy on the test split.",
    ),
}
OLD_COMMANDS = {"data": "loaders", "pictures": "loader-images", "cost": "comm-cost"}
"""Command names of the last release, mapped to the current names; accepted for one more release."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("benchmarks", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, brief, description) in COMMANDS.items():
        command = commands.add_parser(name, help=brief, description=description)
        module.add_options(command)
        if module not in (loader_images, launches, cost_tables, audit_scores, face_probe):
            rounds = 3 if module is scaling else 1
            command.add_argument(
                "--repeat", type=int, default=rounds, help="number of interleaved rounds (default: %(default)s)"
            )
        if module not in (loader_images, launches):
            command.add_argument("--json", type=Path, help="also write the results to this file")
        if module is not launches:
            add_overwrite_option(command, "an output file")
    words = list(sys.argv[1:] if argv is None else argv)
    if words and (renamed := OLD_COMMANDS.get(words[0])):
        print(f"note: {words[0]} is now {renamed}", file=sys.stderr, flush=True)
        words[0] = renamed
    if words[:1] == ["paired"]:
        parser.error(
            "paired was removed: train both configurations on the same seeds and run adadf_dist.report on all runs"
        )
    options = parser.parse_args(words)
    with cli_errors("benchmarks"):
        for option, name in (("--json", "json"), ("--out", "out")):
            if (path := getattr(options, name, None)) is not None:
                check_output_path(path, options.overwrite, option)
        options.run(options)


if __name__ == "__main__":
    main()
