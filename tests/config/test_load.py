"""Presets, config files, command line and programs share one loader: dotted keys, typed and validated."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from adadf_dist.config.keys import settings
from adadf_dist.config.load import (
    ConfigLayer,
    available_presets,
    build_config,
    override,
    parse_cli,
    to_dict,
)
from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError


def test_later_layers_override_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("epochs = 40\n[loss]\nlambda_min = 0.1\nepoch_threshold = 9\n")
    words = ["--preset", "affectnet7", "--config", str(file), "--loss.lambda_min", "0.3"]
    config = parse_cli(words)
    assert config.data.sampler == "balanced"  # the preset's
    assert (config.epochs, config.loss.epoch_threshold) == (40, 9)  # the file's
    assert config.loss.lambda_min == 0.3  # the command line's
    assert config.out == "runs/affectnet7-seed0"


def test_yaml_and_toml_load_alike(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("seed = 3\n[augment]\nerase_scale = [0.1, 0.2]\n")
    (tmp_path / "a.yaml").write_text("seed: 3\naugment:\n  erase_scale: [0.1, 0.2]\n")
    toml, yml = (parse_cli(["--config", str(tmp_path / f"a.{s}"), "--out", "x"]) for s in ("toml", "yaml"))
    assert toml == yml
    assert toml.augment.erase_scale == (0.1, 0.2)


def test_command_line_values_are_parsed_by_type() -> None:
    words = [
        "--evaluation.run_test=false",
        "--data.synthetic_samples",
        "[3,2,1]",
        "--optimizer.lr",
        "1e-4",
        "--out",
        "o",
    ]
    config = parse_cli(words)
    assert config.evaluation.run_test is False
    assert config.data.synthetic_samples == (3, 2, 1)
    assert config.optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss.lamda_min", "0.1"], r"unknown option --loss\.lamda_min; did you mean --loss\.lambda_min\?"),
        (["--epoch", "3"], r"did you mean --epochs\?"),
        (["--epochs", "3.5"], r"^command line: epochs must be an integer, got '3\.5'$"),
        (["--loss.lambda_min", "much"], r"^command line: loss\.lambda_min must be a number, got 'much'$"),
        (["--loss.batch_scope", "galactic"], r"loss\.batch_scope must be one of global, local, got 'galactic'"),
        (["--epochs"], "--epochs needs a value"),
        (["epochs", "3"], "unexpected argument 'epochs'"),
        (["--preset", "rafd"], r"no such preset; did you mean rafdb\?"),
        (["--config", "nowhere.toml"], "nowhere.toml: no such configuration file"),
        (["--loss.lambda_min", "1.5"], r"loss\.lambda_min is 1\.5; allowed: \[0, 1\]"),
        (["--batch_size", "1"], "batch_size is 1; allowed: at least 2"),
        (["--augment.erase_scale", "[0.3,0.2]"], r"augment\.erase_scale"),
        (["--class_distributions.threshold", "1"], r"class_distributions\.threshold is 1\.0; allowed: \(0, 1\)"),
        (["--augment.magnitude", "11"], r"augment\.magnitude is 11\.0; allowed: \[0, 10\]"),
        (["--loss.label_smoothing", "1"], r"loss\.label_smoothing is 1\.0; allowed: \[0, 1\)"),
        (["--optimizer.name", "lion"], r"optimizer\.name must be one of adam, adamw, sgd, got 'lion'"),
        (["--optimizer.momentum", "0"], r"optimizer\.momentum is 0\.0; allowed: \(0, 1\)"),
        (["--optimizer.name", "sgd", "--engine", "deepspeed"], r"optimizer\.name is 'sgd'; allowed: adam while engine"),
        (["--optimizer.pretrained_lr_mult", "0.1"], r"pretrained_lr_mult is 0\.1; allowed: 1 while model\.pretrained"),
        (["--optimizer.pretrained_lr_mult", "2"], r"pretrained_lr_mult is 2\.0; allowed: \(0, 1\]"),
        (["--model.width", "0.75"], r"model\.width is 0\.75; allowed: 1\.0 or 0\.5"),
        (["--model.stem", "small", "--model.backbone", "timm:vgg11"], r"model\.stem is 'small'; allowed: standard for"),
        (
            ["--model.width", "0.5", "--model.backbone", "timm:vgg11"],
            r"model\.width is 0\.5; allowed: 1\.0 for",
        ),
        (
            ["--model.stem", "small", "--model.pretrained", "imagenet"],
            r"model\.pretrained is 'imagenet'; allowed: empty",
        ),
        (
            ["--evaluation.flip_tta", "true", "--data.ten_crop_resize", "256"],
            r"evaluation\.flip_tta is True; allowed: false while data\.ten_crop_resize",
        ),
    ],
)
def test_command_line_errors_are_reported(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_cli(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "other", "setting"),
    [
        ("loss.target_adjustment", "1", "loss.supervision", "one_hot"),
        ("loss.min_label_prob", "0.5", "loss.supervision", "votes"),
        ("loss.logit_adjustment", "1", "data.sampler", "balanced"),
        ("loss.logit_adjustment", "1", "data.sampler", "oversample"),
        ("class_distributions.sample_momentum", "0.5", "loss.supervision", "class"),
        ("class_distributions.relative_threshold", "0.5", "loss.supervision", "label"),
        ("data.label_noise_rate", "0.1", "loss.supervision", "votes"),
        ("data.label_noise_file", "noise.csv", "loss.supervision", "votes"),
        ("data.relabel_file", "relabel.csv", "loss.supervision", "votes"),
    ],
)
def test_settings_without_effect_are_rejected(option: str, value: str, other: str, setting: str) -> None:
    with pytest.raises(UserError, match=rf"{option} is .*; allowed: (0|empty) while {other} is {setting}") as caught:
        parse_cli([f"--{option}", value, f"--{other}", setting])
    assert "\n" not in str(caught.value)
    parse_cli([f"--{option}", value])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "[loss]\nlambda = 1\n", r"a\.toml: unknown key loss\.lambda; did you mean loss\.lambda_min\?"),
        ("a.toml", "epochs = [", r"a\.toml: does not parse"),
        ("a.yaml", "a: [", r"a\.yaml: does not parse"),
        ("a.yaml", "- 1\n", "expected a mapping, got list"),
        ("a.toml", 'epochs = "many"\n', r"a\.toml: epochs must be an integer, got 'many'"),
        ("a.ini", "", r"unsupported file type; use \.toml, \.yaml or \.json"),
    ],
)
def test_config_file_errors_are_reported(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        parse_cli(["--config", str(tmp_path / name)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["demo", "fer2013", "rafdb", "affectnet7", "affectnet7_large", "affectnet8", "sfew"])
def test_presets_load_and_round_trip(name: str) -> None:
    assert name in available_presets()
    config = parse_cli(["--preset", name])
    text = yaml.safe_dump(to_dict(config))
    assert build_config([ConfigLayer("config.yaml", yaml.safe_load(text))]) == config


def test_presets_hold_the_papers_constants() -> None:
    """lambda_min .2; t .7/.5/.5; E 3/5/5; batch 64/64/16; 75 epochs; Adam 1e-3, gamma .9."""
    rafdb, affectnet, sfew = (parse_cli(["--preset", p]) for p in ("rafdb", "affectnet7", "sfew"))
    assert [c.class_distributions.threshold for c in (rafdb, affectnet, sfew)] == [0.7, 0.5, 0.5]
    assert [c.loss.epoch_threshold for c in (rafdb, affectnet, sfew)] == [3, 5, 5]
    assert [c.batch_size for c in (rafdb, affectnet, sfew)] == [64, 64, 16]
    assert {c.loss.lambda_min for c in (rafdb, affectnet, sfew)} == {0.2}
    assert {(c.epochs, c.optimizer.lr, c.optimizer.lr_gamma) for c in (rafdb, affectnet, sfew)} == {(75, 1e-3, 0.9)}
    assert (sfew.augment.num_ops, sfew.augment.magnitude) == (5, 3.0)


def test_override_accepts_dotted_keys_and_types() -> None:
    changed = override(Config(), {"loss.lambda_min": 0.05, "loss.detach_targets": True, "data.image_size": "100"})
    assert (changed.loss.lambda_min, changed.loss.detach_targets, changed.data.image_size) == (0.05, True, 100)
    assert changed.epochs == Config().epochs
    with pytest.raises(UserError, match="trial: unknown key"):
        override(Config(), {"loss.lambda": 0.1}, "trial")


def test_help_describes_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        parse_cli(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{key}" in text for key in settings())
    assert all(name in text for name in ("demo", "rafdb", "torchrun"))


def test_keys_and_values_of_version_0_1_work_and_are_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[data]\nworkers = 3\n[augment]\npolicy = "standard"\n')
    config = parse_cli(
        ["--config", str(file), "--data.ten-crop", "256", "--evaluation.report", "--evaluation.test=false"]
    )
    assert (config.data.num_workers, config.augment.policy, config.data.ten_crop_resize) == (3, "torchvision", 256)
    assert (config.evaluation.write_report, config.evaluation.run_test) == (True, False)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"warning: {file}: data.workers is now data.num_workers, augment.policy=standard is now torchvision; "
        "version 0.3 will reject the old names (see CHANGELOG.md)",
        "warning: command line: data.ten_crop is now data.ten_crop_resize, evaluation.report is now "
        "evaluation.write_report, evaluation.test is now evaluation.run_test; version 0.3 will reject the old names "
        "(see CHANGELOG.md)",
    ]
    parse_cli(["--preset", "demo", "--data.num_workers", "1"])
    assert not capsys.readouterr().err


def test_a_key_under_both_names_is_an_error() -> None:
    with pytest.raises(UserError, match=r"command line: data\.workers and data\.num_workers are names of the same key"):
        parse_cli(["--data.workers", "1", "--data.num_workers", "2"])
