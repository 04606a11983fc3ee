"""Search spaces: sampling, and what is rejected before any trial starts."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from adadf_dist.errors import UserError
from tests.helpers.fake_trainer import base
from tune.study.asha import plan_halving
from tune.study.space import SPACES, open_space, read_space

MIXED: dict[str, object] = {
    "loss.lambda_min": {"uniform": [0.1, 0.4]},
    "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
    "batch_size": {"grid": [16, 32, 64]},
    "optimizer.schedule": {"choice": ["exponential", "cosine"]},
    "optimizer.lr_gamma": {"choice": [0.8, 0.9], "when": {"optimizer.schedule": "exponential"}},
}


def test_samples_cover_their_domains() -> None:
    space = read_space("mixed", MIXED, base())
    drawn = [space.sample(0, number) for number in range(300)]
    lambdas = sorted(values["loss.lambda_min"] for values in drawn)
    assert 0.1 <= lambdas[0] < 0.11 and 0.39 < lambdas[-1] < 0.4
    below = sum(math.log10(values["optimizer.lr"]) < -3 for values in drawn)
    assert 120 < below < 180  # half of a logarithmic range is below its geometric mean
    assert Counter(values["batch_size"] for values in drawn) == {16: 100, 32: 100, 64: 100}
    for values in drawn:
        assert ("optimizer.lr_gamma" in values) == (values["optimizer.schedule"] == "exponential")


def test_sample_depends_only_on_seed_and_index() -> None:
    space = read_space("mixed", MIXED, base())
    assert space.sample(3, 7) == read_space("mixed", MIXED, base()).sample(3, 7)
    assert space.sample(3, 7) != space.sample(4, 7) != space.sample(4, 8)


@pytest.mark.parametrize("name", list(SPACES))
def test_included_spaces_are_valid(name: str) -> None:
    space = open_space(name, base())
    assert set(space.domains) == set(SPACES[name])
    assert read_space(name, space.to_dict(), base()).domains == space.domains


def test_file_may_nest_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[loss]\nlambda_min = { uniform = [0.0, 0.5] }\n[optimizer]\nlr.loguniform = [1e-4, 1e-2]\n"
        'schedule.choice = ["cosine", "exponential"]\n'
        'gamma = { choice = [0.8, 0.9], when = { optimizer = { schedule = "exponential" } } }\n'
    )
    space = open_space(str(path), base())
    assert set(space.domains) == {
        "loss.lambda_min",
        "optimizer.lr",
        "optimizer.schedule",
        "optimizer.lr_gamma",
    }
    assert space.domains["optimizer.lr_gamma"].when == {"optimizer.schedule": "exponential"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty; add"]),
        ('"loss.lamda_min" = { uniform = [0, 1] }', ["loss.lamda_min", "unknown key", "loss.lambda_min"]),
        ('"loss.lambda_min" = { uniform = [0.0, 1.7] }', ["loss.lambda_min", "1.7"]),
        ('"loss.lambda_min" = { uniform = [0.4, 0.1] }', ["loss.lambda_min", "low < high"]),
        ('"optimizer.lr" = { loguniform = [0.0, 0.1] }', ["optimizer.lr", "above 0"]),
        ('"optimizer.lr" = { normal = [0.0, 0.1] }', ["optimizer.lr", "uniform, loguniform, choice, grid", "normal"]),
        ('"optimizer.lr" = { choice = [] }', ["optimizer.lr", "must be a list"]),
        ('"optimizer.lr" = 0.1', ["optimizer.lr = 0.1", "uniform, loguniform"]),
        ('"batch_size" = { uniform = [16, 64] }', ["batch_size"]),
        ('"model.backbone" = { choice = ["resnet18", "vgg"] }', ["model.backbone", "vgg"]),
        (
            '"optimizer.schedule" = { choice = ["cosine"] }\n'
            '"optimizer.lr_gamma" = { choice = [0.8], when = { "optimizer.schedule" = "exponential" } }',
            ["optimizer.lr_gamma", "never happens"],
        ),
        ('"loss.lambda_min" = { uniform = [0, 1', ["does not parse"]),
        ('"evaluation.protocol" = { choice = ["clean", "paper"] }', ["evaluation.protocol", "cannot be searched"]),
        ('"epochs" = { choice = [4, 8] }', ["epochs", "cannot be searched"]),
    ],
)
def test_invalid_space_is_one_line(tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "space.toml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        open_space(str(path), base())
    message = str(caught.value)
    assert "\n" not in message and "space.toml" in message
    assert all(word in message for word in words), message


def test_missing_space_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean .?paper"):
        open_space("papr", base())
    with pytest.raises(UserError, match="no such file"):
        open_space(str(tmp_path / "none.toml"), base())


def test_key_order_does_not_matter() -> None:
    """A resumed search draws the same samples, however its space file is ordered."""
    turned = dict(reversed(MIXED.items()))
    one, other = read_space("a", MIXED, base()), read_space("b", turned, base())
    for number in range(1, 20):
        assert one.sample(0, number) == other.sample(0, number)


def test_conditions_may_be_nested() -> None:
    chain: dict[str, object] = {
        "optimizer.ema_decay": {"choice": [0.9, 0.99], "when": {"optimizer.warmup_steps": 100}},
        "optimizer.warmup_steps": {"choice": [0, 100], "when": {"optimizer.schedule": "cosine"}},
        "optimizer.schedule": {"choice": ["exponential", "cosine"]},
    }
    space = read_space("chain", chain, base())
    kinds = Counter(tuple(sorted(space.sample(0, number))) for number in range(200))
    schedule, warmup, ema = "optimizer.schedule", "optimizer.warmup_steps", "optimizer.ema_decay"
    assert set(kinds) == {(schedule,), (schedule, warmup), (ema, schedule, warmup)}


def test_grace_is_twice_the_largest_epoch_threshold() -> None:
    """A trial with E = 5 still ramps its losses when one with E = 1 has finished."""
    config = base(epochs=40)
    space = read_space("test", {"loss.epoch_threshold": {"choice": [1, 5]}}, config)
    assert plan_halving(space, config, None, 3).rungs == [10, 30]
    assert plan_halving(space, config, 12, 2).rungs == [12, 24]
    with pytest.raises(UserError, match=r"--grace-period 9: must be at least 10, .*loss\.epoch_threshold \(5\)"):
        plan_halving(space, config, 9, 3)
    conditional: dict[str, object] = {
        "loss.epoch_threshold": {"choice": [1, 3], "when": {"optimizer.schedule": "cosine"}},
        "optimizer.schedule": {"choice": ["exponential", "cosine"]},
    }
    ten = base(epochs=40, loss__epoch_threshold=10)
    assert plan_halving(read_space("test", conditional, ten), ten, None, 3).grace == 20
    fixed = read_space("test", {"loss.lambda_min": {"uniform": [0.0, 0.5]}}, config)
    assert plan_halving(fixed, config, None, 3).grace == 2
    with pytest.raises(UserError, match="--reduction-factor 1"):
        plan_halving(fixed, config, None, 1)


def test_a_space_with_keys_of_version_0_1_samples_the_same_values() -> None:
    old = read_space(
        "old",
        {
            "augment.policy": {"choice": ["published", "standard"]},
            "augment.operations": {"choice": [1, 2, 3], "when": {"augment.policy": "standard"}},
        },
        base(),
    )
    assert list(old.domains) == ["augment.policy", "augment.num_ops"]
    assert old.domains["augment.policy"].values == ("paper", "torchvision")
    assert old.domains["augment.num_ops"].when == {"augment.policy": "torchvision"}
    # sampled by version 0.1 with seed 3, numbers 1 to 8
    assert [old.sample(3, number).get("augment.num_ops") for number in range(1, 9)] == [None, None, 1, 2, 2, 2, 2, None]
