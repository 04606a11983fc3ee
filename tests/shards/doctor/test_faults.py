"""The doctor on trees with injected faults finds each of them and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from adadf_dist.data.dataset import open_dataset
from shards.build import build, parse_arguments
from tests.helpers.doctor_output import DoctorOutput, same_groups


def test_every_injected_fault_is_found_and_no_other(faulty: tuple[DoctorOutput, dict[str, list[set[str]]]]) -> None:
    output, faults = faulty
    assert same_groups(output.groups("leaks", "exact"), faults["exact across"])
    assert same_groups(output.groups("leaks", "near"), faults["near across"])
    assert same_groups(output.groups("leaks", "mirrored"), faults["mirrored across"])
    assert same_groups(output.groups("duplicates"), faults["relabeled"])
    assert same_groups(output.groups("labels"), faults["relabeled"])
    assert same_groups(output.groups("blank"), faults["blank"])
    assert same_groups(output.groups("tiny"), faults["tiny"])
    assert same_groups(output.groups("unreadable"), faults["unreadable"])
    assert same_groups(output.groups("suspicious"), faults["suspicious"])
    assert output.status == 2


def test_leaks_name_both_splits_and_their_count(faulty: tuple[DoctorOutput, dict[str, list[set[str]]]]) -> None:
    output, _ = faulty
    [exact] = [finding for finding in output.findings("leaks") if "exact" in finding["message"]]
    assert (exact["severity"], exact["location"]) == ("error", "train")
    assert "3 faces" in exact["message"]
    assert "test" in exact["message"]
    for group in exact["groups"]:
        assert {sample["split"] for sample in group["faces"]} == {"train", "test"}
    [conflict] = output.findings("labels")
    for group in conflict["groups"]:
        assert len({sample["class"] for sample in group["faces"]}) == 2


def test_reasons_are_explained(faulty: tuple[DoctorOutput, dict[str, list[set[str]]]]) -> None:
    output, faults = faulty
    notes = {
        group["faces"][0]["name"]: group["note"]
        for check in ("unreadable", "suspicious")
        for finding in output.findings(check)
        for group in finding["groups"]
    }
    assert "empty file" in notes["train/happy/empty.jpg"]
    [renamed] = faults["suspicious"][0]
    assert "contains PNG data" in notes[renamed]
    assert not any("0x" in note for note in notes.values()), "no addresses of objects"


def test_clean_tree_has_no_findings(clean: Path, tmp_path: Path) -> None:
    output = DoctorOutput(clean, tmp_path)
    reported = [finding for finding in output.json["findings"] if finding["severity"] != "ok"]
    # 30 and 60 samples of 7 classes are few, and synthetic faces are no published dataset: both are reported.
    assert {finding["check"] for finding in reported} <= {"classes", "dataset"}
    assert {finding["severity"] for finding in reported} == {"info"}
    assert output.status == 0


def test_workers_do_not_change_the_report(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    one = DoctorOutput(clean, tmp_path)
    assert DoctorOutput(clean, tmp_path / "two", "--num-workers", "2").json == one.json


def test_dataset_folder_with_leaks_kept_and_dropped(clean: Path, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    shutil.copytree(clean, root)
    for path in sorted((root / "train").glob("*/*"))[:4]:
        shutil.copy(path, root / "test" / path.parent.name / f"copy-{path.name}")
    for name, option, status in (("kept", ["--keep-leaks"], 2), ("dropped", [], 0)):
        words = ["folder", "--root", str(root), "--out", str(tmp_path / name), "--num-workers", "1", *option]
        build(parse_arguments(words))
        output = DoctorOutput(tmp_path / name, tmp_path)
        assert output.status == status
        assert output.json["kind"] == "dataset folder"
        assert len(output.groups("leaks")) == (4 if name == "kept" else 0)
    assert ["4 leaks" in finding["message"] for finding in output.findings("builder")] == [True]


def test_missing_splits_and_classes_are_found(clean: Path, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    shutil.copytree(clean / "train", root / "train")
    shutil.copytree(clean / "validation", root / "validation")
    shutil.rmtree(root / "validation" / "fear")
    output = DoctorOutput(root, tmp_path)
    [missing] = output.findings("splits")
    assert (missing["severity"], "test" in missing["message"]) == ("warning", True)
    assert [finding["location"] for finding in output.findings("classes", "info")] == ["validation"]
    assert output.status == 1


def test_gray_train_and_color_test_are_found(clean: Path, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    shutil.copytree(clean, root)
    for path in (root / "train").glob("*/*.png"):
        Image.open(path).convert("L").save(path)
    output = DoctorOutput(root, tmp_path)
    [gray] = output.findings("color")
    assert gray["severity"] == "warning"
    assert "train 100.0%" in gray["message"]
    assert "test 0.0%" in gray["message"]


def test_unreadable_image_in_a_dataset_folder_is_found(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path / "faces")
    split = open_dataset(faces).split("test")
    encoded = bytes(split.read(3))
    tar = next((tmp_path / "faces").glob("test-*.tar"))
    tar.write_bytes(tar.read_bytes().replace(encoded, b"\xff" * len(encoded)))
    output = DoctorOutput(tmp_path / "faces", tmp_path)
    assert output.groups("unreadable") == [{str(split.keys[3])}]
    assert output.status == 2
