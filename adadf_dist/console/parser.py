"""Argument parser of all commands, with uniform errors, hints for misspelled options, and `--version`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn, cast

from adadf_dist import __version__
from adadf_dist.console.exit import exit_with_error
from adadf_dist.console.old_options import replace_old_names
from adadf_dist.errors import did_you_mean

VERSION = f"adadf_dist {__version__}"
TYPE_NAMES = {"int": "an integer", "float": "a number", "Path": "a path"}


class Parser(argparse.ArgumentParser):
    """Argument parser with `--version`. An error prints one line with a hint and exits with status 2.

    Options cannot be abbreviated. Description and epilog keep their line breaks. Subparsers also use this class.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        defaults = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **{**defaults, **kwargs})
        self.add_argument("--version", action="version", version=VERSION, help="print the version and exit")
        self._words: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse like argparse, but accept old option names, and remember the arguments for the hints in `error`."""
        own = [option for action in self._actions for option in action.option_strings]
        self._words = replace_old_names(sys.argv[1:] if args is None else args, own)
        return super().parse_known_args(self._words, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            option = next((word for word in unknown if word.startswith("-")), None)
            self.error(f"unexpected argument {unknown[0]!r}" if option is None else self.describe_unknown(option))
        return cast(argparse.Namespace, parsed)

    def error(self, message: str) -> NoReturn:
        """Print the error as one line, and exit with status 2.

        A missing argument is often a misspelled one, so an unknown option is reported first.
        """
        if "required" in message:
            known = {"--", *self.option_names()}
            unknown = [word for word in self._words if word.startswith("--") and word.partition("=")[0] not in known]
            message = self.describe_unknown(unknown[0]) if unknown else message
        exit_with_error(self.prog.removeprefix("python -m "), f"{plain_message(message)} (see --help)")

    def describe_unknown(self, word: str) -> str:
        option = word.partition("=")[0]
        return f"unknown option {option}{did_you_mean(option, self.option_names())}"

    def option_names(self) -> list[str]:
        """Return the parser's long options, including those of the chosen subcommands."""
        return list(dict.fromkeys(self._long_options()))

    def _long_options(self) -> Iterator[str]:
        for action in self._actions:
            yield from (option for option in action.option_strings if option.startswith("--"))
            if isinstance(action, argparse._SubParsersAction):
                for name, parser in action.choices.items():
                    if name in self._words and isinstance(parser, Parser):
                        yield from parser._long_options()


def make_parser(command: str, description: str | None = None, epilog: str | None = None) -> Parser:
    """Return the argument parser of `python -m COMMAND`."""
    return Parser(prog=f"python -m {command}", description=description, epilog=epilog)


def add_device_option(parser: argparse.ArgumentParser, default: str = "auto", text: str = "") -> None:
    """Add the `--device` option. `text`: start of its help text, which says what runs on the device."""
    shown = "GPU if available" if default == "auto" else default
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default=default, help=f"{text} (default: {shown})".lstrip()
    )


def plain_message(message: str) -> str:
    """Rephrase an argparse error in the style of configuration errors; return other messages unchanged."""
    found = re.fullmatch(r"argument (\S+?)(?:/\S+)?: invalid (\w+) value: (.*)", message, re.DOTALL)
    if found:
        name, kind, value = found.groups()
        return f"{name} must be {TYPE_NAMES.get(kind, kind)}, got {value}"
    found = re.fullmatch(r"argument (\S+?)(?:/\S+)?: invalid choice: (.*?) \(choose from (.*)\)", message, re.DOTALL)
    if found:
        name, value, names = found.groups()
        choices = [choice.strip("'\"") for choice in names.split(", ")]
        return f"{name} must be one of {', '.join(choices)}, got {value}{did_you_mean(value.strip(chr(39)), choices)}"
    return message.removeprefix("argument ")
