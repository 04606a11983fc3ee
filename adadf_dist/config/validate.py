"""Validation of configuration values beyond their types."""

from __future__ import annotations

from adadf_dist.config.backbone_names import check_backbone
from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError


def validate(config: Config) -> None:
    """Raise `UserError` for the first key with an invalid value."""
    data, augment, loss = config.data, config.augment, config.loss
    classes, optimizer, runtime = config.class_distributions, config.optimizer, config.runtime
    magnitudes = 30 if augment.policy == "standard" else 10
    low, high = augment.erase_scale
    rules: list[tuple[str, object, bool, str]] = [
        ("epochs", config.epochs, config.epochs >= 1, "at least 1"),
        ("seed", config.seed, 0 <= config.seed < 2**63, "0 or more, below 2^63"),
        ("batch_size", config.batch_size, config.batch_size >= 2, "at least 2"),
        ("data.workers", data.workers, data.workers >= 0, "0 or more"),
        ("data.prefetch", data.prefetch, data.prefetch >= 1, "at least 1"),
        ("data.max_bad_faces", data.max_bad_faces, data.max_bad_faces >= 0, "0 or more"),
        (
            "data.loader",
            data.loader,
            data.loader != "dali" or data.access == "cache",
            "auto or torch, as data.access is stream; or set data.access = cache",
        ),
        ("data.cache", data.cache, bool(data.cache), "a folder"),
        ("data.cache_size_gb", data.cache_size_gb, data.cache_size_gb >= 0, "0 or more"),
        ("data.shuffle_buffer", data.shuffle_buffer, data.shuffle_buffer >= 1, "at least 1"),
        (
            "data.sampler",
            data.sampler,
            data.sampler == "all" or data.access == "cache",
            "all, as data.access is stream; or set data.access = cache",
        ),
        ("data.image_size", data.image_size, 32 <= data.image_size <= 1024, "from 32 to 1024"),
        (
            "data.embedded_faces",
            data.embedded_faces,
            not data.embedded_faces or (len(data.embedded_faces) == 3 and min(data.embedded_faces) >= 1),
            "three sample counts, for train, validation and test",
        ),
        (
            "data.ten_crop",
            data.ten_crop,
            data.ten_crop == 0 or data.image_size < data.ten_crop <= 1024,
            "0, or above data.image_size and up to 1024",
        ),
        in_range("data.label_noise", data.label_noise, 0, 1),
        (
            "data.label_noise_file",
            data.label_noise_file,
            not (data.label_noise and data.label_noise_file),
            "empty while data.label_noise is not 0",
        ),
        in_range("data.validation_fraction", data.validation_fraction, 0, 0.9, ends="()"),
        ("augment.operations", augment.operations, augment.operations >= 0, "0 or more"),
        in_range("augment.magnitude", augment.magnitude, 0, magnitudes),
        in_range("augment.flip", augment.flip, 0, 1),
        in_range("augment.erase", augment.erase, 0, 1),
        ("augment.erase_scale", augment.erase_scale, 0 < low <= high < 1, "two fractions, 0 < low <= high < 1"),
        in_range("loss.lambda_min", loss.lambda_min, 0, 1),
        ("loss.epoch_threshold", loss.epoch_threshold, loss.epoch_threshold >= 1, "at least 1"),
        in_range("loss.rank_ratio", loss.rank_ratio, 0, 1),
        in_range("loss.rank_margin", loss.rank_margin, 0, 1),
        in_range("class_distributions.threshold", classes.threshold, 0, 1, ends="()"),
        in_range("class_distributions.sharpen", classes.sharpen, 0, 1, ends="[)"),
        in_range("optimizer.lr", optimizer.lr, 0, 10, ends="(]"),
        in_range("optimizer.gamma", optimizer.gamma, 0, 1, ends="(]"),
        in_range("optimizer.attention_lr_factor", optimizer.attention_lr_factor, 0, 1),
        (
            "optimizer.warmup_steps",
            optimizer.warmup_steps,
            optimizer.warmup_steps >= 0 if isinstance(optimizer.warmup_steps, int) else 0 <= optimizer.warmup_steps < 1,
            "0, a whole number of steps, or a fraction of the run between 0 and 1",
        ),
        ("optimizer.weight_decay", optimizer.weight_decay, optimizer.weight_decay >= 0, "0 or more"),
        in_range("optimizer.ema", optimizer.ema, 0, 1, ends="[)"),
        ("optimizer.clip_norm", optimizer.clip_norm, optimizer.clip_norm >= 0, "0 or more"),
        ("optimizer.scaling_from", optimizer.scaling_from, optimizer.scaling_from >= 2, "at least 2"),
        ("optimizer.scaling_warmup", optimizer.scaling_warmup, optimizer.scaling_warmup >= 0, "0 or more epochs"),
        (
            "deepspeed.config",
            config.deepspeed.config,
            not config.deepspeed.config or config.engine == "deepspeed",
            "empty while engine is ddp; or set engine = deepspeed",
        ),
        (
            "runtime.compile",
            runtime.compile,
            runtime.compile == "off" or config.engine == "ddp",
            "off while engine is deepspeed; or set engine = ddp",
        ),
        (
            "checkpoint.every_steps",
            config.checkpoint.every_steps,
            config.checkpoint.every_steps >= 0,
            "0 or more",
        ),
        (
            "checkpoint.every_minutes",
            config.checkpoint.every_minutes,
            config.checkpoint.every_minutes >= 0,
            "0 or more",
        ),
        ("checkpoint.keep", config.checkpoint.keep, config.checkpoint.keep >= 1, "at least 1"),
        ("runtime.timeout_s", runtime.timeout_s, runtime.timeout_s > 0, "above 0 seconds"),
        ("runtime.stop_every", runtime.stop_every, runtime.stop_every >= 1, "at least 1"),
        ("runtime.profile", runtime.profile, runtime.profile >= 0, "0 or more steps"),
        ("runtime.log_every", runtime.log_every, runtime.log_every >= 1, "at least 1"),
        ("runtime.history_faces", runtime.history_faces, runtime.history_faces >= 0, "0 or more"),
    ]
    for key, value, holds, allowed in rules:
        if not holds:
            raise UserError(f"{key} is {value!r}; allowed: {allowed}")
    check_backbone(config.model.backbone)


def in_range(key: str, value: float, low: float, high: float, ends: str = "[]") -> tuple[str, object, bool, str]:
    """Return a rule that `value` is between `low` and `high`; `ends` are brackets, [] inclusive and () exclusive."""
    above = value >= low if ends[0] == "[" else value > low
    below = value <= high if ends[1] == "]" else value < high
    return key, value, above and below, f"{ends[0]}{low:g}, {high:g}{ends[1]}"
