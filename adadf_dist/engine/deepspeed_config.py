"""Build the DeepSpeed configuration from the run's configuration and the user's JSON file.

This module does not import DeepSpeed, so conflicts are reported before anything starts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adadf_dist.config.keys import flatten, matches_key, unflatten
from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError
from adadf_dist.files.text import read_text

ALLOWED = (
    "zero_optimization.allgather_bucket_size",
    "zero_optimization.allgather_partitions",
    "zero_optimization.contiguous_gradients",
    "zero_optimization.overlap_comm",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.reduce_scatter",
    "zero_optimization.stage3_max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_prefetch_bucket_size",
    "comms_logger.",
    "flops_profiler.",
    "dump_state",
    "memory_breakdown",
    "steps_per_print",
    "wall_clock_breakdown",
)
"""Keys, and sections (ending in a dot), that the JSON file may set because they affect only speed or logging."""

REASON_CASTS = (
    "it casts weights and BatchNorm statistics to 16 bits; use runtime.precision = bf16, which keeps both in fp32"
)
REASON_OPTIMIZER = "use the optimizer.* keys of the run's configuration"
REASON_MEMORY = "offloading is not supported; the network fits on any GPU without it"
REJECT_REASONS = {
    "fp16": REASON_CASTS,
    "bf16": REASON_CASTS,
    "amp": "use runtime.precision",
    "torch_autocast": "use runtime.precision; this would also sum gradients in 16 bits",
    "communication_data_type": "gradients are summed in fp32, so that results do not depend on the number of ranks",
    "prescale_gradients": "gradients are always summed over the ranks before they are divided",
    "gradient_predivide_factor": "gradients are always summed over the ranks before they are divided",
    "optimizer": REASON_OPTIMIZER,
    "scheduler": REASON_OPTIMIZER,
    "zero_optimization.offload_optimizer": REASON_MEMORY,
    "zero_optimization.offload_param": REASON_MEMORY,
    "zero_optimization.round_robin_gradients": "checkpoints could not store Adam's moments by parameter",
}
"""Maps keys that users are likely to set to the reason why they are rejected."""
ALLOWED_HINT = f"allowed keys: {', '.join(ALLOWED)}"


def make_deepspeed_config(config: Config, ranks: int) -> dict[str, Any]:
    """Build the DeepSpeed configuration for a run with `ranks` ranks.

    Raises `UserError` if the file `deepspeed.config_file` sets an unsupported key or contradicts the run's
    configuration.
    """
    rows = math.ceil(config.batch_size / ranks)
    settings: dict[str, object] = {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": 1,  # eqs 9 to 11 need the full batch at once
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization.stage": config.deepspeed.zero_stage,
        "steps_per_print": 2**31,
    }
    owners = {
        "train_batch_size": ("batch_size", config.batch_size),
        "train_micro_batch_size_per_gpu": ("batch_size", rows),
        "gradient_accumulation_steps": ("batch_size", 1),
        "gradient_clipping": ("optimizer.max_grad_norm", config.optimizer.max_grad_norm),
        "zero_optimization.stage": ("deepspeed.zero_stage", config.deepspeed.zero_stage),
    }
    if config.deepspeed.config_file:
        path = Path(config.deepspeed.config_file)
        for key, value in flatten(drop_disabled(read_json(path))):
            if key in owners:
                check_matches_config(path, (key, value), owners[key], ranks)
            else:
                check_allowed(path, key)
                settings[key] = value
    return unflatten(settings)


def drop_disabled(content: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of `content` without entries that have no effect.

    These are the values `auto` and null, sections with `enabled` set to false, and offloading to no device.
    """
    result: dict[str, object] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            off = value.get("enabled") is False or value.get("device", "") in ("none", None)
            value = {} if off else drop_disabled(value)
            if value:
                result[key] = value
        elif value not in ("auto", None):
            result[key] = value
    return result


def unique_keys(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object's key-value pairs as a dict. Raises `ValueError` if a key appears twice."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} appears twice")
        found[key] = value
    return found


def read_json(path: Path) -> Mapping[str, object]:
    text = read_text(path, "deepspeed.config_file")
    try:
        content = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"deepspeed.config_file: {path}: does not parse: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"deepspeed.config_file: {path}: expected a mapping, got {type(content).__name__}")
    return content


def check_matches_config(path: Path, theirs: tuple[str, object], ours: tuple[str, object], ranks: int) -> None:
    """Raise `UserError` if the JSON file contradicts the run's configuration.

    Args:
        path: the JSON file.
        theirs: key and value in the file.
        ours: key in the run's configuration, and the value it requires in the file.
        ranks: number of ranks.
    """
    (key, value), (our_key, our_value) = theirs, ours
    if value != our_value:
        over = f" with {ranks} ranks" if key.startswith("train_micro") else ""
        raise UserError(
            f"{path}: {key} is {json.dumps(value)}, but {our_key} requires {our_value}{over}; "
            f"remove {key} from the file, or change --{our_key}"
        )


def check_allowed(path: Path, key: str) -> None:
    if matches_key(key, ALLOWED):
        return
    reason = next((text for name, text in REJECT_REASONS.items() if f"{key}.".startswith(f"{name}.")), ALLOWED_HINT)
    raise UserError(f"{path}: {key} cannot be set: {reason}; remove this key from the file")
