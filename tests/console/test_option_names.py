"""The same concept has the same option in every command; the names of the last release are accepted."""

from __future__ import annotations

from collections import defaultdict
from importlib import import_module

import pytest
import torch

from adadf_dist.console.old_options import OLD_OPTIONS, OLD_VALUES
from adadf_dist.console.parser import make_parser
from adadf_dist.distributed.world import pick_device
from benchmarks.__main__ import OLD_COMMANDS
from benchmarks.__main__ import main as benchmarks_main
from tests.helpers.command_options import COMMITTED
from tune.search_options import plan

FORMER_NAMES = {
    "overwrite": ("--overwrite", ["--force", "--replace", "--clobber"]),
    "output": ("--out", ["--output", "--output-dir", "--output-file"]),
    "dataset": ("--shards", ["--data.shards", "--dataset", "--data"]),
    "cache": ("--cache-dir", ["--data.cache", "--data.cache_dir", "--cache"]),
    "checkpoint": ("--checkpoint", ["--which"]),
    "workers": ("--num-workers", ["--workers", "--processes"]),
    "batch size": ("--batch-size", ["--batch_size", "--batch"]),
    "seeds": ("--num-seeds", ["--seeds"]),
    "samples": ("--num-samples", ["--faces", "--samples"]),
    "image size": ("--image-size", ["--size", "--side"]),
    "image sizes": ("--image-sizes", ["--sizes"]),
    "ranks": ("--ranks-per-trial", ["--workers-per-trial"]),
}
"""Concept -> its option, and other names that a command might use for it."""
WITH_CONCEPT = {
    "--shards": {"evaluate", "audit", "export", "report"},
    "--overwrite": {"evaluate", "audit", "export", "report", "predict", "convert", "weights", "build", "doctor"},
    "--device": {"evaluate", "audit", "export", "predict"},
    "--precision": {"evaluate", "audit"},
    "--checkpoint": {"evaluate", "audit"},
    "--cache-dir": {"evaluate", "audit"},
    "--num-workers": {"evaluate", "predict", "build", "verify", "doctor"},
    "--num-seeds": {"search", "tables"},
    "--aligned-size": {"build", "doctor", "predict"},
    "--max-side": {"build", "doctor"},
    "--json": {"evaluate", "doctor"},
}


def options_of_tools() -> dict[str, set[str]]:
    """Command -> its options. Without train, whose options are the keys of the configuration, and benchmarks."""
    found = defaultdict(set)
    for line in COMMITTED.read_text().splitlines():
        module, *_, option = line.split()
        if module != "adadf_dist.train":
            found[module].add(option)
    return found


@pytest.mark.parametrize("concept", FORMER_NAMES)
def test_a_concept_has_one_name(concept: str) -> None:
    name, others = FORMER_NAMES[concept]
    tools = options_of_tools()
    assert any(name in options for options in tools.values())
    assert {module: options & set(others) for module, options in tools.items() if options & set(others)} == {}


@pytest.mark.parametrize("option", WITH_CONCEPT)
def test_commands_with_a_concept_have_its_option(option: str) -> None:
    users = {
        module.rpartition(".")[2]
        for module, options in options_of_tools().items()
        if option in options and not module.startswith("benchmarks")
    }
    assert users == WITH_CONCEPT[option]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("adadf_dist.evaluate.__main__", ["nowhere"]),
        ("adadf_dist.audit.__main__", ["nowhere"]),
        ("adadf_dist.export.__main__", ["nowhere", "--safetensors", "x.safetensors"]),
    ],
)
def test_a_missing_gpu_is_one_line(
    module: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        import_module(module).main([*words, "--device", "cuda"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "error: --device cuda: no GPU available; pass --device cpu or auto" in error
    assert error.count("\n") == 1


def test_a_gpu_is_not_used_where_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("cpu") == torch.device("cpu")


def test_every_new_name_is_an_option_of_a_command() -> None:
    known = set().union(*options_of_tools().values())
    assert set(OLD_OPTIONS.values()) <= known
    assert set(OLD_VALUES) <= known


@pytest.mark.parametrize("words", [["--which", "last"], ["--which=last"]])
def test_an_old_option_is_accepted_with_a_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("adadf_dist.any")
    parser.add_argument("--checkpoint", choices=("selected", "last"))
    assert parser.parse_args(words).checkpoint == "last"
    assert capsys.readouterr().err == "note: --which is now --checkpoint\n"
    assert "--which" not in parser.format_help()


@pytest.mark.parametrize("words", [["--no-face", "centre"], ["--on-no-face=centre"]])
def test_an_old_value_is_accepted_with_a_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("adadf_dist.any")
    parser.add_argument("--on-no-face", choices=("skip", "center-crop"))
    assert parser.parse_args(words).on_no_face == "center-crop"
    assert "--on-no-face centre is now --on-no-face center-crop\n" in capsys.readouterr().err


def test_an_option_that_a_command_still_has_is_not_renamed(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("adadf_dist.any")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--max-side", type=int)
    assert parser.parse_args(["--image-size", "3"]).image_size == 3
    assert capsys.readouterr().err == ""


def test_an_old_name_that_a_command_never_had_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("adadf_dist.any")
    parser.add_argument("--out")
    with pytest.raises(SystemExit):
        parser.parse_args(["--force"])
    assert "unknown option --force" in capsys.readouterr().err


def test_only_rank_0_prints_the_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    parser = make_parser("adadf_dist.any")
    parser.add_argument("--checkpoint")
    assert parser.parse_args(["--which", "last"]).checkpoint == "last"
    assert capsys.readouterr().err == ""


def test_words_after_two_dashes_are_arguments() -> None:
    parser = make_parser("adadf_dist.any")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("names", nargs="*")
    assert parser.parse_args(["--", "--force"]).names == ["--force"]


def test_a_search_takes_old_names_and_leaves_keys_of_the_runs(capsys: pytest.CaptureFixture[str]) -> None:
    study, options = plan(
        ["--preset", "demo", "--data.shards", "faces", "--trials", "4", "--grace=10", "--scheduler", "none"]
    )
    assert (study.options.trials, options.grace_period) == (4, 10)
    assert study.base.data.shards.endswith("faces")
    assert capsys.readouterr().err == "note: --trials is now --num-trials\nnote: --grace is now --grace-period\n"


@pytest.mark.parametrize("old", OLD_COMMANDS)
def test_an_old_benchmark_is_accepted_with_a_line(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        benchmarks_main([old, "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr()
    assert f"usage: python -m benchmarks {OLD_COMMANDS[old]} " in printed.out
    assert printed.err == f"note: {old} is now {OLD_COMMANDS[old]}\n"


def test_paired_names_its_successor(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks_main(["paired", "--first", "a"])
    assert "run adadf_dist.report" in capsys.readouterr().err
