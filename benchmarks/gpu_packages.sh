#!/usr/bin/env bash
# Bring the packages that gpu_check.sh needs to a machine without a network, in pieces of at most 60 MB.
#
#   benchmarks/gpu_packages.sh collect FOLDER           here: download, drop what the machine has, write FOLDER/site.tar.xz.*
#   benchmarks/gpu_packages.sh unpack FOLDER SITE       there: join the pieces and unpack them; then SITE=... gpu_check.sh
#
# TARGET_PYTHON: its Python version (default: 3.12). PACKAGES: what to bring, with all they require. PRESENT: packages
# that the machine has, and that are left out. DALI must be built for the CUDA of the machine's torch (here 13).
set -euo pipefail
PYTHON=${PYTHON:-python3}
TARGET_PYTHON=${TARGET_PYTHON:-3.12}
PACKAGES=${PACKAGES:-"nvidia-dali-cuda130==2.4.0 jsonargparse[signatures] webdataset"}
PRESENT=${PRESENT:-"numpy pyyaml typing_extensions packaging six wheel"}
PIECE=${PIECE:-60000000}

usage() { sed -n '4,5s/^# *//p' "$0" >&2; exit 2; }

collect() {
  local scratch platforms=() name
  mkdir -p "$1"
  scratch=$(mktemp -d)
  trap "rm -rf '$scratch'" EXIT
  for name in manylinux2014 manylinux_2_{17,24,27,28,31,34,35,39}; do platforms+=(--platform "${name}_x86_64"); done
  # shellcheck disable=SC2086
  "$PYTHON" -m pip download --quiet --only-binary=:all: --python-version "$TARGET_PYTHON" "${platforms[@]}" \
    --dest "$scratch/wheels" $PACKAGES
  for name in $PRESENT; do rm -f "$scratch/wheels/$name"-[0-9]*.whl; done
  for name in "$scratch"/wheels/*.whl; do "$PYTHON" -m zipfile -e "$name" "$scratch/site"; done
  # extension modules for other Python versions are a fifth of the size
  find "$scratch/site" -name '*.cpython-*.so' ! -name "*.cpython-${TARGET_PYTHON/./}-*" -delete
  rm -f "$1"/site.tar.xz.*
  tar -C "$scratch/site" -c . | xz -T 0 -6 | split -b "$PIECE" -d - "$1/site.tar.xz."
  ls -l "$1"
}

unpack() {
  mkdir -p "$2"
  cat "$1"/site.tar.xz.* | tar -C "$2" -xJ
}

case "${1:-}:$#" in
  collect:2) collect "$2" ;;
  unpack:3) unpack "$2" "$3" ;;
  *) usage ;;
esac
