"""The paper's Ada-DF results: test accuracy in percent at the best epoch of one run, from MS-Celeb weights.

Results are keyed by table, dataset preset and row label as in `tune.tables`.
"""

from __future__ import annotations

from collections.abc import Mapping

PAPER_RESULTS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "lambda_min": {  # Table 1
        "rafdb": {"0.0": 89.55, "0.1": 89.85, "0.2": 90.04, "0.3": 89.80, "0.4": 89.88},
        "affectnet7": {"0.0": 65.26, "0.1": 65.13, "0.2": 65.34, "0.3": 65.13, "0.4": 65.17},
        "sfew": {"0.0": 59.36, "0.1": 59.95, "0.2": 60.46, "0.3": 59.01, "0.4": 58.99},
    },
    "threshold": {  # Table 1
        "rafdb": {"0.4": 89.71, "0.5": 89.83, "0.6": 89.96, "0.7": 90.04, "0.8": 89.80},
        "affectnet7": {"0.4": 65.14, "0.5": 65.34, "0.6": 65.12, "0.7": 65.07, "0.8": 65.22},
        "sfew": {"0.4": 57.80, "0.5": 60.46, "0.6": 41.10, "0.7": 37.25, "0.8": 23.12},
    },
    "epoch_threshold": {  # Table 1
        "rafdb": {"1": 89.91, "3": 90.04, "5": 89.83, "7": 88.95, "9": 89.72},
        "affectnet7": {"1": 65.16, "3": 65.30, "5": 65.34, "7": 65.00, "9": 65.12},
        "sfew": {"1": 57.85, "3": 56.29, "5": 60.46, "7": 59.72, "9": 59.34},
    },
    "ablation": {  # Table 2
        "rafdb": {
            "single label": 88.71,
            "label distributions": 89.28,
            "class distributions": 89.50,
            "fused distributions": 90.04,
        },
        "affectnet7": {
            "single label": 64.58,
            "label distributions": 64.63,
            "class distributions": 64.95,
            "fused distributions": 65.34,
        },
        "sfew": {
            "single label": 53.90,
            "label distributions": 56.05,
            "class distributions": 60.23,
            "fused distributions": 60.46,
        },
    },
    "backbone": {  # Table 3
        "rafdb": {"resnet18": 90.04, "resnet50": 90.35},
        "affectnet7": {"resnet18": 65.34, "resnet50": 65.68},
        "sfew": {"resnet18": 60.46, "resnet50": 20.32},
    },
    "noise": {  # Table 4, ResNet18; without noise from Table 3
        "rafdb": {"Ada-DF, 0 %": 90.04, "Ada-DF, 10 %": 87.81, "Ada-DF, 20 %": 86.67, "Ada-DF, 30 %": 84.38},
    },
}

DATASETS = {"rafdb": "RAF-DB", "affectnet7": "AffectNet-7", "sfew": "SFEW"}
