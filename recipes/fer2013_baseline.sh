#!/bin/sh
# Reproduces: Ada-DF against its single-label baseline on FER2013, 12 epochs of ResNet10 at 32x32, three seeds:
#   FER+ labels 70.80 and 71.44%, FER labels 55.02 and 55.52%; and the distances of predictions, fused and class
#   distributions from the FER+ votes (KL of fused distributions 0.484 nats).
# Time: 5 to 10 minutes per run, 12 runs, on machine B (one process per run).
# Data: a folder with fer2013.csv and fer2013new.csv, as an argument or in FER2013.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
recipes/fer2013_data.sh "${1:-${FER2013:-}}" fer2013 fer
for data in fer2013 fer; do
    for target in one_hot fused; do
        for seed in ${SEEDS:-0 1 2}; do
            run=runs/baseline-$data-$target-$seed
            "$PYTHON" -m adadf_dist.train --preset fer2013 --data.shards "data/$data" --model.backbone resnet10 \
                --data.image_size 32 --epochs 12 --loss.epoch_threshold 3 --loss.supervision "$target" \
                --class_distributions.threshold 0.5 --optimizer.warmup_steps 200 --seed "$seed" --out "$run"
            "$PYTHON" -m adadf_dist.evaluate "$run" --json "$run/evaluation.json" --overwrite
        done
    done
    "$PYTHON" -m adadf_dist.report runs/baseline-$data-one_hot-? runs/baseline-$data-fused-? \
        --out "runs/baseline-$data.html" --overwrite
done
