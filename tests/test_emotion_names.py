"""One table of emotion names for readers, evaluation, audit and diagnosis."""

from __future__ import annotations

from pathlib import Path

import pytest

from adadf_dist.errors import UserError
from adadf_dist.evaluate.class_mapping import read_mapping
from benchmarks import reference_labels
from shards.doctor import releases
from shards.sources import emotions

PAIRS = [
    ("Happiness", "happy"), ("joy", "happy"), ("angry", "anger"), ("sadness", "sad"), ("afraid", "fear"),
    ("fearful", "fear"), ("surprised", "surprise"), ("disgusted", "disgust"), ("neutrality", "neutral"),
    ("contemptuous", "contempt"),
]  # fmt: skip
OURS = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")


@pytest.mark.parametrize(("other", "name"), PAIRS)
def test_all_places_know_the_same_names(other: str, name: str, tmp_path: Path) -> None:
    place = OURS.index(name)
    assert emotions.find_label(other, OURS) == place
    assert reference_labels.find_class(other, OURS) == place
    assert releases.plain_name(other) == releases.plain_name(name)
    (tmp_path / "m.toml").write_text(f'{name} = "{other}"\n')
    assert read_mapping(tmp_path / "m.toml", (other,), OURS) == {other: name}


def test_names_of_no_emotion_keep_their_own() -> None:
    assert emotions.find_label("bored", OURS) is None
    assert emotions.find_label("\u00b2", OURS) is None  # a superscript two: a digit, but no number
    assert reference_labels.find_class("bored", ("Bored",)) == 0


def test_a_class_mapped_twice_under_two_names(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text('happy = "happy"\njoy = "sad"\n')
    with pytest.raises(UserError, match="happy is mapped twice"):
        read_mapping(tmp_path / "m.toml", ("happy",), OURS)
