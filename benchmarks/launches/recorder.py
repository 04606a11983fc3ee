"""Record what a piece of code asks of a CUDA device: operations that launch kernels, copies, and faults."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = ("_to_copy", "copy_", "_foreach_copy_")
"""Operations whose tensors may be on different devices."""
NO_LAUNCH = {
    *("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "lift_fresh", "is_pinned", "is_same_size", "set_", "resize_", "record_stream"),
    *("squeeze_", "unsqueeze_", "t_", "transpose_", "detach_", "as_strided_"),
}
"""Operations that only allocate or describe memory, besides the views."""
WAITS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount"),
}
"""Operations that give the host a value or a size that the device has to compute first."""
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")


class OpRecorder(TorchDispatchMode):
    """Records the operations on CUDA tensors, real or fake, while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        """How often each operation that launches kernels was called. A few of them launch more than one kernel."""
        self.copies_to_device = 0
        """Number of copies from the host to the device."""
        self.faults: list[str] = []
        """Host waits and mixed devices, each with the place in the code."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        inputs = tensors([*args, *kwargs.values()])
        self._check_inputs(name, inputs, args, kwargs)  # before the call, which may raise for the same reason
        result = func(*args, **kwargs)
        outputs = tensors(result)
        if any(on_cuda(tensor) for tensor in (*inputs, *outputs)):
            if name in COPIES:
                self._record_copy(name, func, args, kwargs, outputs)
            elif func.namespace == "aten" and not func.is_view and name not in NO_LAUNCH | WAITS:
                self.ops[name] += 1
        return result

    @property
    def launches(self) -> int:
        return sum(self.ops.values())

    def _check_inputs(self, name: str, inputs: list[Tensor], args: Any, kwargs: Any) -> None:
        if not any(map(on_cuda, inputs)):
            return
        if name in WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self._fault(name)
        if name in INDEXING and any(index.dtype in (torch.bool, torch.uint8) for index in tensors(args[1])):
            self._fault(f"{name} with a boolean mask")
        # a scalar on the host becomes an argument of the kernel
        if name not in COPIES and any(tensor.ndim and not on_cuda(tensor) for tensor in inputs):
            self._fault(f"{name} of tensors on different devices")

    def _record_copy(self, name: str, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        source = tensors(given["src"] if "src" in given else given["self"])[0]
        target = tensors(given["self"])[0] if "src" in given else outputs[0]
        if on_cuda(source) and on_cuda(target):
            self.ops[name] += 1
        elif on_cuda(source):
            self._fault(f"{name} to the host")
        else:
            self.copies_to_device += 1
            if not given.get("non_blocking", False):
                self._fault(f"blocking {name} to the device")

    def _fault(self, what: str) -> None:
        self.faults.append(f"{what} at {caller()}")


def tensors(values: Any) -> list[Tensor]:
    """Return the tensors in nested lists and dictionaries."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def on_cuda(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def caller(own: Iterable[str] = (__file__,)) -> str:
    """Return the file and line of the innermost frame outside torch and this module."""
    frame = sys._getframe()
    while frame.f_back is not None and (
        frame.f_code.co_filename in own or "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename[0] == "<"
    ):
        frame = frame.f_back
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-2:])}:{frame.f_lineno}"
