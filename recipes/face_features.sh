#!/bin/sh
# Reproduces: FER2013 in the paper's regime, on frozen face recognition features: 12,000 training images, 75 epochs. The target branch is
#   trained on labels (plain, smoothed), votes, fused distributions (published), and fused distributions with the extensions.
# Time: 3 to 4 minutes per run on one core of machine B with other work running; 5 minutes for the features of each dataset.
# Data: a folder with fer2013.csv and fer2013new.csv, as the first argument or in FER2013; npm, or FACE_API=FILE.tgz (docs/backbones.md).
# usage: recipes/face_features.sh FER2013_FOLDER
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
recipes/fer2013_data.sh "${1:-${FER2013:-}}" fer2013-12k
weights=data/dlib.safetensors
[ -e "$weights" ] || "$PYTHON" -m adadf_dist.weights dlib ${FACE_API:+--from "$FACE_API"} --out "$weights"
for seed in ${SEEDS:-0 1 2}; do
    for arm in ${ARMS:-one_hot smooth votes fused anchor adjusted best}; do
        case $arm in
            one_hot) keys="--loss.supervision one_hot" ;;
            smooth) keys="--loss.supervision one_hot --loss.label_smoothing 0.1" ;;
            votes) keys="--loss.supervision votes" ;;
            fused) keys="--loss.epoch_threshold 5" ;;
            anchor) keys="--loss.epoch_threshold 5 --loss.detach_targets true --loss.min_label_prob 0.5" ;;
            adjusted) keys="--loss.epoch_threshold 5 --loss.detach_targets true --loss.target_adjustment 0.3" ;;
            best) keys="--loss.epoch_threshold 5 --loss.detach_targets true --loss.min_label_prob 0.5 \
                --loss.target_adjustment 0.3" ;;
            *) echo "recipes/face_features.sh: unknown arm $arm" >&2; exit 2 ;;
        esac
        # shellcheck disable=SC2086  # keys are several words
        "$PYTHON" -m adadf_dist.train --preset fer2013 --data.shards data/fer2013-12k --data.image_size 112 \
            --model.backbone dlib_resnet29 --model.pretrained "$weights" --model.shared_until pooled \
            --model.cached_augmentations 1 --augment.policy none --augment.flip_prob 0 --augment.erase_prob 0 \
            --batch_size 256 --epochs 75 --optimizer.name adamw --optimizer.weight_decay 0.05 --optimizer.lr 1e-3 \
            --optimizer.schedule cosine_by_step --optimizer.ema_decay 0.99 $keys \
            --seed "$seed" --out "runs/face-features-$arm-$seed"
        "$PYTHON" -m adadf_dist.evaluate "runs/face-features-$arm-$seed" \
            --json "runs/face-features-$arm-$seed/evaluation.json" --overwrite
    done
done
"$PYTHON" -m adadf_dist.report runs/face-features-one_hot-? runs/face-features-best-? \
    --out runs/face-features.html --overwrite
