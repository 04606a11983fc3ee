"""What DeepSpeed is told: our configuration, and a user's own JSON where it says nothing else.

Pure and free of DeepSpeed: a contradiction is found before anything starts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adadf_dist.config import Config
from adadf_dist.errors import UserError
from adadf_dist.settings import flatten, nest

REFUSED = {
    "fp16": "it casts weights and BatchNorm statistics to 16 bits; runtime.precision bf16 keeps both in fp32",
    "bf16": "it casts weights and BatchNorm statistics to 16 bits; runtime.precision bf16 keeps both in fp32",
    "amp": "runtime.precision says how to compute",
    "torch_autocast": "runtime.precision says how to compute; this would also sum gradients in 16 bits",
    "communication_data_type": "gradients are summed in fp32, or n ranks would not be one run",
    "prescale_gradients": "gradients are averaged over the ranks after their sum",
    "gradient_predivide_factor": "gradients are averaged over the ranks after their sum",
    "optimizer": "the optimizer section of this configuration says it all",
    "scheduler": "the optimizer section of this configuration says it all",
    "zero_optimization.offload_optimizer": "the network fits any GPU, and moments are saved whole",
    "zero_optimization.offload_param": "the network fits any GPU, and weights are saved whole",
}
"""Keys and sections of a DeepSpeed JSON that would change what a run is, and why each is refused."""


def deepspeed_settings(config: Config, ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run over `ranks` ranks.

    Raises `UserError` naming both keys where the file `deepspeed.config` contradicts ours.
    """
    rows = math.ceil(config.batch_size / ranks)
    settings: dict[str, object] = {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": 1,  # eqs 9 to 11 need the whole batch at once
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_optimization.stage": config.deepspeed.zero_stage,
        "steps_per_print": 2**31,
    }
    owners = {
        "train_batch_size": ("batch_size", config.batch_size),
        "train_micro_batch_size_per_gpu": ("batch_size", rows),
        "gradient_accumulation_steps": ("batch_size", 1),
        "gradient_clipping": ("optimizer.clip_norm", config.optimizer.clip_norm),
        "zero_optimization.stage": ("deepspeed.zero_stage", config.deepspeed.zero_stage),
    }
    if config.deepspeed.config:
        path = Path(config.deepspeed.config)
        for key, value in flatten(read_json(path)):
            if key in owners:
                check_agreement(path, (key, value), owners[key], ranks)
            else:
                check_allowed(path, key, value)
                settings[key] = value
    return nest(settings)


def read_json(path: Path) -> Mapping[str, object]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"deepspeed.config: {path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"deepspeed.config: {path}: does not parse: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"deepspeed.config: {path}: must hold keys and values, not a {type(content).__name__}")
    return content


def check_agreement(path: Path, theirs: tuple[str, object], ours: tuple[str, object], ranks: int) -> None:
    """A key that this configuration sets too: the same value, or `auto`."""
    (key, value), (our_key, our_value) = theirs, ours
    if value not in ("auto", our_value):
        over = f" over {ranks} ranks, which makes {our_value}" if key.startswith("train_micro") else ""
        raise UserError(
            f"{path}: {key} is {json.dumps(value)}, but {our_key} asks for {our_value}{over}; "
            f"take it out of the file, or change --{our_key}"
        )


def check_allowed(path: Path, key: str, value: object) -> None:
    for refused, reason in REFUSED.items():
        harmless = (key == f"{refused}.enabled" and value is False) or value in (None, "auto")
        if (key == refused or key.startswith(refused + ".")) and not harmless:
            raise UserError(f"{path}: {key} cannot be set: {reason}; take it out of the file")
