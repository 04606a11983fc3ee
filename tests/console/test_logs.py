"""Log messages of commands: format, ranks, streams, progress bars, and no line twice."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from adadf_dist.config.load import parse_cli
from adadf_dist.console.exit import cli_errors
from adadf_dist.console.logs import EVERY_RANK, NO_PREFIX, RUN_LOG, configure_logging, get_logger
from tests.helpers.dataset_trees import class_folders, write
from tests.helpers.forked import train_forked
from tests.helpers.runs import ROOT, settings

LOG = get_logger(__name__)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adadf_dist.data.identity", "adadf_dist.data.identity"),
        ("shards.image_files", "adadf_dist.shards.image_files"),
        ("__main__", "adadf_dist.__main__"),  # a command started with python -m
        ("adadf_distant", "adadf_dist.adadf_distant"),
    ],
)
def test_loggers_of_all_packages_are_below_adadf_dist(name: str, expected: str) -> None:
    assert get_logger(name).name == expected


def test_format_depends_on_severity(capsys: pytest.CaptureFixture[str]) -> None:
    LOG.info("note: 3 files skipped")
    LOG.warning("disk: 100% full %s")
    LOG.error("lost")
    LOG.warning("faces/: warning: odd name", extra=NO_PREFIX)
    LOG.debug("hidden")
    assert capsys.readouterr() == (
        "",
        "note: 3 files skipped\nwarning: disk: 100% full %s\nerror: lost\nfaces/: warning: odd name\n",
    )


def test_run_log_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    get_logger(RUN_LOG).info("epoch 1")
    assert capsys.readouterr() == ("epoch 1\n", "")


@pytest.mark.parametrize("rank", [0, 1])
def test_other_ranks_print_errors_and_messages_of_every_rank_only(
    rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with cli_errors("test", rank):
        get_logger(RUN_LOG).info("epoch 1")
        LOG.info("slow")
        LOG.warning("full disk")
        LOG.warning("bad sample", extra=EVERY_RANK)
        LOG.error("lost")
        parse_cli(["--data.workers", "1"])  # an old name, which is a warning
    out, err = capsys.readouterr()
    if rank == 0:
        assert out == "epoch 1\n"
        assert err.startswith("slow\nwarning: full disk\nwarning: bad sample\nerror: lost\nwarning: command line: ")
    else:
        assert (out, err) == ("", "warning: bad sample\nerror: lost\n")


def test_configuring_again_prints_no_line_twice(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(rank=1)
    configure_logging(rank=0)
    other = logging.StreamHandler()  # as `logging.basicConfig` in a library installs
    logging.getLogger().addHandler(other)
    try:
        LOG.warning("full disk")
    finally:
        logging.getLogger().removeHandler(other)
    assert capsys.readouterr().err == "warning: full disk\n"


def test_stream_is_looked_up_for_each_message(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
        LOG.info("here")
        assert stream.getvalue() == "here\n"
    monkeypatch.setattr(sys, "stderr", None)  # closed when Python started
    LOG.info("nowhere")


def test_stream_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that commands exit as they do when `print` fails."""
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    with pytest.raises(ValueError, match="closed file"):
        get_logger(RUN_LOG).info("epoch 1")


@pytest.mark.parametrize("name", [RUN_LOG, __name__])
def test_messages_replace_a_progress_bar_which_is_drawn_again_below(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    with tqdm(total=4, desc="images", leave=False) as bar:
        bar.update(1)
        get_logger(name).info("a message")
        lines = screen.getvalue().split("\n")
    assert [line.rpartition("\r")[2] for line in lines[:-1]] == ["a message"]
    assert lines[-1].startswith("\rimages:  25%")


def test_programs_that_use_the_packages_configure_their_own_logging() -> None:
    script = """if True:
        import logging
        from adadf_dist.console.logs import RUN_LOG, get_logger
        get_logger("shards.build").info("dropped")
        get_logger("shards.build").warning("plain")
        logging.basicConfig(level="INFO", format="%(name)s | %(levelname)s | %(message)s")
        get_logger(RUN_LOG).info("epoch 1")
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "plain\nadadf_dist.run_log | INFO | epoch 1\n")


def test_workers_of_a_build_do_not_repeat_its_messages(tmp_path: Path) -> None:
    class_folders(tmp_path / "raw", {"train": ["sad", "odd"] * 6})
    write(tmp_path / "raw" / "train" / "faces.zip", "PK")
    words = ["--root", tmp_path / "raw", "--out", tmp_path / "out", "--workers", 2, "--samples-per-shard", 4]
    command = [sys.executable, "-m", "shards.build", "folder", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len([line for line in lines if line.startswith("writing: 12 faces, ")]) == 1
    assert len([line for line in lines if ": warning: archives are not read: faces.zip" in line]) == 1


def test_ranks_and_data_workers_of_a_run_do_not_repeat_its_messages(faces: Path, tmp_path: Path) -> None:
    values = settings(faces, tmp_path / "run", epochs="1", data__loader="torch", data__workers="2")
    del values["data.num_workers"]  # given by its old name, which is a warning
    done = train_forked(values, ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("data.workers is now data.num_workers") == 1
    lines = done.stdout.splitlines()
    assert lines.count(f"run folder: {tmp_path / 'run'}") == 2  # at the start and at the end
    assert len([line for line in lines if line.startswith("  dataset: ")]) == 1
