"""Settings that do not suit the length of a run are found, and the suggested fix resolves each."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from adadf_dist.check.dataset import DatasetInfo, check_schedule
from adadf_dist.checkpoint.compatibility import check_config_compatible
from adadf_dist.config.learning_rate import Position, learning_rate, warmup_steps
from adadf_dist.config.load import ConfigLayer, build_config, load_preset, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.diagnostics.run_length import find_problems, fix_divergence, peak_learning_rate
from adadf_dist.errors import UserError
from adadf_dist.findings import Severity


def preset(name: str, **changed: object) -> Config:
    """A preset with some keys changed; keyword arguments have `__` for the dot."""
    values = {key.replace("__", "."): value for key, value in changed.items()}
    return build_config([load_preset(name), ConfigLayer("test", values)])


SENSELESS: dict[str, tuple[dict[str, Any], int, str]] = {
    "optimizer.warmup_steps": (
        {"optimizer.warmup_steps": 200, "epochs": 2, "loss.epoch_threshold": 1, "optimizer.lr_gamma": 1.0},
        10,
        "10%",
    ),
    "optimizer.scaling_warmup_epochs": (
        {
            "batch_size": 1024,
            "optimizer.lr_scaling": "sqrt",
            "epochs": 4,
            "loss.epoch_threshold": 1,
            "optimizer.scaling_warmup_epochs": 5.0,
        },
        10,
        "4.00",
    ),
    "loss.epoch_threshold": ({"loss.epoch_threshold": 9, "epochs": 8}, 100, "8 epochs"),
    "optimizer.ema_decay": ({"optimizer.ema_decay": 0.999, "epochs": 10}, 40, "1,000 steps"),
    "checkpoint.save_every_steps": ({"checkpoint.save_every_steps": 500, "epochs": 4}, 100, "500"),
    "runtime.stop_check_steps": ({"runtime.stop_check_steps": 500, "epochs": 4}, 100, "500"),
    "runtime.log_every_steps": ({"runtime.log_every_steps": 500, "epochs": 4}, 100, "500"),
    "optimizer.lr_gamma": ({"optimizer.lr_gamma": 0.5}, 100, "epoch 11 of 75"),
}
"""Key -> settings that make no sense, steps in an epoch, and a figure of the message, worked out by hand."""


@pytest.mark.parametrize("key", SENSELESS)
def test_unsuitable_setting_is_found_and_its_fix_resolves_it(key: str) -> None:
    values, steps, figure = SENSELESS[key]
    config = build_config([ConfigLayer("test", values)])
    (problem,) = find_problems(config, steps)
    assert problem.name == key and key in problem.message and figure in problem.message
    assert "\n" not in problem.line
    advised = re.search(rf"set {re.escape(key)} (?:=|to) ([\d.]*\d)", problem.hint)
    assert advised, problem.hint
    fixed = build_config([ConfigLayer("test", values), ConfigLayer("fix", {key: yaml.safe_load(advised[1])})])
    assert find_problems(fixed, steps) == []


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({"optimizer.warmup_steps": 100, "epochs": 3}, 100),  # a third
        ({"optimizer.warmup_steps": 0.33, "epochs": 3}, 100),
        (
            {"optimizer.lr_scaling": "sqrt", "epochs": 3, "optimizer.scaling_warmup_epochs": 2.0},
            100,
        ),  # usual batch
        ({"loss.epoch_threshold": 8, "epochs": 8}, 100),
        ({"loss.epoch_threshold": 9, "epochs": 8, "loss.supervision": "one_hot"}, 100),  # no such loss
        ({"optimizer.ema_decay": 0.99, "epochs": 3}, 100),
        ({"checkpoint.save_every_steps": 400, "epochs": 4}, 100),
        ({"epochs": 1, "loss.epoch_threshold": 1}, 2),  # the default intervals cause no finding
        ({"optimizer.lr_gamma": 0.5, "optimizer.schedule": "cosine"}, 100),
    ],
)
def test_suitable_settings_give_no_finding(values: dict[str, Any], steps: int) -> None:
    assert find_problems(build_config([ConfigLayer("test", values)]), steps) == []


@pytest.mark.parametrize(
    ("name", "samples", "ranks"),
    [
        ("demo", 2400, 1),
        ("fer2013", 25398, 1),
        ("rafdb", 12271 * 9 // 10, 1),
        ("affectnet7", 26621, 1),
        ("affectnet7_large", 26621, 1),
        ("affectnet8", 8 * 3750, 1),
        ("sfew", 891 * 9 // 10, 1),
    ],
)
def test_presets_suit_their_datasets(name: str, samples: int, ranks: int) -> None:
    config = preset(name)
    assert find_problems(config, -(-samples // config.batch_size)) == []


@pytest.mark.parametrize(("name", "steps_per_epoch", "warmup"), [("fer2013", 397, 200), ("demo", 50, 20)])
def test_presets_keep_their_warm_up_steps(name: str, steps_per_epoch: int, warmup: int) -> None:
    """For 25,398 and 2,400 samples, for which the presets had these step counts; a small dataset gets its share."""
    assert warmup_steps(preset(name), steps_per_epoch) == warmup
    small = preset(name, epochs=2, loss__epoch_threshold=2)
    assert warmup_steps(small, 10) == 1 and find_problems(small, 10) == []


@pytest.mark.parametrize(
    ("key", "values", "steps"),
    [
        ("loss.epoch_threshold", {"epochs": 1}, 10),
        ("runtime.log_every_steps", {"epochs": 1, "loss.epoch_threshold": 1, "runtime.log_every_steps": 99}, 1),
    ],
)
def test_no_advice_below_one(key: str, values: dict[str, Any], steps: int) -> None:
    (problem,) = [p for p in find_problems(build_config([ConfigLayer("test", values)]), steps) if p.name == key]
    assert f"set {key} to 1" in problem.hint and "or less" not in problem.hint


def test_small_learning_rate_is_not_rounded_to_zero() -> None:
    """10 of 5,000 warm-up steps; in the second epoch, up to step 20, the cosine has halved the rate."""
    config = preset("fer2013", epochs=2, loss__epoch_threshold=2, optimizer__warmup_steps=5000)
    (problem,) = find_problems(config, 10)
    assert "reaches at most 0.2%" in problem.message


def test_batch_of_all_samples_is_found() -> None:
    values = {"batch_size": 5000, "epochs": 20, "loss.epoch_threshold": 2, "optimizer.lr_gamma": 1.0}
    config = build_config([ConfigLayer("test", values)])
    (problem,) = find_problems(config, 1)
    assert problem.name == "batch_size" and "batch_size = 5000" in problem.message and "20" in problem.message
    assert find_problems(config, 2) == []


def test_fraction_is_of_the_whole_run() -> None:
    """A tenth of 5 epochs of 40 steps: 20 steps in equal increments."""
    config = build_config(
        [ConfigLayer("test", {"optimizer.warmup_steps": "0.1", "epochs": 5, "optimizer.lr_gamma": 1.0})]
    )
    rates = [learning_rate(config, Position(step // 40, step, step / 40, 40)) for step in range(200)]
    expected = [1e-3 * (step + 1) / 20 if step < 20 else 1e-3 for step in range(200)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer.warmup_steps": 300, "epochs": 4, "optimizer.lr_gamma": 0.7},
        {"optimizer.warmup_steps": 0.9, "epochs": 4, "optimizer.schedule": "cosine"},
        {"batch_size": 16, "optimizer.lr_scaling": "linear", "epochs": 4, "optimizer.scaling_warmup_epochs": 3.0},
        {"batch_size": 256, "optimizer.lr_scaling": "sqrt", "epochs": 4, "optimizer.scaling_warmup_epochs": 3.5},
    ],
)
def test_highest_learning_rate_is_reached_by_a_step(values: dict[str, Any]) -> None:
    config = build_config([ConfigLayer("test", values)])
    rates = [learning_rate(config, Position(step // 25, step, step / 25, 25)) for step in range(100)]
    assert peak_learning_rate(config, 25) == max(rates)


@pytest.mark.parametrize("value", [200, "200", 0, 0.05, "0.05"])
def test_steps_and_fractions_round_trip(value: object) -> None:
    config = build_config([ConfigLayer("test", {"optimizer.warmup_steps": value})])
    assert config.optimizer.warmup_steps == float(str(value))
    assert isinstance(config.optimizer.warmup_steps, float) is ("." in str(value))
    again = build_config([ConfigLayer("again", yaml.safe_load(yaml.safe_dump(to_dict(config))))])
    assert again == config and type(again.optimizer.warmup_steps) is type(config.optimizer.warmup_steps)


@pytest.mark.parametrize("value", [1.0, 1.5, -1, -0.1, "20%"])
def test_neither_steps_nor_fraction_is_rejected(value: object) -> None:
    with pytest.raises(UserError, match=r"optimizer\.warmup_steps"):
        build_config([ConfigLayer("test", {"optimizer.warmup_steps": value})])


@pytest.mark.parametrize(("finished", "refused"), [(1, True), (2, False)])
def test_run_can_be_extended_after_its_warm_up(finished: int, refused: bool) -> None:
    """A fifth of 5 or 8 epochs is 1 or 1.6 of them: after two, no learning rate depends on the number of epochs."""
    saved, now = (
        to_dict(build_config([ConfigLayer("test", {"optimizer.warmup_steps": 0.2, "epochs": epochs})]))
        for epochs in (5, 8)
    )
    if refused:
        with pytest.raises(UserError, match="epochs was 5"):
            check_config_compatible(saved, now, "x.pt", finished)
    else:
        check_config_compatible(saved, now, "x.pt", finished)


def test_checkpoint_from_before_fractions_resumes() -> None:
    saved = to_dict(preset("fer2013", optimizer__warmup_steps=200))
    check_config_compatible(saved, to_dict(preset("fer2013", optimizer__warmup_steps="200")), "x.pt", 1)


def test_check_warns_of_each_finding(capsys: pytest.CaptureFixture[str]) -> None:
    faces = DatasetInfo(7, 640, 64, batches=(64,) * 10)
    config = preset("fer2013", epochs=2, optimizer__warmup_steps=200, loss__epoch_threshold=5)
    lines = check_schedule(config, faces)
    assert [(line.name, line.severity) for line in lines] == [("schedule", Severity.WARNING)] * 2
    assert "more than the run's 20 steps" in lines[0].message and "at most 5% of optimizer.lr" in lines[0].message
    (line,) = check_schedule(preset("fer2013"), faces)
    assert (line.severity, line.message) == (Severity.OK, "100 steps (10 x 10)")


def test_nonfinite_loss_is_not_blamed_on_a_long_warm_up() -> None:
    assert "optimizer.warmup_steps" in fix_divergence(Config(), 100)
    assert fix_divergence(preset("fer2013"), 397) == ""
