"""Every configuration key of a run, grouped in frozen dataclasses and documented where it is declared.

A configuration is merged from layers, with later ones overriding earlier ones: the defaults below (the paper's RAF-DB
recipe), a preset, the user's file (TOML or YAML), the command line. `build_config` is the only entry point: the
command line, files, tests and searches all pass it dotted keys. The resolved configuration is written to
`config.yaml` in the run folder and to every checkpoint, and is read back by the same function.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from adadf_dist.config.fields import Role, setting


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Dataset, sampling and data loading."""

    shards: str = setting("", Role.INFRASTRUCTURE | Role.PATH | Role.PER_NODE | Role.NOT_SEARCHABLE)
    """Dataset folder written by `python -m shards.build`, or its URL: file://, http(s)://, s3:// or gs://."""
    access: Literal["cache", "stream"] = setting("cache", Role.NOT_SEARCHABLE)
    """`cache`: download remote shards to this node once, verify them, then read them like local ones. `stream`: read
    training tars sequentially from their source, each sample once per epoch. With streaming, the order depends on
    ranks and workers, the only sampler is `all`, and resuming in mid-epoch is not exact."""
    cache_dir: str = setting(
        "~/.cache/adadf_dist",
        Role.INFRASTRUCTURE | Role.PATH | Role.PER_NODE | Role.NOT_SEARCHABLE,
        old_name="data.cache",
    )
    """Folder on this node for downloaded shards; shared by all runs."""
    cache_size_gb: float = setting(0.0, Role.INFRASTRUCTURE, ge=0)
    """Maximum cache size in GB (10^9 bytes); 0: no limit. Above it, datasets that no run is using are deleted, least
    recently used first."""
    shuffle_buffer: int = setting(1000, ge=1)
    """Shuffle buffer size per worker when streaming, in encoded samples."""
    synthetic_samples: tuple[int, ...] = setting(
        (), Role.INFRASTRUCTURE | Role.NOT_SEARCHABLE, old_name="data.embedded_faces"
    )
    """Numbers of synthetic samples (train, validation, test) to render if data.shards does not exist. Empty means
    none."""
    loader: Literal["auto", "dali", "torch"] = "auto"
    """Loader that decodes and augments images: `dali` (NVIDIA DALI, on the GPU if there is one), `torch` (Pillow in
    worker processes), or `auto` (dali if it can be imported and shards are not streamed). `dali` and `torch`
    produce the same images."""
    num_workers: int = setting(2, Role.INFRASTRUCTURE, ge=0, old_name="data.workers")
    """Decoding processes per rank (0: decode in the training process); for DALI: threads per rank."""
    prefetch_batches: int = setting(4, Role.INFRASTRUCTURE, ge=1, old_name="data.prefetch")
    """Batches that each worker decodes in advance; for DALI: batches prefetched on the device."""
    max_bad_samples: int = setting(100, Role.INFRASTRUCTURE, ge=0, old_name="data.max_bad_faces")
    """Maximum number of training samples per rank that may fail to decode before the run fails. Each is logged and
    replaced by another sample of its class, determined by (seed, epoch, sample). In evaluation and streaming, any
    failure is an error."""
    sampler: Literal["all", "balanced", "oversample", "sqrt"] = "all"
    """`all`: every sample once per epoch; `balanced`: each class subsampled to the size of the rarest (the paper on
    AffectNet); `oversample`: each class repeated to the size of the largest; `sqrt`: class frequencies proportional to
    the square root of their counts."""
    validation_fraction: float = setting(0.1, Role.NOT_SEARCHABLE, gt=0, lt=0.9)
    """Fraction of train held out for model selection, stratified by class, if the dataset has no validation split."""
    image_size: int = setting(224, ge=32, le=1024)
    """Side of the network input in pixels; stored images are resized to it."""
    ten_crop_resize: int = setting(0, old_name="data.ten_crop")
    """Side in pixels to which images are resized before taking ten crops of data.image_size (corners and center, plain
    and mirrored), in training and evaluation (the paper on SFEW: 256); 0: no crops."""
    label_noise_rate: float = setting(0.0, ge=0, le=1, old_name="data.label_noise")
    """Fraction of training labels replaced by another class, sampled uniformly using the seed. Validation and test are
    unchanged."""
    label_noise_file: str = setting("", Role.PATH | Role.INPUT_FILE)
    """Other label noise for train: a CSV file with the class names and one row of probabilities per true class, or a
    list of `name label` lines as published for SCN and EAC. A name that is not in the dataset is an error."""
    relabel_file: str = setting("", Role.PATH | Role.INPUT_FILE, old_name="data.relabel")
    """CSV file of label corrections (key,decision,label) exported from the page of `python -m adadf_dist.audit`: each
    changes a training sample's class or removes the sample. Applied after the validation split is held out and before
    label noise. Validation and test are unchanged."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation. All randomness is a pure function of (seed, epoch, sample)."""

    policy: Literal["none", "paper", "torchvision"] = setting(
        "paper", old_values={"published": "paper", "standard": "torchvision"}
    )
    """RandAugment: `paper` as in the paper's code, `torchvision` as in torchvision, `none` for no RandAugment."""
    num_ops: int = setting(3, ge=0, old_name="augment.operations")
    """Number of RandAugment operations per image."""
    magnitude: float = 5.0
    """RandAugment magnitude: 0 to 10 for `paper`, 0 to 30 for `torchvision`."""
    flip_prob: float = setting(0.5, ge=0, le=1, old_name="augment.flip")
    """Probability of a horizontal flip."""
    erase_prob: float = setting(0.5, ge=0, le=1, old_name="augment.erase")
    """Probability of random erasing, applied after normalization."""
    erase_scale: tuple[float, float] = (0.02, 0.25)
    """Minimum and maximum fraction of the image area that is erased."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture and initialization of the two-branch network (section 3 of the paper)."""

    backbone: str = setting("resnet18", Role.ARCHITECTURE)
    """resnet10, resnet18, resnet34, resnet50 or resnet101 (`resnet10` is ResNet18 with one block per stage, for demos
    and tests on a CPU), `dlib_resnet29` (dlib's face recognition network), or `timm:NAME` for a timm model, such as
    timm:convnext_tiny. See docs/backbones.md."""
    shared_until: str = setting("", old_name="model.split")
    """Last backbone stage of the shared extractor; each branch has its own copy of the later stages. Empty: the first
    stage at 1/4 of the input resolution (`layer1` of a ResNet, as in the paper), or the first quarter of a vision
    transformer's blocks. `pooled` (only dlib_resnet29): share the stages up to conv128; each branch is a small
    network with random weights on the maps of conv64 and conv128, pooled to 4x4."""
    pretrained: str = setting("", Role.PATH | Role.INPUT_FILE)
    """Pretrained weights: a file, `imagenet` (from torchvision or timm), or empty for random initialization."""
    freeze: Literal["auto", "always", "never"] = "auto"
    """Freeze the extractor, including its BatchNorm statistics. `auto`: freeze if pretrained weights are loaded."""
    cached_augmentations: int = setting(0, ge=0)
    """Number of fixed augmentations per training sample for which the frozen extractor's outputs are computed once,
    stored in data.cache_dir and reused in every epoch: epoch e uses number e modulo this. 0: augment anew in every
    epoch. See docs/loaders.md."""
    attention_on: Literal["logits", "features"] = setting("logits", Role.ARCHITECTURE)
    """What each branch's attention weight scales: the logits (the paper's code) or the features (the paper's text)."""
    stem: Literal["standard", "small", "small_stride2"] = setting("standard", Role.ARCHITECTURE)
    """First layers of a torchvision ResNet: `standard` (7x7 convolution of stride 2, max-pool); for images of about 32
    to 112 pixels, `small` (3x3 convolution of stride 1, no max-pool: 16 times the multiply-adds for an image of the
    same size) or `small_stride2` (3x3 convolution of stride 2, no max-pool: 4 times)."""
    width: float = setting(1.0, Role.ARCHITECTURE)
    """Channel multiplier of every layer of a torchvision ResNet: 1.0, or 0.5 for a quarter of the parameters and of
    the multiply-adds. With model.stem small_stride2, the multiply-adds are those of the standard network."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Loss settings (equations 3 and 8 to 16 of the paper)."""

    lambda_min: float = setting(0.2, ge=0, le=1)
    """Minimum of the normalized attention weights (eq 11)."""
    epoch_threshold: int = setting(3, ge=1)
    """Epoch at which the weight of the target branch's loss reaches 1 and the weight of the auxiliary branch's loss
    starts to decay (eq 15, 16)."""
    rank_ratio: float = setting(0.7, ge=0, le=1)
    """Fraction of a batch in the high-attention group (beta in eq 10)."""
    rank_margin: float = setting(0.07, ge=0, le=1)
    """Margin between the mean attention of the two groups (delta in eq 9)."""
    supervision: Literal["fused", "label", "class", "one_hot", "votes"] = "fused"
    """Supervision of the target branch: the fused distribution (eq 12), only the label distribution, only the class
    distribution, or, with cross entropy and no auxiliary branch, the annotated label (`one_hot`, the baseline) or the
    distribution of the annotators' votes (`votes`; samples without votes use their label)."""
    label_smoothing: float = setting(0.0, ge=0, lt=1)
    """Probability that the cross entropy (eq 3, and the baseline's) moves from the annotated label to the uniform
    distribution; 0: off."""
    logit_adjustment: float = setting(0.0, ge=0)
    """tau_c: adds tau_c * log(class frequency in an epoch) to the logits in the cross entropy (eq 3, and the
    baseline's), so that predictions favor rare classes more (Menon et al. 2021); 0: off."""
    target_adjustment: float = setting(0.0, ge=0)
    """tau_a: adds tau_a * log m to the target branch's logits in eq 13, where m is the mean fused distribution of the
    previous epoch; 0: off."""
    min_label_prob: float = setting(0.0, ge=0, lt=1)
    """Minimum probability of the annotated label in the fused distribution, which is mixed with the label as far as
    necessary; 0: off."""
    detach_targets: bool = setting(False, old_name="loss.detach")
    """Stop gradients through the fused distribution to the auxiliary branch and the attention weights."""
    batch_scope: Literal["global", "local"] = setting("global", old_name="loss.scope")
    """Batch over which equations 9 to 11 are computed: the global batch (same result for any number of ranks), or each
    rank's local batch (faster)."""

    @property
    def is_baseline(self) -> bool:
        """Whether only the target branch is trained, on labels or votes."""
        return self.supervision in ("one_hot", "votes")


@dataclass(frozen=True, kw_only=True)
class ClassDistributionConfig:
    """How class distributions are computed (equations 4 to 7 of the paper)."""

    threshold: float = setting(0.7, gt=0, lt=1)
    """Threshold t: a class's mean distribution is replaced by the threshold distribution if its probability of that
    class is below t."""
    off_diagonal: Literal["normalized", "paper"] = setting(
        "normalized", old_values={"normalised": "normalized", "published": "paper"}
    )
    """Off-diagonal values of the threshold distribution: (1-t)/(C-1), or 0.4/(C-1) as in the paper's code (sums to 1
    only for t=0.6)."""
    source: Literal["running", "second_pass"] = setting("running", old_values={"pass": "second_pass"})
    """Label distributions to average: those computed during training, or those of an extra pass in evaluation mode."""
    sharpen_temperature: float = setting(0.0, ge=0, lt=1, old_name="class_distributions.sharpen")
    """Temperature T in (0, 1) that sharpens the class distributions to p^(1/T), normalized; 0: off."""
    relative_threshold: float = setting(0.0, ge=0, le=1)
    """r: lowers the threshold of an epoch to r times the mean degree of all classes, if that is below t (eq 5); 0:
    off."""
    sample_momentum: float = setting(0.0, ge=0, lt=1)
    """Momentum of each sample's average label distribution over epochs, which replaces the label distribution in eq 12
    from the sample's second epoch on; 0: off."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer, learning-rate schedule, and weight averaging."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """`adam`; `adamw`: Adam with decoupled weight decay; `sgd`: stochastic gradient descent with Nesterov momentum,
    which needs a learning rate about 10 to 100 times Adam's."""
    momentum: float = setting(0.9, gt=0, lt=1)
    """Nesterov momentum of `sgd`."""
    lr: float = setting(1e-3, gt=0, le=10)
    """Learning rate of the first epoch."""
    schedule: Literal["exponential", "cosine", "cosine_by_step"] = "exponential"
    """`exponential`: lr * lr_gamma^epoch; `cosine`: cosine decay to zero over the run, updated per epoch;
    `cosine_by_step`: cosine decay from the end of the warmup to zero at the end of the run, updated per step."""
    lr_gamma: float = setting(0.9, gt=0, le=1, old_name="optimizer.gamma")
    """Decay factor per epoch of the exponential schedule."""
    warmup_steps: int | float = 0
    """Length of the linear learning-rate warmup from zero: a number of steps, or a fraction of the run in (0, 1), such
    as 0.05; 0: no warmup."""
    attention_lr_mult: float = setting(1.0, ge=0, le=1, old_name="optimizer.attention_lr_factor")
    """Learning-rate multiplier of the attention heads. When training from scratch, 1 is too high: while logits are
    confidently wrong, the heads learn to suppress them, and a suppressed branch barely learns. 0.02 avoids this."""
    pretrained_lr_mult: float = setting(1.0, gt=0, le=1)
    """Learning-rate multiplier of all parameters loaded from model.pretrained: the extractor (unless frozen) and the
    stages of both branches. Below 1, fine-tuning changes them less than the new heads."""
    weight_decay: float = setting(0.0, ge=0)
    """`adam`, `sgd`: L2 penalty on all parameters; `adamw`: decoupled weight decay of parameters with at least two
    dimensions, so not of biases and normalization layers."""
    ema_decay: float = setting(0.0, ge=0, lt=1, old_name="optimizer.ema")
    """Decay per step of an exponential moving average of the weights, used for evaluation; 0: off."""
    max_grad_norm: float = setting(0.0, ge=0, old_name="optimizer.clip_norm")
    """Maximum global gradient norm; larger gradients are scaled down to it; 0: no clipping."""
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    """How optimizer.lr scales with batch_size / optimizer.base_batch_size: not at all, with its square root (the usual
    rule for Adam), or linearly."""
    base_batch_size: int = setting(64, ge=2, old_name="optimizer.scaling_from")
    """Global batch size for which optimizer.lr was chosen."""
    scaling_warmup_epochs: float = setting(1.0, ge=0, old_name="optimizer.scaling_warmup")
    """Epochs over which the learning rate goes from optimizer.lr to its scaled value; may be fractional."""


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """Options for `engine = deepspeed`. Both engines use the same checkpoints, so a run can resume with either."""

    zero_stage: Literal[0, 1, 2, 3] = setting(1, Role.RESUMABLE)
    """ZeRO stage, i.e. what is partitioned over ranks: 0 nothing, 1 Adam's moments, 2 also gradients, 3 also weights.
    The network fits any GPU, so higher stages save little memory and are slower."""
    config_file: str = setting("", Role.RESUMABLE | Role.PATH | Role.INPUT_FILE, old_name="deepspeed.config")
    """DeepSpeed JSON file for other settings (bucket sizes, overlap, profiling ...). Batch size, optimizer, precision,
    clipping and stage are set by this configuration; a conflicting JSON is an error."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation during and after training."""

    protocol: Literal["clean", "paper"] = setting(
        "clean", Role.OPERATIONAL | Role.NOT_SEARCHABLE, old_values={"published": "paper"}
    )
    """`clean`: select the epoch on validation and test once at the end. `paper`: also test every epoch and report
    the best test epoch, labeled as such."""
    flip_tta: bool = setting(False, Role.NOT_SEARCHABLE)
    """Average the logits of each image and its mirror image (test-time augmentation), in validation and test, and by
    default in `evaluate`. Exported models and `predict` do not average."""
    run_test: bool = setting(True, Role.INFRASTRUCTURE | Role.NOT_SEARCHABLE, old_name="evaluation.test")
    """Evaluate the selected model on the test split at the end of the run."""
    write_report: bool = setting(True, Role.INFRASTRUCTURE | Role.NOT_SEARCHABLE, old_name="evaluation.report")
    """Write report.html to the run folder at the end of the run."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save checkpoints, in addition to the end of each epoch."""

    save_every_steps: int = setting(
        0, Role.INFRASTRUCTURE | Role.NOT_SEARCHABLE, ge=0, old_name="checkpoint.every_steps"
    )
    """Save every N steps; 0: off."""
    save_every_minutes: float = setting(
        10.0, Role.INFRASTRUCTURE | Role.NOT_SEARCHABLE, ge=0, old_name="checkpoint.every_minutes"
    )
    """Save if N minutes have passed since the last checkpoint; 0: off."""
    keep_last: int = setting(2, Role.INFRASTRUCTURE | Role.NOT_SEARCHABLE, ge=1, old_name="checkpoint.keep")
    """Number of most recent checkpoints to keep, in addition to the one of the selected epoch."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Hardware, logging and fault-tolerance settings. Only `sync_batch_norm` changes the training method."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute precision. bf16 is autocast (heads, attention and losses stay fp32). `auto`: bf16 where it is fast."""
    compile: Literal["off", "default", "reduce-overhead"] = setting(
        "off", Role.RESUMABLE, old_values={"cuda-graphs": "reduce-overhead"}
    )
    """Use torch.compile for the extractor and the branches' stages (heads and losses stay eager). `reduce-overhead`
    also replays their kernels as CUDA graphs. Compiling takes a minute; multiple ranks need sync_batch_norm off."""
    sync_batch_norm: bool = True
    """Compute BatchNorm over the global batch. Off: over each rank's local batch, with running statistics averaged over
    ranks before evaluation and checkpoints; faster, but results depend on the number of ranks."""
    timeout_s: float = setting(300.0, Role.INFRASTRUCTURE, gt=0)
    """Timeout in seconds for waiting for another rank. A rank without a heartbeat for 0.9 times as long prints its
    thread stacks; after 1.5 times as long (4.5 before its first step) it exits."""
    stop_check_steps: int = setting(4, Role.INFRASTRUCTURE, ge=1, old_name="runtime.stop_every")
    """Steps between checks of whether any rank was asked to stop."""
    log_every_steps: int = setting(10, Role.INFRASTRUCTURE, ge=1, old_name="runtime.log_every")
    """Steps between checks that the losses are finite, and between logged metrics."""
    tensorboard: bool = setting(True, Role.INFRASTRUCTURE)
    """Write TensorBoard events to the run folder."""
    trackers: tuple[Literal["wandb", "mlflow"], ...] = setting((), Role.INFRASTRUCTURE, old_name="runtime.loggers")
    """Experiment trackers. They log the same metrics as TensorBoard, plus the configuration and the result. Server,
    project and offline mode are set by each tracker's own environment variables. A resumed run continues its tracker
    run."""
    profile_steps: int = setting(0, Role.INFRASTRUCTURE, ge=0, old_name="runtime.profile")
    """Number of steps that rank 0 profiles, after a short warmup. Traces for Perfetto and TensorBoard are written to
    trace/ in the run folder; 0: off."""
    tracked_samples: tuple[str, ...] = setting((), Role.OPERATIONAL, old_name="runtime.history_samples")
    """Keys of training samples whose full distributions are recorded every epoch, for the report."""
    num_tracked_samples: int = setting(32, Role.OPERATIONAL, ge=0, old_name="runtime.history_faces")
    """Number of additional samples to track: half are those with the most annotator disagreement, if the dataset has
    votes; the rest are sampled at random."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of a training run. The defaults are the paper's recipe for RAF-DB."""

    out: str = setting("", Role.INFRASTRUCTURE | Role.PER_NODE | Role.NOT_SEARCHABLE)
    """Run folder; empty: runs/NAME-seedSEED, where NAME is the preset, or the file name if only --config is given."""
    resume: str = setting("auto", Role.INFRASTRUCTURE | Role.PATH | Role.NOT_SEARCHABLE)
    """`auto`: resume from the newest valid checkpoint in the run folder; `never`: fail if the run folder has one; or
    the path of a checkpoint to start from."""
    allow_other_data: bool = setting(False, Role.INFRASTRUCTURE | Role.NOT_SEARCHABLE)
    """Resume even if the dataset's digest differs from the one in the checkpoint. The keys and labels of the training
    split must still be the same. Applies to this start only and is not stored with the run."""
    seed: int = setting(0, Role.OPERATIONAL | Role.NOT_SEARCHABLE, ge=0, lt=2**63)
    """Random seed of weights, sample order and augmentation."""
    epochs: int = setting(75, Role.RESUMABLE | Role.NOT_SEARCHABLE, ge=1)
    """Number of training epochs."""
    batch_size: int = setting(64, ge=2)
    """Global batch size: samples per step over all ranks."""
    engine: Literal["ddp", "deepspeed"] = setting("ddp", Role.RESUMABLE)
    """Distributed engine: PyTorch DistributedDataParallel or DeepSpeed ZeRO. Both compute the same steps."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    class_distributions: ClassDistributionConfig = field(default_factory=ClassDistributionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
