"""User errors look alike on every command line, and the list of commands."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from adadf_dist import __main__ as commands
from adadf_dist import __version__
from adadf_dist.config.load import ConfigLayer, build_config, parse_cli
from adadf_dist.errors import UserError
from tune import search_options, tables

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_size", "abc", "batch_size must be an integer, got 'abc'"),
        ("batch_size", 3.5, "batch_size must be an integer, got 3.5"),
        ("epochs", None, "epochs must be an integer, got no value"),
        ("epochs", "null", "epochs must be an integer, got 'null'"),
        ("optimizer.lr", "fast", "optimizer.lr must be a number, got 'fast'"),
        ("loss.detach_targets", "maybe", "loss.detach_targets must be true or false, got 'maybe'"),
        ("out", 3, "out must be text, got 3"),
        (
            "loss.batch_scope",
            "globl",
            "loss.batch_scope must be one of global, local, got 'globl'; did you mean global?",
        ),
        ("deepspeed.zero_stage", 7, "deepspeed.zero_stage must be one of 0, 1, 2, 3, got 7"),
        ("data.synthetic_samples", "abc", "data.synthetic_samples must be a list of integers, got 'abc'"),
        ("augment.erase_scale", [1, "x"], "augment.erase_scale must be a list of 2 numbers, got [1, 'x']"),
        ("runtime.trackers", ["x"], "runtime.trackers must be a list of values, each one of wandb, mlflow, got ['x']"),
        ("loss", 3, "loss is a section and cannot be 3; set its keys, such as loss.batch_scope"),
    ],
)
def test_invalid_values_are_explained(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_config([ConfigLayer("mine.toml", {key: value})])
    assert str(caught.value) == f"mine.toml: {message}"


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        ("shards.build", ["fer2013", "--rot", "x"], "unknown option --rot; did you mean --root?"),
        ("shards.build", ["fer2103"], "got 'fer2103'; did you mean fer2013?"),
        ("shards.verify", ["x", "--num-workers", "y"], "--num-workers must be an integer, got 'y'"),
        ("adadf_dist.predict.__main__", ["m", "p", "--formt", "csv"], "did you mean --format?"),
        ("adadf_dist.predict.__main__", ["m"], "the following arguments are required: PATH"),
        ("adadf_dist.evaluate.__main__", ["m", "--class-maping", "x"], "did you mean --class-mapping?"),
        ("adadf_dist.train", ["--dry-rum", "x"], "did you mean --dry-run?"),
        ("tune.search", ["--trails", "3"], "unknown option --trails; did you mean --num-trials?"),
        ("tune.search", ["--keep-checkpoint", "all"], "did you mean --keep-checkpoints?"),
        ("tune.search", ["--epoch", "3"], "did you mean --epochs?"),
        ("tune.tables", ["noise", "--num-seds", "3"], "did you mean --num-seeds?"),
    ],
)
def test_user_errors_are_one_line_with_a_hint(
    module: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        import_module(module).main(words)
    error = capsys.readouterr().err
    assert done.value.code == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_prints_the_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        commands.main([name, "--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"adadf_dist {__version__}\n"


def test_commands_are_listed_quickly() -> None:
    script = "import sys; from adadf_dist.__main__ import main; main([]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in commands.COMMANDS)


def test_search_options_do_not_become_run_keys() -> None:
    assert "--num-trials" in search_options.make_parser().option_names()
    assert "--num-seeds" in tables.make_parser().option_names()
    with pytest.raises(UserError, match=r"unknown option --trails$"):
        parse_cli(["--trails", "3"])
