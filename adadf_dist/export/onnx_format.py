"""The network as ONNX, for any runtime; the only file that knows onnx, onnxscript and onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adadf_dist.errors import UserError, single_line
from adadf_dist.export.metadata import ExportMetadata
from adadf_dist.export.target_network import INPUT, OUTPUT, TargetNetwork
from adadf_dist.export.torch_export_format import trace

try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  (torch's exporter needs it)
except ImportError as problem:
    raise UserError(
        f"ONNX needs the packages onnx, onnxscript and onnxruntime ({single_line(problem)}): "
        "pip install 'adadf_dist[onnx]'"
    ) from None

OPSET = 18
"""Lowest that torch's exporter makes, and the default: the older the opset, the more runtimes read it."""


def check_opset(opset: int) -> None:
    """Raises `UserError` naming the range, for one that exporter or runtime does not know."""
    highest = OPSET
    while highest < onnx.defs.onnx_opset_version() and is_opset_supported(highest + 1):
        highest += 1
    if not OPSET <= opset <= highest:
        raise UserError(
            f"--opset {opset}: from {OPSET} (the lowest that torch {torch.__version__} exports) to {highest} (the "
            f"highest that onnx {onnx.__version__} and ONNX Runtime {onnxruntime.__version__} both know)"
        )


def is_opset_supported(opset: int) -> bool:
    """Whether the installed ONNX Runtime takes a smallest model of an opset."""
    there, back = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "smallest", [there], [back])
    imports = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)  # what torch's exporter writes
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), quiet_options(), providers=["CPUExecutionProvider"])
    except Exception:  # its errors have no common class of their own
        return False
    return True


def write(network: TargetNetwork, facts: ExportMetadata, path: Path, opset: int = OPSET) -> None:
    """Raises `UserError` for an opset that does not work here. No path of this machine is left in the file."""
    check_opset(opset)
    with suppress_exporter_warnings():
        # one graph for both kinds of file, traced for batches of any size
        program = torch.onnx.export(
            trace(network, facts),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    made = {entry.domain: entry.version for entry in model.opset_import}[""]
    if made != opset:
        raise UserError(f"--opset {opset}: this network could only be exported as opset {made}; give --opset {made}")
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.functions):
        del part.metadata_props[:]  # where each step stands in Python
        part.doc_string = ""
    onnx.helper.set_model_props(model, facts.to_metadata())
    onnx.save(model, path)


@contextmanager
def suppress_exporter_warnings() -> Iterator[None]:
    """The exporter's warnings are for its developers: what it makes is checked here, number by number."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def quiet_options() -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised too
    return options


class OnnxNetwork:
    """An ONNX file in ONNX Runtime, on the CPU or a CUDA device. Raises `UserError`."""

    def __init__(self, path: Path, device: torch.device) -> None:
        provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise UserError(
                f"{path}: the installed ONNX Runtime has no {provider}; install onnxruntime-gpu, or give --device cpu"
            )
        try:
            self._session = onnxruntime.InferenceSession(str(path), quiet_options(), providers=[provider])
        except Exception as error:  # its errors have no common class of their own
            raise UserError(f"{path}: ONNX Runtime does not open it ({single_line(error, 160)})") from None
        self.facts = ExportMetadata.from_metadata(self._session.get_modelmeta().custom_metadata_map, path)

    def __call__(self, images: Tensor) -> Tensor:
        (logits,) = self._session.run([OUTPUT], {INPUT: images.cpu().numpy()})
        return torch.from_numpy(logits)


def has_cuda() -> bool:
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
