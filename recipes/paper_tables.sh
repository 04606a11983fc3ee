#!/bin/sh
# Reproduces: the paper's Tables 1 and 2 on FER2013: lambda_min, t, E and the ablation, 17 configurations with three
#   seeds each, 30% of the samples, 8 epochs of ResNet10 at 32x32 (default: 60.03% on test).
# Time: 160 s per run on one core, an hour or two in all, on machine B.
# Data: a folder with fer2013.csv and fer2013new.csv, as an argument or in FER2013.
# Needs the extra `tune` (Ray); add --local to run one trial after another without it.
# The tables were measured with t = 0.5 and E = 2 as the preset's values.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
recipes/fer2013_data.sh "${1:-${FER2013:-}}" fer2013-30
"$PYTHON" -m tune.tables lambda_min threshold epoch_threshold ablation --preset fer2013 --data.shards data/fer2013-30 \
    --data.image_size 32 --model.backbone resnet10 --epochs 8 --data.num_workers 1 \
    --class_distributions.threshold 0.5 --loss.epoch_threshold 2 --optimizer.warmup_steps 200 \
    --num-seeds 3 --out runs/tables
