"""FER2013 and FER+: labels, votes, splits and leaks against a naive recomputation, and every bad file."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from adadf_dist.data.dataset import Dataset
from adadf_dist.errors import UserError
from shards.duplicates import hold_out_splits
from shards.sources.fer2013 import Fer2013Options, label_faces, read_fer2013
from tests.helpers.dataset_builds import ROOT, facts, findings, pixels, places, run_build, tree

FER2013 = ROOT.parent / "shared" / "data" / "fer2013"
FER = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
FERPLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
FER_AS_FERPLUS = {"angry": "anger", "happy": "happiness", "sad": "sadness"}


# The published FER2013


@pytest.fixture(scope="module")
def mini() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The rows of the two small files, read with csv alone."""
    if not (FER2013 / "mini_fer2013.csv.gz").is_file():
        pytest.skip("needs FER2013 in ../shared, which is absent")
    with gzip.open(FER2013 / "mini_fer2013.csv.gz", "rt") as stream:
        faces = list(csv.DictReader(stream))
    with (FER2013 / "mini_fer2013new.csv").open() as stream:
        return faces, list(csv.DictReader(stream))


MINI = ("--csv", FER2013 / "mini_fer2013.csv.gz", "--ferplus", FER2013 / "mini_fer2013new.csv")


@pytest.fixture(scope="module")
def ferplus(mini: object, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return run_build("fer2013", tmp_path_factory.mktemp("fer") / "ferplus", *MINI, "--samples-per-shard", 100)


def test_ferplus_labels_votes_and_leaks_equal_a_naive_count(
    ferplus: Dataset, mini: tuple[list[dict[str, str]], list[dict[str, str]]]
) -> None:
    faces, votes = mini
    expected: dict[int, int] = {}
    for row, cells in enumerate(votes):
        counts = [int(cells[name]) for name in FERPLUS]
        if sum(counts):
            expected[row] = counts.index(max(counts))
    test = {row for row in expected if faces[row]["Usage"] == "PublicTest"}
    test_pixels = {faces[row]["pixels"] for row in test}
    leaks = {row for row in expected if row not in test and faces[row]["pixels"] in test_pixels}
    assert leaks, "the small files are known to hold leaks"
    stored = places(ferplus)
    assert {source.split()[-1] for source in stored} == {str(row) for row in expected.keys() - leaks}
    for row in expected.keys() - leaks:
        split, label = stored[f"mini_fer2013.csv.gz row {row}"]
        assert label == expected[row]
        assert (split == "test") == (row in test)
    assert findings(ferplus)["leaks_dropped"] == len(leaks)
    with (ferplus.folder / "leaks.csv").open() as stream:
        listed = [line["source"] for line in csv.DictReader(stream)]
    assert sorted(listed) == sorted(f"mini_fer2013.csv.gz row {row}" for row in leaks)


def label_by_ferplus_rule(cells: dict[str, str]) -> str | None:
    """The rule of FER+'s authors, written out for one face; None if the face is dropped."""
    counts = {name: int(cells[name]) for name in (*FERPLUS, "unknown", "NF")}
    counts = {name: count for name, count in counts.items() if count > 1}
    winners = [name for name, count in counts.items() if count > sum(counts.values()) / 2]
    return winners[0] if winners and winners[0] in FERPLUS else None


def test_label_rule_of_the_ferplus_authors_equals_a_naive_count(
    mini: tuple[list[dict[str, str]], list[dict[str, str]]], tmp_path: Path
) -> None:
    faces, votes = mini
    dataset = run_build("fer2013", tmp_path / "rule", *MINI, "--label-rule", "ferplus", "--keep-leaks")
    names = {row: label_by_ferplus_rule(cells) for row, cells in enumerate(votes)}
    expected = {row: FERPLUS.index(name) for row, name in names.items() if name is not None}
    assert {int(source.split()[-1]): label for source, (_, label) in places(dataset).items()} == expected
    usages = Counter(faces[row]["Usage"] for row in expected)
    assert findings(dataset)["labeled"] == {"train": usages["Training"], "test": usages["PublicTest"]}
    assert findings(dataset)["dropped_without_majority"] == len(votes) - len(expected)
    options = dataset.manifest.provenance["options"]
    assert isinstance(options, dict)
    assert options["label_rule"] == "ferplus"


def test_label_rule_of_the_ferplus_authors_keeps_the_published_numbers() -> None:
    """The authors' code keeps 25,060 of all Training and 3,199 of all PublicTest faces."""
    if not (FER2013 / "fer2013new.csv").is_file():
        pytest.skip("needs FER2013 in ../shared, which is absent")
    with (FER2013 / "fer2013new.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    votes = np.array([[int(cells[name]) for name in (*FERPLUS, "unknown", "NF")] for cells in rows])
    labels, kept = label_faces(votes, "ferplus")
    assert Counter(cells["Usage"] for cells, is_kept in zip(rows, kept, strict=True) if is_kept) == {
        "Training": 25_060,
        "PublicTest": 3_199,
    }
    assert (labels[kept] == label_faces(votes, "majority")[0][kept]).all()


@pytest.mark.slow
def test_ferplus_rule_drops_copies_of_test_faces_after_counting() -> None:
    if not (FER2013 / "fer2013.csv.gz").is_file():
        pytest.skip("needs FER2013 in ../shared, which is absent")
    files = (FER2013 / "fer2013.csv.gz", FER2013 / "fer2013new.csv")
    source = read_fer2013(Fer2013Options(*files, "ferplus", "ferplus"))
    stored = source.splits.items()
    assert source.provenance.stats["labeled"] == {"train": 25_060, "test": 3_199}
    pixels_of = [image.tobytes() for image in source.faces.pixels]
    all_test = {pixels_of[row] for row, usage in enumerate(source.faces.usages) if usage == "PublicTest"}
    test = {pixels_of[row] for row, split in stored if split == "test"}
    labeled = label_faces(np.asarray(source.all_votes), "ferplus")[1]
    copies = sum(
        usage == "Training" and bool(labeled[row]) and pixels_of[row] in test
        for row, usage in enumerate(source.faces.usages)
    )
    training = [row for row, split in stored if split != "test"]
    assert len(training) == 25_060 - copies
    assert not any(pixels_of[row] in all_test for row in training), "may be tested by either rule"


def test_ferplus_votes_and_pixels_equal_the_row(
    ferplus: Dataset, mini: tuple[list[dict[str, str]], list[dict[str, str]]]
) -> None:
    faces, votes = mini
    for name in ferplus.splits:
        split, output = ferplus.split(name), facts(ferplus, name)
        assert split.votes is not None
        for sample, key in enumerate(split.keys):
            row = int(output[key]["source"].split()[-1])
            assert split.votes[sample].tolist() == [int(votes[row][column]) for column in FERPLUS]
            assert output[key]["fer_emotion"] == FER[int(faces[row]["emotion"])]
            assert output[key]["all_votes"]["NF"] == int(votes[row]["NF"])
            image = pixels(split, sample)
            assert image.shape == (48, 48)
            original = np.array(faces[row]["pixels"].split(), dtype=int).reshape(48, 48)
            assert np.abs(image - original).max() <= 2, "JPEG at quality 100 changes next to nothing"


def test_validation_is_a_tenth_of_each_class_without_duplicates(ferplus: Dataset) -> None:
    train, validation = ferplus.split("train"), ferplus.split("validation")
    for label in range(len(FERPLUS)):
        of_class = [int((split.labels == label).sum()) for split in (train, validation)]
        assert abs(of_class[1] - 0.1 * sum(of_class)) <= 1.5, "rounded, and at most one twin more"
    images = [{bytes(split.read(sample)) for sample in range(len(split))} for split in (train, validation)]
    assert not images[0] & images[1]


def test_fer_labels_keep_every_row_and_map_the_votes(
    mini: tuple[list[dict[str, str]], list[dict[str, str]]], tmp_path: Path
) -> None:
    faces, votes = mini
    dataset = run_build("fer2013", tmp_path / "fer", *MINI, "--labels", "fer", "--keep-leaks")
    assert dataset.classes == FER
    assert sum(info.samples for info in dataset.splits.values()) == len(faces)
    assert findings(dataset)["leaks_dropped"] == 0
    assert findings(dataset)["leaks"] == {"train face also in test": 2}
    split, output = dataset.split("test"), facts(dataset, "test")
    assert split.votes is not None
    for sample, key in enumerate(split.keys):
        row = int(output[key]["source"].split()[-1])
        assert split.labels[sample] == int(faces[row]["emotion"])
        assert split.votes[sample].tolist() == [int(votes[row][FER_AS_FERPLUS.get(name, name)]) for name in FER]


def test_bytes_do_not_depend_on_workers(ferplus: Dataset, tmp_path: Path) -> None:
    again = run_build("fer2013", tmp_path / "ferplus", *MINI, "--samples-per-shard", 100, workers=3)
    assert tree(again.folder) == tree(ferplus.folder)


# Handmade FER2013 files


def face(value: int) -> str:
    return " ".join([str(value)] * 2304)


def write_csv(folder: Path, rows: Sequence[tuple[object, ...]], header: str = "emotion,pixels,Usage") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "fer2013.csv"
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def write_votes(folder: Path, rows: Sequence[tuple[str, Sequence[int]]]) -> None:
    lines = [f"{usage},x.png,{','.join(map(str, counts))}" for usage, counts in rows]
    header = f"Usage,Image name,{','.join(FERPLUS)},unknown,NF"
    (folder / "fer2013new.csv").write_text("\n".join([header, *lines]) + "\n")


GOOD = [(n % 7, face(n), "Training" if n < 28 else "PublicTest") for n in range(35)]


def build_fer(folder: Path, *options: object) -> Dataset:
    return run_build("fer2013", folder.parent / "out", "--root", folder, "--labels", "fer", *options)


def test_private_test_makes_public_test_the_validation_split(tmp_path: Path) -> None:
    rows = [(0, face(1), "Training"), (1, face(2), "PublicTest"), (2, face(3), "PrivateTest"), (3, face(4), "Training")]
    dataset = build_fer(write_csv(tmp_path / "fer", rows).parent)
    assert places(dataset) == {
        "fer2013.csv row 0": ("train", 0),
        "fer2013.csv row 1": ("validation", 1),
        "fer2013.csv row 2": ("test", 2),
        "fer2013.csv row 3": ("train", 3),
    }


def test_leaked_sample_is_dropped_from_train(tmp_path: Path) -> None:
    rows = [
        *[(0, face(1), "Training"), (0, face(2), "Training"), (0, face(3), "Training"), (1, face(9), "Training")],
        *[(0, face(2), "PublicTest"), (0, face(4), "PublicTest"), (1, face(5), "PublicTest")],
        *[(0, face(3), "PrivateTest"), (6, face(4), "PrivateTest"), (6, face(4), "PrivateTest")],
    ]
    dataset = build_fer(write_csv(tmp_path / "fer", rows).parent)
    kept = {int(source.split()[-1]): split for source, (split, _) in places(dataset).items()}
    assert kept == {0: "train", 3: "train", 4: "validation", 6: "validation", 7: "test", 8: "test", 9: "test"}
    assert findings(dataset)["leaks"] == {
        "train face also in test": 1,
        "train face also in validation": 1,
        "validation face also in test": 1,
    }
    with (dataset.folder / "leaks.csv").open() as stream:
        lines = [
            (line["source"], line["class"], line["duplicate_source"], line["duplicate_class"])
            for line in csv.DictReader(stream)
        ]
    assert lines == [
        ("fer2013.csv row 1", "angry", "fer2013.csv row 4", "angry"),
        ("fer2013.csv row 2", "angry", "fer2013.csv row 7", "angry"),
        ("fer2013.csv row 5", "angry", "fer2013.csv row 8", "neutral"),
    ]


def test_duplicates_and_conflicts_are_counted(tmp_path: Path) -> None:
    rows = [
        *[(0, face(1), "Training"), (0, face(1), "Training"), (0, face(2), "Training"), (3, face(2), "Training")],
        *[(5, face(2), "Training"), (4, face(3), "Training"), (4, face(4), "PublicTest"), (4, face(4), "PublicTest")],
    ]
    rows.append((4, face(7), "PrivateTest"))
    dataset = build_fer(write_csv(tmp_path / "fer", rows).parent)
    duplicates = findings(dataset)["duplicates"]
    assert duplicates["train"] == {"groups": 2, "faces": 5, "conflicting_groups": 1, "conflicting_faces": 3}
    assert duplicates["validation"] == {"groups": 1, "faces": 2, "conflicting_groups": 0, "conflicting_faces": 0}


def test_majority_votes_decide_and_ties_take_the_first_column(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer", [(0, face(n), "Training") for n in range(6)])
    counts = [
        (0, 1, 9, 0, 0, 0, 0, 0, 0, 0),
        (0, 4, 0, 4, 2, 0, 0, 0, 0, 0),  # a tie: happiness comes before sadness
        (0, 0, 0, 0, 0, 0, 0, 1, 9, 0),  # `unknown` does not count
        (0, 0, 0, 0, 0, 0, 0, 0, 4, 6),  # no vote left
        (9, 0, 0, 0, 0, 0, 0, 0, 0, 0),  # nine annotators
        (0, 0, 0, 0, 0, 5, 5, 0, 0, 0),  # a tie: disgust comes before fear
    ]
    write_votes(path.parent, [("Training", row) for row in counts])
    dataset = run_build("fer2013", tmp_path / "out", "--root", path.parent, "--validation-fraction", 0.01)
    labels = {int(source.split()[-1]): FERPLUS[label] for source, (_, label) in places(dataset).items()}
    assert labels == {0: "surprise", 1: "happiness", 2: "contempt", 4: "neutral", 5: "disgust"}
    assert (findings(dataset)["dropped_without_votes"], findings(dataset)["tied_votes"]) == (1, 2)


RULE_CASES = {
    (0, 1, 9, 0, 0, 0, 0, 0, 0, 0): "surprise",
    (0, 5, 0, 4, 1, 0, 0, 0, 0, 0): "happiness",  # 5 of 9: the single vote does not count
    (0, 5, 0, 3, 2, 0, 0, 0, 0, 0): None,  # 5 of 10 is not more than half
    (0, 4, 0, 4, 2, 0, 0, 0, 0, 0): None,  # a tie
    (4, 0, 0, 0, 0, 0, 0, 0, 3, 3): None,  # votes for `unknown` and `NF` are in the total
    (0, 0, 0, 4, 1, 1, 1, 1, 1, 1): "sadness",  # 4 of 4
    (0, 0, 0, 0, 0, 0, 0, 2, 8, 0): None,  # `unknown` wins
    (0, 0, 0, 0, 0, 0, 0, 4, 0, 6): None,  # not a face
    (1, 1, 1, 1, 1, 1, 1, 1, 1, 1): None,  # no vote remains
    (9, 0, 0, 0, 0, 0, 0, 0, 0, 0): "neutral",  # nine annotators
}


def test_rule_of_the_ferplus_authors_requires_more_than_half_of_the_repeated_votes(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer", [(0, face(n), "Training") for n in range(len(RULE_CASES))])
    write_votes(path.parent, [("Training", row) for row in RULE_CASES])
    options = ("--label-rule", "ferplus", "--validation-fraction", 0.01)
    dataset = run_build("fer2013", tmp_path / "out", "--root", path.parent, *options)
    labels = {int(source.split()[-1]): FERPLUS[label] for source, (_, label) in places(dataset).items()}
    assert labels == {row: name for row, name in enumerate(RULE_CASES.values()) if name is not None}
    assert (findings(dataset)["dropped_without_majority"], findings(dataset)["tied_votes"]) == (6, 0)


@pytest.mark.parametrize("rule", ["majority", "ferplus"])
def test_label_rule_without_votes_is_one_line(tmp_path: Path, rule: str) -> None:
    path = write_csv(tmp_path / "fer", GOOD)
    with pytest.raises(UserError, match=r"^--label-rule has no effect with --labels fer[^\n]*$"):
        build_fer(path.parent, "--label-rule", rule)


def test_columns_may_be_in_any_order(tmp_path: Path) -> None:
    rows = [(usage, emotion, text) for emotion, text, usage in GOOD]
    path = write_csv(tmp_path / "fer", rows, header="Usage, emotion, pixels")
    assert sum(info.samples for info in build_fer(path.parent).splits.values()) == len(GOOD)


def change_row(number: int, *cells: object) -> list[tuple[object, ...]]:
    return [*GOOD[:number], cells, *GOOD[number + 1 :]]


BAD_CSVS: dict[str, tuple[list[tuple[object, ...]], str]] = {
    "pixel missing": (change_row(3, 0, face(1)[2:], "Training"), r"line 5: 2,303 pixels, expected 48 x 48 = 2,304"),
    "pixel too bright": (
        change_row(3, 0, face(256), "Training"),
        r"line 5: pixels must be integers from 0 to 255",
    ),
    "pixel no number": (change_row(0, 0, face(1) + "x", "Training"), r"line 2: pixels must be integers"),
    "emotion unknown": (change_row(4, 7, face(1), "Training"), r"line 6: emotion '7' is unknown; known: 0 angry"),
    "emotion no number": (change_row(4, "joy", face(1), "Training"), r"line 6: emotion 'joy' is unknown"),
    "usage unknown": (change_row(5, 0, face(1), "Test"), r"line 7: Usage 'Test' is unknown; known: Training"),
    "cell missing": (change_row(5, 0, face(1)), r"line 7: 2 cells, but the header has 3"),
    "no rows": ([], r"contains no faces"),
    "no training face": ([row for row in GOOD if row[2] == "PublicTest"], r"no training samples"),
}


@pytest.mark.parametrize(("rows", "line"), BAD_CSVS.values(), ids=BAD_CSVS)
def test_bad_csv_is_one_line(tmp_path: Path, rows: list[tuple[object, ...]], line: str) -> None:
    path = write_csv(tmp_path / "fer", rows)
    with pytest.raises(UserError, match=line) as error:
        build_fer(path.parent)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_wrong_header_is_one_line(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer", GOOD, header="label,pixels,Usage")
    with pytest.raises(UserError, match=r"line 1: no column emotion; the header has label, pixels, Usage.*right file"):
        build_fer(path.parent)


def test_missing_csv_error_lists_expected_and_found_files(tmp_path: Path) -> None:
    (tmp_path / "fer").mkdir()
    (tmp_path / "fer" / "faces.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"expected one of fer2013\.csv, .* found faces\.txt; pass the file as --csv"):
        build_fer(tmp_path / "fer")


def test_two_csvs_are_ambiguous(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer", GOOD)
    path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=r"contains fer2013\.csv and fer2013\.csv\.gz; pass one"):
        build_fer(path.parent)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no gzip" + data])
def test_damaged_gzip_is_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    data = write_csv(tmp_path / "fer", GOOD).read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(damage(gzip.compress(data)))
    with pytest.raises(UserError, match=r"cut\.csv\.gz: corrupt gzip file"):
        run_build("fer2013", tmp_path / "out", "--csv", tmp_path / "cut.csv.gz", "--labels", "fer")


def test_votes_must_list_the_same_samples(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer", GOOD)
    votes = [(usage, [10] + [0] * 9) for _, _, usage in GOOD]
    write_votes(path.parent, votes[:-1])
    with pytest.raises(UserError, match=r"fer2013new\.csv: 34 rows, but fer2013\.csv has 35"):
        build_fer(path.parent)
    write_votes(path.parent, [*votes[1:], votes[0]])
    with pytest.raises(UserError, match=r"line 29: Usage 'PublicTest', but fer2013\.csv has 'Training'"):
        build_fer(path.parent)
    write_votes(path.parent, [("Training", [-1] + [0] * 9), *votes[1:]])
    with pytest.raises(UserError, match=r"line 2: votes must not be negative"):
        build_fer(path.parent)


def test_ferplus_labels_need_the_votes(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer", GOOD)
    with pytest.raises(UserError, match=r"--labels ferplus needs fer2013new\.csv"):
        run_build("fer2013", tmp_path / "out", "--root", path.parent)


# Held-out splits


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_shares_are_exact_and_keep_duplicates_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    faces = rng.integers(0, 600, 1000).tolist()  # many duplicates
    labels = [content % 3 if content % 10 else int(rng.integers(3)) for content in faces]  # some in conflict
    digests = [str(content).encode() for content in faces]
    held_out = hold_out_splits(range(1000), digests, labels, {"test": 0.2, "validation": 0.1}, seed)
    homes: dict[int, set[str]] = {}
    for number, content in enumerate(faces):
        homes.setdefault(content, set()).add(held_out.get(number, "train"))
    assert all(len(home) == 1 for home in homes.values())
    first_label = {content: labels[faces.index(content)] for content in set(faces)}
    most_duplicates = max(Counter(faces).values())
    for label in range(3):
        of_class = [number for number, content in enumerate(faces) if first_label[content] == label]
        for split, fraction in (("test", 0.2), ("validation", 0.1)):
            got = sum(held_out.get(number) == split for number in of_class)
            assert 0 <= got - round(fraction * len(of_class)) < most_duplicates
    assert hold_out_splits(range(1000), digests, labels, {"test": 0.2, "validation": 0.1}, seed + 7) != held_out
