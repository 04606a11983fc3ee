"""Validation of configuration values beyond their types: allowed ranges, and rules that involve several keys."""

from __future__ import annotations

from dataclasses import asdict

from adadf_dist.config.backbone_names import check_backbone
from adadf_dist.config.keys import flatten, settings
from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError

Rule = tuple[str, object, bool, str]
"""A key, its value, whether the value is valid, and a description of the allowed values."""


def validate(config: Config) -> None:
    """Raise `UserError` for the first key with an invalid value."""
    values = dict(flatten(asdict(config)))
    ranges = [
        (key, values[key], declared.allows(values[key]), declared.range_text) for key, declared in settings().items()
    ]
    for key, value, is_valid, allowed in (*ranges, *list_rules(config), *list_loss_rules(config)):
        if not is_valid:
            raise UserError(f"{key} is {value!r}; allowed: {allowed}")
    check_backbone(config.model.backbone)


def list_rules(config: Config) -> list[Rule]:
    """Return the rules other than range checks on a single key."""
    data, augment, optimizer = config.data, config.augment, config.optimizer
    is_streamed, is_ddp = data.access == "stream", config.engine == "ddp"
    max_magnitude = 30 if augment.policy == "torchvision" else 10
    low, high = augment.erase_scale
    warmup = optimizer.warmup_steps
    model, cached = config.model, config.model.cached_augmentations
    return [
        (
            "data.loader",
            data.loader,
            data.loader != "dali" or not is_streamed,
            "auto or torch, as data.access is stream; or set data.access = cache",
        ),
        ("data.cache_dir", data.cache_dir, bool(data.cache_dir), "a folder"),
        (
            "data.sampler",
            data.sampler,
            data.sampler == "all" or not is_streamed,
            "all, as data.access is stream; or set data.access = cache",
        ),
        (
            "data.synthetic_samples",
            data.synthetic_samples,
            not data.synthetic_samples or (len(data.synthetic_samples) == 3 and min(data.synthetic_samples) >= 1),
            "three sample counts, for train, validation and test",
        ),
        (
            "data.ten_crop_resize",
            data.ten_crop_resize,
            data.ten_crop_resize == 0 or data.image_size < data.ten_crop_resize <= 1024,
            "0, or above data.image_size and up to 1024",
        ),
        (
            "data.label_noise_file",
            data.label_noise_file,
            not (data.label_noise_rate and data.label_noise_file),
            "empty while data.label_noise_rate is not 0",
        ),
        (
            "model.cached_augmentations",
            cached,
            not cached or (bool(model.pretrained) and model.freeze != "never"),
            "0 while the extractor is not frozen; or set model.pretrained, and model.freeze = auto or always",
        ),
        (
            "model.cached_augmentations",
            cached,
            not cached or not is_streamed,
            "0 while data.access is stream; or set data.access = cache",
        ),
        (
            "model.cached_augmentations",
            cached,
            not cached or not data.ten_crop_resize,
            "0 while data.ten_crop_resize takes ten crops; or set data.ten_crop_resize = 0",
        ),
        (
            "augment.magnitude",
            augment.magnitude,
            0 <= augment.magnitude <= max_magnitude,
            f"[0, {max_magnitude}] with augment.policy = {augment.policy}",
        ),
        ("augment.erase_scale", augment.erase_scale, 0 < low <= high < 1, "two fractions, 0 < low <= high < 1"),
        (
            "optimizer.warmup_steps",
            warmup,
            warmup >= 0 if isinstance(warmup, int) else 0 <= warmup < 1,
            "0, a whole number of steps, or a fraction of the run between 0 and 1",
        ),
        (
            "deepspeed.config_file",
            config.deepspeed.config_file,
            not config.deepspeed.config_file or not is_ddp,
            "empty while engine is ddp; or set engine = deepspeed",
        ),
        (
            "runtime.compile",
            config.runtime.compile,
            config.runtime.compile == "off" or is_ddp,
            "off while engine is deepspeed; or set engine = ddp",
        ),
    ]


def list_loss_rules(config: Config) -> list[Rule]:
    """Return the rules for the extensions of the method, which must not be without effect."""
    data, loss, classes = config.data, config.loss, config.class_distributions
    fused = f"0 while loss.supervision is {loss.supervision}"
    has_votes = loss.supervision == "votes"
    uniform = data.sampler in ("balanced", "oversample")
    rules: list[Rule] = [
        (
            "loss.logit_adjustment",
            loss.logit_adjustment,
            not loss.logit_adjustment or not uniform,
            f"0 while data.sampler is {data.sampler}, because every class is then equally frequent",
        ),
        ("loss.target_adjustment", loss.target_adjustment, not (loss.target_adjustment and loss.is_baseline), fused),
        ("loss.min_label_prob", loss.min_label_prob, not (loss.min_label_prob and loss.is_baseline), fused),
        (
            "loss.flip_consistency",
            loss.flip_consistency,
            not loss.flip_consistency or config.optimizer.ema_decay > 0,
            "0 while optimizer.ema_decay is 0; or set optimizer.ema_decay",
        ),
        (
            "class_distributions.sample_momentum",
            classes.sample_momentum,
            not classes.sample_momentum or loss.supervision in ("fused", "label"),
            fused,
        ),
        (
            "class_distributions.relative_threshold",
            classes.relative_threshold,
            not classes.relative_threshold or loss.supervision in ("fused", "class"),
            fused,
        ),
    ]
    for key, value in (
        ("data.label_noise_rate", data.label_noise_rate),
        ("data.label_noise_file", data.label_noise_file),
        ("data.relabel_file", data.relabel_file),
    ):
        off = "0" if key == "data.label_noise_rate" else "empty"
        text = f"{off} while loss.supervision is votes, because votes do not follow changed labels"
        rules.append((key, value, not (value and has_votes), text))
    return rules
