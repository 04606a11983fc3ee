"""User errors give one line that names the cause and the fix, and no traceback."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adadf_dist import train
from adadf_dist.checkpoint.storage import read_checkpoint, save_checkpoint
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.data.dataset import open_dataset
from adadf_dist.errors import UserError
from tests.helpers.forked import train_forked
from tests.helpers.runs import ROOT, command, environment, finish, records, settings


def run(values: dict[str, str]) -> None:
    train.run(build_config([ConfigLayer("test", values)]))


@pytest.fixture(scope="module")
def finished(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    run(settings(faces, out, epochs="1"))
    return out


def test_command_line_error_is_one_line_with_a_status(tmp_path: Path) -> None:
    done = train_forked(settings(tmp_path / "nowhere", tmp_path / "out"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "nowhere" in done.stderr


def test_missing_shards_option_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.shards is not set"):
        run({"out": str(tmp_path)})


def test_more_ranks_than_samples_per_batch_is_one_line(faces: Path, tmp_path: Path) -> None:
    values = settings(faces, tmp_path / "out", batch_size="2", runtime__timeout_s="600")  # neither rank waits that long
    done = train_forked(values, 2, timeout=60)
    assert done.returncode != 0
    assert "raise batch_size to 4 or use at most 1 ranks" in done.stderr


def test_run_folder_that_is_a_file_is_one_line(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(settings(faces, tmp_path / "file" / "out"))


def test_full_disk_keeps_the_previous_checkpoint(faces: Path, finished: Path) -> None:
    """Files may not exceed 1 MiB, so the next epoch's checkpoint cannot be written."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    before = sorted((finished / "checkpoints").iterdir())
    arguments = command(settings(faces, finished, epochs="2"))
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, preexec_fn=limit
    )
    assert done.returncode == 2
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted((finished / "checkpoints").iterdir()) == before
    assert all(read_checkpoint(path) for path in before)


def test_checkpoint_of_another_architecture_is_rejected(faces: Path, finished: Path, tmp_path: Path) -> None:
    newest = sorted((finished / "checkpoints").glob("checkpoint-*"))[-1]
    values = settings(faces, tmp_path, resume=str(newest), epochs="2")
    with pytest.raises(UserError, match=r"model\.backbone was resnet10 in the checkpoint but is resnet50 now"):
        run({**values, "model.backbone": "resnet50"})


def test_checkpoint_of_other_classes_is_rejected(faces: Path, finished: Path, tmp_path: Path) -> None:
    newest = sorted((finished / "checkpoints").glob("checkpoint-*"))[-1]
    content = dict(read_checkpoint(newest))
    classes = list(open_dataset(faces).classes)
    content["preprocessing"] = {**content["preprocessing"], "classes": ["other", *classes[1:]]}
    save_checkpoint(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match="trained on the classes other"):
        run(settings(faces, tmp_path / "out", resume=str(tmp_path / "other.pt"), epochs="2"))


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("pwned",)


def test_hostile_checkpoint_is_rejected_without_unpickling(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"version": 1, "progress": Payload()}, tmp_path / "hostile.pt")
    with pytest.raises(UserError, match="contains pickled objects"):
        run(settings(faces, tmp_path / "out", resume=str(tmp_path / "hostile.pt")))
    assert not (tmp_path / "pwned").exists()


def test_two_runs_in_one_folder_are_rejected(faces: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from adadf_dist.checkpoint.run_dir import lock_run_dir\n"
        "with lock_run_dir(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "out")]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, env=environment(), stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="is locked by another run"):
            run(settings(faces, tmp_path / "out"))
        holder.kill()
    run(settings(faces, tmp_path / "out", epochs="1"))  # a killed run holds no lock


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"version": 1})])
def test_file_that_is_no_checkpoint_is_rejected(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pt: (truncated or )?not a checkpoint"):
        read_checkpoint(tmp_path / "x.pt")


def test_checkpoint_of_a_newer_version_is_rejected(tmp_path: Path) -> None:
    torch.save({"version": 99, "progress": {}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="newer version"):
        read_checkpoint(tmp_path / "x.pt")


def test_missing_checkpoint_is_one_line(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such checkpoint"):
        run(settings(faces, tmp_path / "out", resume=str(tmp_path / "nowhere.pt")))


@pytest.mark.parametrize("loader", ["torch", pytest.param("dali", marks=pytest.mark.slow)])
def test_corrupt_image_on_one_rank_ends_all_ranks(faces: Path, tmp_path: Path, loader: str) -> None:
    """The face stands in one rank's slice; the other rank ends too, soon, and says why. By choice: else it is replaced,
    which the epoch's record counts."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for path in faces.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    split = open_dataset(folder).split("train")
    encoded = bytes(split.read(0))
    tar = next(folder.glob("train-*.tar"))
    content = tar.read_bytes()
    tar.write_bytes(content.replace(encoded, b"\xff" * len(encoded)))
    more = {
        "data__loader": loader,
        "data__max_bad_samples": "0",
        "runtime__timeout_s": "600",
    }  # neither rank waits that long
    values = settings(folder, tmp_path / "out", **more)
    done = train_forked(values, 2, timeout=60)
    assert done.returncode != 0
    assert str(split.keys[0]) in done.stderr
    assert "shards.verify" in done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith(("adadf_dist.train:", "adadf_dist.train["))]
    assert len(ours) == 2, done.stderr
    replacing = train_forked({**values, "data.max_bad_samples": "9", "epochs": "1"}, 2, timeout=60)
    assert replacing.returncode == 0, replacing.stderr
    assert replacing.stderr.count(f"sample {split.keys[0]} (train split)") == 1
    (record,) = records(tmp_path / "out", "epoch")
    assert record["num_replaced_samples"] == 1


def test_ctrl_c_twice_stops_at_once(faces: Path, tmp_path: Path) -> None:
    """The second signal, later than a launcher's echo of the first, does not wait for a step."""
    script = (
        "import os, signal, time\n"
        "from adadf_dist.distributed.world import init_world\n"
        "with init_world() as world:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert world.should_stop()\n"
        "    time.sleep(2.2)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(30)\n"
    )
    done = finish([sys.executable, "-c", script], timeout=30)
    assert done.returncode == 130
