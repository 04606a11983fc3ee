#!/bin/sh
# Reproduces: n ranks equal one within 1e-9 in float64 (30 steps, 2 and 4 ranks, uneven slices), and ZeRO 0 to 3 equal
#   DDP within 1e-5 in fp32.
# Time: not recorded; machine B.
# Data: none. Needs the extras `deepspeed` and `dev`.
set -eu
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
"${PYTHON:-python}" -m pytest -m slow tests/distributed/test_parity.py tests/engine/test_deepspeed.py
