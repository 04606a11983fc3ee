"""Convert publicly available weights to a safetensors file for `model.pretrained`.

python -m adadf_dist.weights dlib --out FILE.safetensors
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adadf_dist.config.backbone_names import DLIB_RESNET
from adadf_dist.console.exit import cli_errors
from adadf_dist.console.parser import make_parser
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import add_overwrite_option, check_output_path
from adadf_dist.weights.dlib import convert_package, write_weights
from adadf_dist.weights.face_api import ARCHIVE, PACKAGE, fetch_package, read_package

DESCRIPTION = f"""\
Convert dlib's face recognition network (dnn_face_recognition_resnet_model_v1, weights in the public domain) from the
npm package {PACKAGE} (MIT license), which contains it quantized to 8 bits. The written file expects images
normalized like all images here, by ImageNet's mean and standard deviation.
"""
EPILOG = f"""\
examples:
  python -m adadf_dist.weights dlib --out dlib.safetensors
  npm pack {PACKAGE}
  python -m adadf_dist.weights dlib --from {ARCHIVE} --out dlib.safetensors
  python -m adadf_dist.train --model.backbone {DLIB_RESNET} --model.pretrained dlib.safetensors ...
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("adadf_dist.weights", __doc__)
    networks = parser.add_subparsers(dest="network", required=True)
    dlib = networks.add_parser("dlib", help="dlib's face recognition network", description=DESCRIPTION, epilog=EPILOG)
    dlib.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="FILE.tgz",
        help="the npm package, or the folder with its content (default: fetch it with npm)",
    )
    dlib.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="file to write")
    add_overwrite_option(dlib, "FILE.safetensors")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with cli_errors("adadf_dist.weights"):
        check_output_path(args.out, args.overwrite, "--out")
        if args.out.suffix != ".safetensors":
            raise UserError(f"--out {args.out}: the file name must end in .safetensors")
        with tempfile.TemporaryDirectory() as folder:
            package = read_package(args.source or fetch_package(Path(folder)))
        tensors = convert_package(package)
        write_weights(args.out, tensors, package)
        print(f"{args.out}: {len(tensors)} tensors of {package.name}, for model.backbone {DLIB_RESNET}")


if __name__ == "__main__":
    main()
