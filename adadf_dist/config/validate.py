"""Validation of configuration values beyond their types: allowed ranges, and rules that involve several keys."""

from __future__ import annotations

from dataclasses import asdict

from adadf_dist.config.backbone_names import RESNETS, check_backbone
from adadf_dist.config.keys import flatten, settings
from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError

Rule = tuple[str, object, bool, str]
"""Result of a validation rule: a key, its value, whether the value is valid, and the allowed values in words."""


def validate(config: Config) -> None:
    """Raise `UserError` naming the first key with an invalid value."""
    values = dict(flatten(asdict(config)))
    ranges = [
        (key, values[key], declared.allows(values[key]), declared.range_text) for key, declared in settings().items()
    ]
    rules = [*list_rules(config), *list_loss_rules(config), *list_model_rules(config)]
    for key, value, is_valid, allowed in (*ranges, *rules):
        if not is_valid:
            raise UserError(f"{key} is {value!r}; allowed: {allowed}")
    check_backbone(config.model.backbone)


def list_rules(config: Config) -> list[Rule]:
    """Return the results of all rules that are not range checks on a single key."""
    data, augment, optimizer = config.data, config.augment, config.optimizer
    is_streamed, is_ddp = data.access == "stream", config.engine == "ddp"
    max_magnitude = 30 if augment.policy == "torchvision" else 10
    low, high = augment.erase_scale
    warmup = optimizer.warmup_steps
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
            "optimizer.name",
            optimizer.name,
            optimizer.name == "adam" or is_ddp,
            "adam while engine is deepspeed; or set engine = ddp",
        ),
        (
            "optimizer.pretrained_lr_mult",
            optimizer.pretrained_lr_mult,
            optimizer.pretrained_lr_mult == 1 or bool(config.model.pretrained),
            "1 while model.pretrained is empty",
        ),
        (
            "evaluation.flip_tta",
            config.evaluation.flip_tta,
            not (config.evaluation.flip_tta and data.ten_crop_resize),
            "false while data.ten_crop_resize is not 0: five of the ten crops are mirrored",
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


def list_model_rules(config: Config) -> list[Rule]:
    """Return the rules about `model.cached_augmentations`, and those about ResNets of other sizes."""
    model, data, cached = config.model, config.data, config.model.cached_augmentations
    is_resnet = model.backbone in RESNETS
    is_changed = (model.stem, model.width) != ("standard", 1.0)
    return [
        (
            "model.cached_augmentations",
            cached,
            not cached or (bool(model.pretrained) and model.freeze != "never"),
            "0 while the extractor is not frozen; or set model.pretrained, and model.freeze = auto or always",
        ),
        (
            "model.cached_augmentations",
            cached,
            not cached or data.access != "stream",
            "0 while data.access is stream; or set data.access = cache",
        ),
        (
            "model.cached_augmentations",
            cached,
            not cached or not data.ten_crop_resize,
            "0 while data.ten_crop_resize takes ten crops; or set data.ten_crop_resize = 0",
        ),
        (
            "evaluation.flip_tta",
            config.evaluation.flip_tta,
            not (cached and config.evaluation.flip_tta),
            "false while model.cached_augmentations stores no mirror images; evaluate the finished run with --tta flip",
        ),
        ("model.stem", model.stem, model.stem == "standard" or is_resnet, f"standard for {model.backbone}"),
        ("model.width", model.width, model.width in (0.5, 1.0), "1.0 or 0.5"),
        ("model.width", model.width, model.width == 1.0 or is_resnet, f"1.0 for {model.backbone}"),
        (
            "model.pretrained",
            model.pretrained,
            not is_changed or model.pretrained != "imagenet",
            "empty or a file, as ImageNet's weights are for model.stem standard and model.width 1.0",
        ),
    ]
