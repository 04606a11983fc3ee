#!/bin/sh
# Reproduces: torch.compile on a CPU, ResNet18 in fp32 at 64x64: 183 images/s eager, 172 compiled.
# Time: not recorded; machine B.
# Data: none.
set -eu
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=2
"${PYTHON:-python}" -m benchmarks step --image-sizes 64 --batch-size 64 --steps 8 --compile off default
