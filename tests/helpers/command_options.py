"""Every command's options, read from its help.

python -m tests.helpers.command_options > tests/data/command_options.txt    after a deliberate change
"""

from __future__ import annotations

import contextlib
import io
import re
from importlib import import_module
from pathlib import Path

COMMITTED = Path(__file__).parents[1] / "data" / "command_options.txt"

COMMANDS = (
    "adadf_dist.train",
    "adadf_dist.check.__main__",
    "adadf_dist.evaluate.__main__",
    "adadf_dist.predict.__main__",
    "adadf_dist.report.__main__",
    "adadf_dist.audit.__main__",
    "adadf_dist.export.__main__",
    "adadf_dist.convert",
    "adadf_dist.weights.__main__",
    "benchmarks.__main__",
    "shards.build",
    "shards.verify",
    "shards.doctor.__main__",
    "benchmarks.shard_build",
    "tune.search",
    "tune.tables",
)


def read_help(module: str, *words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        import_module(module).main([*words, "--help"])
    return printed.getvalue()


def find_subcommands(text: str) -> list[str]:
    """Names in the indented list below the positional arguments, where the command has subcommands."""
    positional = text.partition("positional arguments:")[2].partition("\noptions:")[0]
    return re.findall(r"^    ([a-z][\w-]*)(?:  |$)", positional, re.MULTILINE)


def find_options(text: str) -> list[str]:
    """Long options that the help describes: those at the start of a line."""
    return sorted(set(re.findall(r"^ +(?:-\w(?: \S+)?, )?(--[\w.-]+)", text, re.MULTILINE)))


def list_options() -> str:
    """A line per option: `COMMAND [SUBCOMMAND] --option`, in the order of `COMMANDS`."""
    lines = []
    for module in COMMANDS:
        name = module.removesuffix(".__main__")
        text = read_help(module)
        lines += [f"{name} {option}" for option in find_options(text)]
        for subcommand in find_subcommands(text):
            options = find_options(read_help(module, subcommand))
            lines += [f"{name} {subcommand} {option}" for option in options]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    print(list_options(), end="")
