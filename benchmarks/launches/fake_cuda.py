"""Fake CUDA tensors on a machine without a GPU. They have shape, dtype and device, but no values.

Torch's autograd asks the CUDA runtime for streams and events even if all tensors are fake. `run_with_stub` therefore
starts a process in which a compiled stub (`cuda_stub.c`) answers instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.cuda.amp.common as amp
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import adadf_dist.engine.base as engine_base
from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError
from adadf_dist.method.model import DualBranch
from adadf_dist.method.pretrained import NO_WEIGHTS, LoadedWeights

DEVICE = torch.device("cuda", 0)
STUB = Path(__file__).with_name("cuda_stub.c")
ROOT = Path(__file__).resolve().parents[2]


def find_compiler() -> str | None:
    """Return the path of a C compiler, or None."""
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def run_with_stub(module: str, words: Sequence[str] = ()) -> str:
    """Run a module in a process with the stub; return its standard output.

    Raises `UserError` if there is no C compiler, or if the process fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise UserError("benchmarks launches: no C compiler found; install gcc or clang")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so.1"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(STUB)], check=True)
        env = {**os.environ, "LD_PRELOAD": str(library), "LD_LIBRARY_PATH": folder, "CUDA_VISIBLE_DEVICES": "0"}
        command = [sys.executable, "-X", "faulthandler", "-m", module, *words]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{module} failed with status {done.returncode}:\n{done.stderr.strip()[-4000:]}")
    return done.stdout


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Make every new tensor fake, and allow the device `cuda:0`, of a generation that supports bf16."""
    with (
        mock.patch.multiple(
            torch.cuda,
            is_available=lambda: False,  # fake tensors would otherwise copy Python numbers to a real device
            _lazy_init=lambda: None,
            is_bf16_supported=lambda *_, **__: True,
            Stream=lambda *_: None,
        ),
        mock.patch.object(amp, "amp_definitely_not_available", lambda: False),
        # what torch would ask the driver about; only the layout of a convolution's output depends on it
        mock.patch.object(torch._C, "_select_conv_backend", lambda *_, **__: torch._C._ConvBackend.Cudnn),
        mock.patch.object(torch._C, "_conv_determine_backend_memory_format", lambda *_: torch.channels_last),
        torch.autograd.set_multithreading_enabled(False),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        fake_models(mode),
    ):
        yield


@contextmanager
def fake_models(mode: FakeTensorMode) -> Iterator[None]:
    """Make engines start from fake copies of real models, since the random numbers of initial weights must be real."""

    def build(config: Config, num_classes: int) -> tuple[nn.Module, LoadedWeights]:
        with unset_fake_temporarily():
            model = engine_base.init_model(config, num_classes)
            if config.model.freeze == "always":
                model.freeze_extractor()
        return replace_tensors(model, mode.from_tensor), NO_WEIGHTS

    def move(model: nn.Module, device: torch.device, memory_format: torch.memory_format) -> nn.Module:
        layout = {4: {"memory_format": memory_format}}
        return replace_tensors(model, lambda tensor: tensor.to(device, **layout.get(tensor.ndim, {})))

    # nn.Module.to swaps the memory of a parameter, which a fake one does not have
    with mock.patch.object(engine_base, "build_model", build), mock.patch.object(DualBranch, "to", move):
        yield


def replace_tensors(model: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(convert(parameter.detach()), parameter.requires_grad)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = convert(buffer)
    return model
