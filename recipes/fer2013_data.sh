#!/bin/sh
# Builds the FER2013 datasets that the other recipes train on; they call it themselves, and an existing dataset is kept.
#   fer2013      FER+ labels: 25,398 training, 2,821 validation, 3,579 test images (PublicTest)
#   fer          FER2013's own labels: 25,399 training images
#   fer2013-30   FER+ labels, 70% of Training held out: 8,465 training, 19,754 validation images
#   fer-30       the same with FER2013's own labels
#   fer2013-12k  FER+ labels, 57.5% of Training held out: 11,992 training, 16,227 validation images
# Time: 19 to 26 s per dataset on machine A.
# Data: a folder with fer2013.csv (plain or gzipped) and fer2013new.csv (FER+), as the first argument.
# usage: recipes/fer2013_data.sh FER2013_FOLDER DATASET...
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
root=${1:-}
[ $# -eq 0 ] || shift
for name in "$@"; do
    [ ! -e "data/$name" ] || continue
    : "${root:?pass the folder with fer2013.csv and fer2013new.csv as an argument, or set FER2013}"
    case $name in
        fer2013) "$PYTHON" -m shards.build fer2013 --root "$root" --labels ferplus --out data/fer2013 ;;
        fer) "$PYTHON" -m shards.build fer2013 --root "$root" --labels fer --out data/fer ;;
        fer2013-30) "$PYTHON" -m shards.build fer2013 --root "$root" --labels ferplus --validation-fraction 0.7 \
            --out data/fer2013-30 ;;
        fer-30) "$PYTHON" -m shards.build fer2013 --root "$root" --labels fer --validation-fraction 0.7 \
            --out data/fer-30 ;;
        fer2013-12k) "$PYTHON" -m shards.build fer2013 --root "$root" --labels ferplus --validation-fraction 0.575 \
            --out data/fer2013-12k ;;
        *) echo "recipes/fer2013_data.sh: unknown dataset $name" >&2; exit 2 ;;
    esac
done
