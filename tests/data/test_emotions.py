"""One table of emotion names for sources, evaluation, audit and the doctor."""

from __future__ import annotations

from pathlib import Path

import pytest

from adadf_dist.data import emotions
from adadf_dist.errors import UserError
from adadf_dist.evaluate.class_mapping import read_mapping
from benchmarks import reference_labels
from shards.doctor import releases

PAIRS = [
    ("Happiness", "happy"), ("joy", "happy"), ("angry", "anger"), ("sadness", "sad"), ("afraid", "fear"),
    ("fearful", "fear"), ("surprised", "surprise"), ("disgusted", "disgust"), ("neutrality", "neutral"),
    ("contemptuous", "contempt"),
]  # fmt: skip
OURS = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")


@pytest.mark.parametrize(("other", "name"), PAIRS)
def test_all_commands_know_the_same_emotion_names(other: str, name: str, tmp_path: Path) -> None:
    place = OURS.index(name)
    assert emotions.find_label(other, OURS) == place
    assert reference_labels.find_class(other, OURS) == place
    assert releases.plain_name(other) == releases.plain_name(name)
    (tmp_path / "m.toml").write_text(f'{name} = "{other}"\n')
    assert read_mapping(tmp_path / "m.toml", (other,), OURS) == {other: name}


def test_unknown_emotion_names_are_kept() -> None:
    assert emotions.find_label("bored", OURS) is None
    assert emotions.find_label("\u00b2", OURS) is None  # a superscript two is a digit, but not a number
    assert reference_labels.find_class("bored", ("Bored",)) == 0


def test_class_mapped_twice_under_two_names_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text('happy = "happy"\njoy = "sad"\n')
    with pytest.raises(UserError, match="happy is mapped twice"):
        read_mapping(tmp_path / "m.toml", ("happy",), OURS)
