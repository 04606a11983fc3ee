#!/bin/sh
# Reproduces: finding mislabeled samples, AUC 0.911, 0.902, 0.889 with 10, 20, 30% of 8,465 FER+ labels corrupted, and
#   0.766 for FER2013's own labels against FER+; every score of docs/audit.md.
# Time: not recorded; 160 s of training per run on one core of machine B, 4 runs, plus the audits.
# Data: a folder with fer2013.csv and fer2013new.csv, as an argument or in FER2013.
# The rows of confident learning need the extra `benchmarks`.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
recipes/fer2013_data.sh "${1:-${FER2013:-}}" fer2013-30 fer-30 fer2013
train() { # NAME OPTION...
    name=$1
    shift
    "$PYTHON" -m adadf_dist.train --preset fer2013 --model.backbone resnet10 --data.image_size 32 --epochs 8 \
        --loss.epoch_threshold 5 --class_distributions.threshold 0.5 --optimizer.warmup_steps 200 --seed 0 \
        --out "runs/audit-$name" "$@"
}
for rate in 0.1 0.2 0.3; do
    train "noise-$rate" --data.shards data/fer2013-30 --data.label_noise_rate "$rate"
    "$PYTHON" -m benchmarks audit "runs/audit-noise-$rate"
done
train fer --data.shards data/fer-30
"$PYTHON" -m benchmarks audit runs/audit-fer --reference-labels data/fer2013
