#!/bin/sh
# Reproduces: validation accuracy with class distributions from the training pass (62.71%) and from a second pass
#   (62.74%), means of three seeds, 4 epochs of ResNet10 at 32x32.
# Time: not recorded; machine A, one process per run.
# Data: a folder with fer2013.csv and fer2013new.csv, as an argument or in FER2013.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
recipes/fer2013_data.sh "${1:-${FER2013:-}}" fer2013
for source in running second_pass; do
    for seed in ${SEEDS:-0 1 2}; do
        "$PYTHON" -m adadf_dist.train --preset fer2013 --model.backbone resnet10 --data.image_size 32 --epochs 4 \
            --data.loader torch --class_distributions.source "$source" --class_distributions.threshold 0.5 \
            --loss.epoch_threshold 2 --optimizer.warmup_steps 200 --evaluation.run_test false --seed "$seed" \
            --out "runs/source-$source-$seed"
    done
done
