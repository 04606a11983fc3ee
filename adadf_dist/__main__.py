"""Entry point: `python -m adadf_dist` lists the commands; `python -m adadf_dist COMMAND ...` runs one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from adadf_dist.console.exit import exit_with_error
from adadf_dist.console.parser import VERSION
from adadf_dist.errors import did_you_mean

COMMANDS = {
    "train": ("adadf_dist.train", "train Ada-DF, or resume a run"),
    "check": ("adadf_dist.check.__main__", "check the machine, dataset and configuration before a run"),
    "evaluate": ("adadf_dist.evaluate.__main__", "evaluate a trained network on a dataset"),
    "predict": ("adadf_dist.predict.__main__", "predict the expressions in images"),
    "report": ("adadf_dist.report.__main__", "write the HTML report of one or more runs"),
    "audit": ("adadf_dist.audit.__main__", "find training samples that are likely mislabeled"),
    "export": ("adadf_dist.export.__main__", "write ONNX, safetensors or torch.export files"),
    "convert": ("adadf_dist.convert", "convert a checkpoint of the paper's published code"),
    "weights": ("adadf_dist.weights.__main__", "convert publicly available weights for model.pretrained"),
}


def describe_commands() -> str:
    lines = [f"  {name:<18}{brief}" for name, (_, brief) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m adadf_dist [--version] [--help] COMMAND ...",
            "",
            "commands (for details: COMMAND --help):",
            *lines,
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(describe_commands())
        return
    if words[0] == "--version":
        print(VERSION)
        return
    if words[0] not in COMMANDS:
        kind = "option" if words[0].startswith("-") else "command"
        exit_with_error(
            "adadf_dist",
            f"unknown {kind} {words[0]}{did_you_mean(words[0], COMMANDS)}; choose from {', '.join(COMMANDS)}",
        )
    import_module(COMMANDS[words[0]][0]).main(words[1:])


if __name__ == "__main__":
    main()
