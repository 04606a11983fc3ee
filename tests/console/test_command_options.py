"""Option names are public: a renamed or removed option shows up here in one diff."""

from __future__ import annotations

from adadf_dist.config.keys import flatten
from adadf_dist.config.load import to_dict
from adadf_dist.config.schema import Config
from tests.helpers.command_options import COMMITTED, find_options, find_subcommands, list_options


def test_command_options_equal_the_committed_list() -> None:
    assert list_options() == COMMITTED.read_text()


def test_every_config_key_is_a_trainer_option() -> None:
    options = {line.split()[-1] for line in COMMITTED.read_text().splitlines() if line.startswith("adadf_dist.train ")}
    assert {f"--{key}" for key, _ in flatten(to_dict(Config()))} <= options


def test_options_are_parsed_from_help() -> None:
    text = """usage: x [-h] SOURCE ...

positional arguments:
  SOURCE
    plain     a short one
    affectnet-8
              described on the next line

options:
  -h, --help  this
  --deep.key VALUE
      use --other with it
"""
    assert find_options(text) == ["--deep.key", "--help"]
    assert find_subcommands(text) == ["plain", "affectnet-8"]
