"""A custom DeepSpeed JSON: which keys are merged, which are rejected, and when."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.engine.deepspeed_config import make_deepspeed_config
from adadf_dist.errors import UserError
from tests.helpers.forked import train_forked
from tests.helpers.runs import ROOT, settings


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_custom_json_is_merged(tmp_path: Path) -> None:
    own = {
        "train_batch_size": "auto",
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": True},
        "wall_clock_breakdown": True,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False, "loss_scale": 0},
        "scheduler": None,
    }
    own["zero_optimization"]["offload_optimizer"] = {"device": "none"}  # type: ignore[index]
    config = build_config(
        [
            ConfigLayer(
                "test",
                {
                    "engine": "deepspeed",
                    "deepspeed.zero_stage": 2,
                    "batch_size": 65,
                    "optimizer.max_grad_norm": 5.0,
                    "deepspeed.config_file": write(tmp_path / "ds.json", own),
                },
            )
        ]
    )
    settings = make_deepspeed_config(config, ranks=4)
    assert settings["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": True}
    assert settings["wall_clock_breakdown"] is True
    assert settings["train_micro_batch_size_per_gpu"] == 17
    assert settings["gradient_clipping"] == 5.0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train_batch_size": 512}, ["train_batch_size is 512", "batch_size requires 64"]),
        (
            {"train_micro_batch_size_per_gpu": 64},
            ["train_micro_batch_size_per_gpu is 64", "batch_size", "2 ranks", "32"],
        ),
        ({"gradient_accumulation_steps": 4}, ["gradient_accumulation_steps is 4", "batch_size"]),
        ({"gradient_clipping": 1.0}, ["gradient_clipping is 1.0", "optimizer.max_grad_norm"]),
        ({"zero_optimization": {"stage": 3}}, ["zero_optimization.stage is 3", "deepspeed.zero_stage requires 1"]),
        ({"bf16": {"enabled": True}}, ["bf16.enabled", "BatchNorm", "runtime.precision"]),
        ({"fp16": {"enabled": True}}, ["fp16.enabled", "BatchNorm"]),
        ({"optimizer": {"type": "AdamW"}}, ["optimizer.type"]),
        ({"scheduler": {"type": "WarmupLR"}}, ["scheduler.type"]),
        ({"gradient_predivide_factor": 2.0}, ["gradient_predivide_factor"]),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, ["offload_optimizer.device"]),
        ({"zero_optimization": {"round_robin_gradients": True}}, ["round_robin_gradients", "moments"]),
        ({"zero_optimization": {"overlap_com": True}}, ["overlap_com", "zero_optimization.overlap_comm"]),
        ({"zero_optimization": True}, ["zero_optimization cannot be set"]),
        ({"gradient_clipping": {"x": 1}}, ["gradient_clipping.x"]),
        ({"no_such_key": 1}, ["no_such_key", "allowed"]),
        ([1, 2], ["list"]),
        ("{not json", ["does not parse"]),
    ],
)
def test_contradicting_json_is_rejected(tmp_path: Path, content: object, words: list[str]) -> None:
    path = write(tmp_path / "ds.json", content)
    config = build_config([ConfigLayer("test", {"engine": "deepspeed", "deepspeed.config_file": path})])
    with pytest.raises(UserError) as caught:
        make_deepspeed_config(config, ranks=2)
    assert "\n" not in str(caught.value)
    for word in [path, *words]:
        assert word in str(caught.value)


def test_example_config_is_accepted() -> None:
    path = str(ROOT / "launch" / "deepspeed.json")
    config = build_config([ConfigLayer("test", {"engine": "deepspeed", "deepspeed.config_file": path})])
    assert make_deepspeed_config(config, ranks=8)["zero_optimization"]["overlap_comm"] is True


def test_value_rejected_by_deepspeed_is_one_line(faces: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "ds.json", {"zero_optimization": {"reduce_bucket_size": "many"}})
    values = settings(faces, tmp_path / "run", engine="deepspeed", deepspeed__config_file=path)
    done = train_forked(values)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"error: {path}: DeepSpeed rejects this configuration" in done.stderr


def test_json_is_checked_before_shards(tmp_path: Path) -> None:
    """Shards may take hours to download: here they are missing, and the JSON is reported."""
    path = write(tmp_path / "ds.json", {"zero_optimization": {"stage": 3}})
    values = settings(tmp_path / "nowhere", tmp_path / "run", engine="deepspeed", deepspeed__config_file=path)
    done = train_forked(values)
    assert done.returncode == 2
    assert "zero_optimization.stage is 3, but deepspeed.zero_stage requires 1" in done.stderr


def test_missing_json_is_named(tmp_path: Path) -> None:
    config = build_config(
        [ConfigLayer("test", {"engine": "deepspeed", "deepspeed.config_file": str(tmp_path / "none.json")})]
    )
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        make_deepspeed_config(config, ranks=2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"deepspeed.zero_stage": "4"}, ["deepspeed.zero_stage", "4", "0, 1, 2, 3"]),
        ({"deepspeed.config_file": "ds.json"}, ["deepspeed.config_file", "engine = deepspeed"]),
        ({"engine": "deepspeed", "runtime.compile": "default"}, ["runtime.compile", "engine"]),
        ({"engine": "horovod"}, ["engine", "ddp", "deepspeed"]),
    ],
)
def test_unsupported_keys_are_rejected(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_config([ConfigLayer("test", values)])
    for word in words:
        assert word in str(caught.value)
