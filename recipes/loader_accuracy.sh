#!/bin/sh
# Reproduces: validation accuracy with the torch loader (62.71%) and the DALI loader (63.60%), means of three seeds,
#   4 epochs of ResNet10 at 32x32; and the mean difference of their images, 0.0000 levels.
# Time: not recorded; machine A, one process per run.
# Data: a folder with fer2013.csv and fer2013new.csv, as an argument or in FER2013. Needs the extra `dali`.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
recipes/fer2013_data.sh "${1:-${FER2013:-}}" fer2013
for loader in torch dali; do
    for seed in ${SEEDS:-0 1 2}; do
        "$PYTHON" -m adadf_dist.train --preset fer2013 --model.backbone resnet10 --data.image_size 32 --epochs 4 \
            --data.loader "$loader" --class_distributions.threshold 0.5 --loss.epoch_threshold 2 \
            --optimizer.warmup_steps 200 --evaluation.run_test false --seed "$seed" \
            --out "runs/loader-$loader-$seed"
    done
done
mkdir -p runs
"$PYTHON" -m benchmarks loader-images --shards data/fer2013 --image-size 32 --out runs/loaders-fer2013.png --overwrite
