#!/usr/bin/env bash
# Check the GPU path on a machine with one GPU, in at most ten minutes and without a network.
#
#   benchmarks/gpu_check.sh               the most important parts first; a table at the end; fails if a part fails
#   benchmarks/gpu_check.sh --rehearse    the same parts with tiny sizes on the CPU, to test this script
#
# OUT: folder for the logs (default: a new temporary one). SITE: folder of additional packages, from gpu_packages.sh.
# PYTHON: interpreter (default: .venv/bin/python, or python3). PARTS: names of the parts to run (default: all).
set -u
export PYTHONPATH=${SITE:+$SITE:}$(cd "$(dirname "$0")/.." && pwd)
cd "$(dirname "$0")/.."
if [ "${1:-}" = --rehearse ]; then export REHEARSE=1; fi
if [ -n "${REHEARSE:-}" ]; then export CUDA_VISIBLE_DEVICES=; fi
if [ -z "${PYTHON:-}" ]; then PYTHON=python3; [ -x .venv/bin/python ] && PYTHON=.venv/bin/python; fi
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
OUT=${OUT:-$(mktemp -d)}
mkdir -p "$OUT"
export OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=$SCRATCH/numba

rows=() failed=0
run() {  # run NAME SECONDS COMMAND...
  local name=$1 limit=$2 began=$SECONDS code=0 status=ok figure
  shift 2
  if [ -n "${REHEARSE:-}" ]; then limit=$((limit * 5)); fi
  if [ -n "${PARTS:-}" ] && [[ " $PARTS " != *" $name "* ]]; then return; fi
  timeout -k 5 "$limit" "$@" >"$OUT/$name.log" 2>&1 || code=$?
  figure=$(sed -n 's/^figure: //p' "$OUT/$name.log" | tail -n 1)
  if [ "$code" = 124 ] || [ "$code" = 137 ]; then status=timeout; elif [ "$code" != 0 ]; then status=failed; fi
  if [ "$status" != ok ]; then
    failed=1
    figure=${figure:-see $OUT/$name.log}
    tail -n 15 "$OUT/$name.log" | cut -c1-300
  fi
  rows+=("$(printf '%-14s %-8s %8s  %s' "$name" "$status" "$((SECONDS - began))" "$figure")")
  echo "${rows[-1]}"
}
part() { run "$1" "$2" "$PYTHON" -m benchmarks.gpu_parts "$1" "$SCRATCH/faces"; }

tests=(-m gpu tests/engine/test_gpu.py tests/data/loaders/test_dali.py)
if [ -n "${REHEARSE:-}" ]; then tests=(tests/engine/test_no_sync.py); fi
report='{ print } / (passed|failed|error|skipped).* in / { gsub(/^=* *| *=*$/, ""); print "figure: " $0 }'

part device 20
part faces 60
run tests 140 bash -o pipefail -c '"$@" | awk "$0"' "$report" \
  "$PYTHON" -m pytest -q -n 0 -p no:cacheprovider "${tests[@]}"
part waits 25
part step-64-224 35
part step-256-100 35
part step-1024-100 35
part loader 60
part training 85
part compile 85

printf '\n%-14s %-8s %8s  %s\n' part status seconds figure
printf '%s\n' "${rows[@]}"
echo "logs: $OUT"
exit "$failed"
