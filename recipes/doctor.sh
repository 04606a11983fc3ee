#!/bin/sh
# Reproduces: the doctor's findings on FER2013, 340 exact leaks from Training into PublicTest and 248 near-duplicates
#   (docs/data.md, README.md).
# Time: 1 minute, the build included, on two AMD EPYC cores with other work running.
# Data: a folder with fer2013.csv and fer2013new.csv, as an argument or in FER2013.
# The doctor's exit status is 1 for warnings and 2 for errors, which is expected here.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
root=${1:-${FER2013:-}}
: "${root:?pass the folder with fer2013.csv and fer2013new.csv as an argument, or set FER2013}"
recipes/fer2013_data.sh "$root" fer2013
for path in "$root" data/fer2013; do
    status=0
    "$PYTHON" -m shards.doctor "$path" || status=$?
    [ "$status" -le 2 ] || exit "$status"
done
