"""Everything a run can be told: one frozen dataclass a concern, every key documented where it is declared.

A configuration is built from layers, later ones winning: the defaults below (the paper's RAF-DB recipe),
a preset, a user's file (TOML or YAML), the command line. `build_config` is the only way in: the command
line, files, tests and searches all hand it dotted keys. What a run resolved to is written to
`config.yaml` in its folder and into every checkpoint, and reads back through the same function.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which faces, in which order, and who decodes them."""

    shards: str = ""
    """Dataset folder, as `python -m shards.build` writes it, or its URL: file://, http(s)://, s3:// or gs://."""
    access: Literal["cache", "stream"] = "cache"
    """`cache`: remote shards are fetched to this node once, checked, then read like local ones. `stream`: training
    tars are read front to back from where they are, each face once an epoch. Streaming promises no exact order (it
    depends on ranks and workers), no sampler but `all`, and no exact resume in mid-epoch."""
    cache: str = "~/.cache/adadf_dist"
    """Folder on this node into which remote shards are fetched; runs share it."""
    cache_size_gb: float = 0.0
    """Most that the cache may hold, in GB (10^9 bytes): datasets that no run has in use give way, the least recently
    used first; 0: as much as the disk takes."""
    shuffle_buffer: int = 1000
    """Encoded faces among which each worker draws the next one when streaming."""
    embedded_faces: tuple[int, ...] = ()
    """Train, validation and test faces to draw into data.shards when that folder is missing; empty: none."""
    loader: Literal["auto", "dali", "torch"] = "auto"
    """Who decodes and augments: `dali` is NVIDIA DALI, on the GPU where there is one; `torch` is Pillow in worker
    processes; `auto` is dali where it imports and shards are not streamed. Both make the same pictures."""
    workers: int = 2
    """Decoding processes a rank (0: decode in the training process), or for DALI its threads."""
    prefetch: int = 4
    """Batches each worker decodes ahead, or for DALI the batches that wait ready on the device."""
    max_bad_faces: int = 100
    """Training faces a rank may find that no longer decode; each is named, and another of its class, drawn from (seed,
    epoch, sample), takes its place. One more is an error; 0: the first is. In evaluation and streaming any is."""
    sampler: Literal["all", "balanced", "oversample", "sqrt"] = "all"
    """`all`: every face once an epoch; `balanced`: each class cut to the rarest (the paper on AffectNet);
    `oversample`: each class repeated to the largest; `sqrt`: class shares by the root of their counts."""
    validation_fraction: float = 0.1
    """Share of train, stratified by class, set aside for selection when the dataset has no validation split."""
    image_size: int = 224
    """Side in pixels of the network's input; stored faces are resized to it."""
    ten_crop: int = 0
    """Side to which faces are resized before ten crops of data.image_size are cut, corners and centre and the same
    mirrored, in training and evaluation (the paper on SFEW: 256); 0: no crops."""
    label_noise: float = 0.0
    """Share of training faces whose label becomes another class, drawn evenly by the seed; validation and test stay."""
    label_noise_file: str = ""
    """Noise of another kind for train: a csv of class names and a row of probabilities for each true class, or a list
    of `name label` lines as SCN and EAC publish them. A name that no sample of the dataset has is an error."""
    relabel: str = ""
    """Decisions on training faces (csv: key,decision,label), as the page of `python -m adadf_dist.audit` exports them:
    another class, or out of train. Carried out after validation is carved and before label noise; validation and test
    stay."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What may happen to a training face. All draws are a pure function of (seed, epoch, sample)."""

    policy: Literal["none", "published", "standard"] = "published"
    """RandAugment: `published` as in the paper's code, `standard` as in torchvision, `none` to leave it out."""
    operations: int = 3
    """Operations drawn a face."""
    magnitude: float = 5.0
    """Strength: 0 to 10 for `published`, 0 to 30 for `standard`."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    erase: float = 0.5
    """Probability of random erasing, after normalisation."""
    erase_scale: tuple[float, float] = (0.02, 0.25)
    """Smallest and largest share of the area that erasing removes."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two-branch network (section 3 of the paper)."""

    backbone: str = "resnet18"
    """resnet10, 18, 34, 50 or 101 (`resnet10` is ResNet18 with one block a stage, for demos and tests on a CPU), or
    `timm:NAME` with a name of timm's, such as timm:convnext_tiny: docs/backbones.md."""
    split: str = ""
    """The backbone's last stage in the shared extractor; those after it are doubled. Empty: its first at a quarter of
    the image's side (`layer1` of a ResNet, as in the paper), of a vision transformer a quarter of the blocks."""
    pretrained: str = ""
    """Weights to start from: a file, `imagenet` (torchvision's, or timm's), or empty for none."""
    freeze: Literal["auto", "always", "never"] = "auto"
    """Keep the extractor as loaded, its BatchNorm included; `auto`: when pretrained weights are loaded."""
    attention_on: Literal["logits", "features"] = "logits"
    """What a branch's attention weight multiplies: the paper's code scales logits, its text features."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Equations 3 and 8 to 16."""

    lambda_min: float = 0.2
    """Lower limit of the normalised attention weights (eq 11)."""
    epoch_threshold: int = 3
    """Epoch at which the target branch's loss is fully in and the auxiliary one's begins to fade (eq 15, 16)."""
    rank_ratio: float = 0.7
    """Share of a batch in the high-attention group (beta of eq 10)."""
    rank_margin: float = 0.07
    """Margin between the mean attention of the two groups (delta of eq 9)."""
    supervision: Literal["fused", "label", "class", "one_hot"] = "fused"
    """Target branch learns from: the fused distribution (eq 12), the label distribution alone, the class
    distribution alone, or the annotated label by cross entropy without an auxiliary branch (baseline)."""
    detach: bool = False
    """Stop the gradient that reaches the auxiliary branch and attention through the fused distribution."""
    scope: Literal["global", "local"] = "global"
    """Whose batch equations 9 to 11 see: all ranks' (any number of ranks is one run), or a rank's own (faster)."""


@dataclass(frozen=True, kw_only=True)
class ClassDistributionConfig:
    """Equations 4 to 7."""

    threshold: float = 0.7
    """t: a class mean whose own description degree is below it gives way to the threshold distribution."""
    off_diagonal: Literal["normalised", "published"] = "normalised"
    """Rest of the threshold distribution: (1-t)/(C-1), or 0.4/(C-1) as in the paper's code (sums to 1 at t=.6 only)."""
    source: Literal["running", "pass"] = "running"
    """Label distributions averaged: those seen while training, or those of a second pass in evaluation mode."""
    sharpen: float = 0.0
    """Temperature T in (0, 1) that sharpens the class distributions to p^(1/T), normalised; 0: off."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, its schedule, and the average of the weights."""

    lr: float = 1e-3
    """Learning rate of the first epoch."""
    schedule: Literal["exponential", "cosine"] = "exponential"
    """Exponential: lr * gamma^epoch. Cosine: to zero over the run, by epoch."""
    gamma: float = 0.9
    """Factor an epoch of the exponential schedule."""
    warmup_steps: int | float = 0
    """Steps over which the rate rises from zero: a whole number of them, or a fraction of the run in (0, 1), such as
    0.05; 0: none."""
    attention_lr_factor: float = 1.0
    """The attention heads' rate over the others'. From scratch 1 is too much: while logits are still confidently wrong
    the heads learn to silence them, and a silenced branch hardly learns. 0.02 keeps them behind the features."""
    weight_decay: float = 0.0
    """L2 term of Adam."""
    ema: float = 0.0
    """Decay a step of an average of the weights that is evaluated instead of them; 0: off."""
    clip_norm: float = 0.0
    """Largest norm of a step's gradient, all parameters together; a longer one is scaled down to it; 0: no limit."""
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    """What a global batch other than optimizer.scaling_from makes of optimizer.lr: nothing, or the factor of the
    batches to the power 1/2 (the usual rule for Adam) or 1."""
    scaling_from: int = 64
    """Global batch for which optimizer.lr was chosen."""
    scaling_warmup: float = 1.0
    """Epochs over which the rate goes from optimizer.lr to its scaled value; fractions count."""


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """What `engine = deepspeed` is told. Its checkpoints are those of the other engine: either goes on from them."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """What the ranks share out: 0 nothing, 1 Adam's moments, 2 gradients too, 3 weights too. The network is small
    enough for any GPU, so higher stages save little here and cost speed."""
    config: str = ""
    """Your own DeepSpeed JSON for all else (bucket sizes, overlap, profiling ...). Batch, optimiser, precision,
    clipping and stage are keys of this configuration; a JSON that says otherwise is refused."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured, and when the test split is looked at."""

    protocol: Literal["clean", "published"] = "clean"
    """`clean`: select on validation, test once at the end. `published`: also test every epoch and name the best
    epoch on test, labelled as such."""
    test: bool = True
    """Test the selected model at the end of the run."""
    report: bool = True
    """Write report.html into the run folder at the end."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When everything is saved, besides each epoch's end."""

    every_steps: int = 0
    """Save every so many steps; 0: not by steps."""
    every_minutes: float = 10.0
    """Save when so many minutes have gone by since the last one; 0: not by time."""
    keep: int = 2
    """Newest checkpoints to keep, besides the selected one."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How the machine is used. None of it changes the method, `sync_batch_norm` excepted."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 autocast (heads, attention and losses stay fp32) where `auto` finds the device fast at it."""
    compile: Literal["off", "default", "cuda-graphs"] = "off"
    """torch.compile of the extractor and the branches' stages (heads and losses stay eager); `cuda-graphs` also replays
    their kernels as CUDA graphs. Takes a minute at the start; over several ranks it needs sync_batch_norm off."""
    sync_batch_norm: bool = True
    """BatchNorm over the global batch; off: each rank's own rows while training, running statistics averaged over
    ranks before evaluation and checkpoints. Off is faster, and makes the run depend on the number of ranks."""
    timeout_s: float = 300.0
    """A rank that waits longer than this for another gives up, in seconds. One that gives no sign of life for 0.9 times
    as long prints the stacks of its threads, and for 1.5 times as long (4.5 before its first step) it ends."""
    stop_every: int = 4
    """Steps between two agreements of the ranks on whether to stop."""
    log_every: int = 10
    """Steps between two looks of the host at the losses (finite?) and two lines of metrics."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""
    loggers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Trackers that get what TensorBoard gets, the configuration and the result; server, project and offline mode are
    set by their own environment variables. A resumed run goes on in its run there."""
    profile: int = 0
    """Steps whose profile rank 0 writes, after a few to warm up, into trace/ of the run folder for Perfetto and
    TensorBoard; 0: none."""
    history_samples: tuple[str, ...] = ()
    """Keys of training faces whose full distributions are kept every epoch, for the report."""
    history_faces: int = 32
    """More such faces: half of them those that annotators disagree on most, where there are votes, the others drawn."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run of Ada-DF. The defaults are the paper's recipe for RAF-DB."""

    out: str = ""
    """Run folder; empty: runs/PRESET-seedSEED, PRESET being the file's name where only --config is given."""
    resume: str = "auto"
    """`auto`: go on from the newest whole checkpoint in the run folder; `never`: refuse if there is one; or a
    checkpoint's path to start from."""
    allow_other_data: bool = False
    """Resume although the dataset is not the one that the checkpoint was trained on (its digest differs); the keys and
    labels of the training split must still be the same. It counts for one start and is not stored with the run."""
    seed: int = 0
    """Fixes weights, order and augmentation."""
    epochs: int = 75
    """Passes over the training split."""
    batch_size: int = 64
    """Global batch: faces a step over all ranks."""
    engine: Literal["ddp", "deepspeed"] = "ddp"
    """Who runs a step over the ranks: torch's DistributedDataParallel, or DeepSpeed's ZeRO; the steps are the same."""
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
