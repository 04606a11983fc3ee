"""Advice of the diagnostics: it never repeats a set value and never names an invalid one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from adadf_dist import diagnostics
from adadf_dist.config.keys import flatten
from adadf_dist.config.load import to_dict
from adadf_dist.config.schema import Config
from adadf_dist.config.validate import validate
from tests.helpers.epoch_records import CONFIG, confusion, found, record, run_of

ASSIGNMENT = re.compile(r"([a-z_]+\.[a-z_]+) = ([\w.-]*\w)")
"""`key = value` in an advice."""


def diverged() -> list[dict[str, Any]]:
    losses = [1.5, 1.0, 1.0, 1.02, 1.05, 1.1]
    return [record(epoch, cross_entropy=value) for epoch, value in enumerate(losses, start=1)]


UNHEALTHY = {
    "collapse": run_of(6, confusion([0, 40, 0], [0, 40, 0], [0, 40, 0]), step=2400),
    "dead class": run_of(6, confusion([0, 20, 20], [0, 30, 10], [0, 10, 30])),
    "attention saturated": run_of(6, attention={"mean": 0.97, "std": 0.0}),
    "threshold never met": run_of(6, classes_at_threshold=0, class_mean_target_prob=[0.4, 0.44, 0.42]),
    "threshold always met": run_of(6, classes_at_threshold=3, class_mean_target_prob=[0.8, 0.9, 0.75]),
    "waiting for the loader": run_of(6, data_wait_fraction=0.5),
    "auxiliary branch diverging": diverged(),
    "auxiliary branch behind": run_of(6),
    "overfitting": run_of(3) + [record(epoch, accuracy=0.5) for epoch in (4, 5, 6)],
}
"""Finding -> epochs that show it."""
CONFIGS: dict[str, dict[str, object]] = {
    "paper": {},
    "from scratch": {"optimizer.attention_lr_mult": 0.02, "optimizer.warmup_steps": 0.1},
    "pretrained": {"model.pretrained": "imagenet"},
    "label": {"loss.supervision": "label"},
    "class": {"loss.supervision": "class"},
    "one_hot": {"loss.supervision": "one_hot"},
    "stream": {"data.access": "stream", "data.loader": "torch"},
    "dali": {"data.loader": "dali", "data.sampler": "balanced"},
    "strongest augmentation": {"augment.magnitude": 10.0},
    "standard": {"augment.policy": "torchvision", "augment.magnitude": 29.0},
    "no operations": {"augment.num_ops": 0},
    "one attention": {"loss.lambda_min": 1.0},
    "no groups": {"loss.rank_ratio": 1.0},
    "untrained heads": {"optimizer.attention_lr_mult": 0.0},
    "widest margin": {"loss.rank_margin": 1.0},
    "late": {"loss.epoch_threshold": 3, "epochs": 6},
}


def replace_keys(config: Config, values: Mapping[str, object]) -> Config:
    """`override` without its slow parser; values are validated all the same."""
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        changed = {name: value}
        if section:
            changed = {section: dataclasses.replace(getattr(config, section), **changed)}
        config = dataclasses.replace(config, **changed)  # type: ignore[arg-type]
    validate(config)
    return config


@pytest.mark.parametrize("name", UNHEALTHY)
@pytest.mark.parametrize("base", CONFIGS)
def test_advice_is_new_and_valid(name: str, base: str) -> None:
    """Advice is applied repeatedly: it never names a current value, and every value it names is valid."""
    config = replace_keys(CONFIG, CONFIGS[base])
    for _ in range(12):
        finding = found(UNHEALTHY[name], config, auxiliary_accuracy=0.3).get(name)
        if finding is None:
            return
        assert finding.hint
        now = dict(flatten(to_dict(config)))
        changes = dict(ASSIGNMENT.findall(finding.hint))
        if not changes:
            break
        for key, value in changes.items():
            assert str(now[key]) != value, finding.hint
            assert not isinstance(now[key], float) or float(value) != now[key], finding.hint
        config = replace_keys(config, {key: yaml.safe_load(value) for key, value in changes.items()})
    assert "detach" not in finding.hint or not config.loss.detach_targets
    assert "pretrained" not in finding.hint or not config.model.pretrained
    if name == "waiting for the loader" and config.data.access == "stream":
        assert "dali" not in finding.hint


def test_every_finding_is_among_the_unhealthy_runs() -> None:
    """So that the test above covers every new rule."""
    for name, records in UNHEALTHY.items():
        assert name in found(records, auxiliary_accuracy=0.3)
    source = Path(diagnostics.__file__).parent.glob("*.py")
    named = {name for path in source for name in re.findall(r'Finding\(\s*f?"([^"]+)"', path.read_text())}
    varying = {"threshold {'hardly ever' if any(late) else 'never'} met"}
    assert named - varying - UNHEALTHY.keys() <= {"replaced samples"}, "its advice has no value"
