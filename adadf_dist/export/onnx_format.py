"""Export to ONNX and run ONNX files; the only module that imports onnx, onnxscript and onnxruntime."""

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
        f"ONNX support requires onnx, onnxscript and onnxruntime ({single_line(problem)}); install them with "
        "pip install 'adadf_dist[onnx]'"
    ) from None

OPSET = 18
"""Default opset: the lowest that PyTorch's exporter supports, because more runtimes support older opsets."""


def check_opset(opset: int) -> None:
    """Raise `UserError` with the valid range if the exporter or runtime does not support the opset."""
    highest = OPSET
    while highest < onnx.defs.onnx_opset_version() and is_opset_supported(highest + 1):
        highest += 1
    if not OPSET <= opset <= highest:
        raise UserError(
            f"--opset {opset}: must be from {OPSET} (the lowest that torch {torch.__version__} supports) to {highest} "
            f"(the highest that onnx {onnx.__version__} and ONNX Runtime {onnxruntime.__version__} support)"
        )


def is_opset_supported(opset: int) -> bool:
    """Return whether the installed ONNX Runtime can load a minimal model with the given opset."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "smallest", [x], [y])
    imports = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)  # what torch's exporter writes
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), quiet_options(), providers=["CPUExecutionProvider"])
    except Exception:  # its errors have no common base class
        return False
    return True


def write(network: TargetNetwork, metadata: ExportMetadata, path: Path, opset: int = OPSET) -> None:
    """Export the network to an ONNX file that contains no local paths. Raises `UserError` for an unsupported opset."""
    check_opset(opset)
    with suppress_exporter_warnings():
        # the same graph as for torch.export, traced with a dynamic batch size
        program = torch.onnx.export(
            trace(network, metadata),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    actual = {entry.domain: entry.version for entry in model.opset_import}[""]
    if actual != opset:
        raise UserError(f"--opset {opset}: this network can only be exported as opset {actual}; pass --opset {actual}")
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.functions):
        del part.metadata_props[:]  # Python source locations
        part.doc_string = ""
    onnx.helper.set_model_props(model, metadata.to_metadata())
    onnx.save(model, path)


@contextmanager
def suppress_exporter_warnings() -> Iterator[None]:
    """Suppress the exporter's warnings, because the exported file is verified numerically."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def quiet_options() -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    return options


class OnnxNetwork:
    """An ONNX file loaded into ONNX Runtime, on the CPU or a CUDA device. Loading raises `UserError`."""

    def __init__(self, path: Path, device: torch.device) -> None:
        provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise UserError(
                f"{path}: the installed ONNX Runtime has no {provider}; install onnxruntime-gpu or pass --device cpu"
            )
        try:
            self._session = onnxruntime.InferenceSession(str(path), quiet_options(), providers=[provider])
        except Exception as error:  # its errors have no common base class
            raise UserError(f"{path}: ONNX Runtime cannot open it ({single_line(error, 160)})") from None
        self.metadata = ExportMetadata.from_metadata(self._session.get_modelmeta().custom_metadata_map, path)

    def __call__(self, images: Tensor) -> Tensor:
        (logits,) = self._session.run([OUTPUT], {INPUT: images.cpu().numpy()})
        return torch.from_numpy(logits)


def has_cuda() -> bool:
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
