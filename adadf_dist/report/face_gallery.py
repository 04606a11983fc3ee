"""Image gallery: the most and least confident predictions of the selected model, and its most confident errors."""

from __future__ import annotations

import numpy as np

from adadf_dist.report.figures.tracked_sample import entropy
from adadf_dist.report.run_reader import RunData
from adadf_dist.report.thumbnails import Thumbnails
from adadf_dist.tracking.artifacts import SavedPredictions

NUM_SHOWN = 14


def gallery_sections(run: RunData, pictures: Thumbnails) -> list[tuple[str, list[dict[str, str | None]]]] | None:
    """Return validation samples by section title; None if the predictions are not available yet."""
    recorded = run.predictions("validation")
    if recorded is None:
        return None
    return [
        (title, [describe_sample(recorded, int(number), pictures) for number in numbers])
        for title, numbers in most_and_least_confident(recorded).items()
        if len(numbers)
    ]


def most_and_least_confident(recorded: SavedPredictions) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """Return sample indices by section title."""
    unsure = entropy(recorded.answers.target_probs)
    order = np.argsort(unsure, kind="stable")
    wrong = order[recorded.answers.predicted_labels[order] != recorded.faces.labels[order]]
    return {
        "Most confident": order[:NUM_SHOWN],
        "Least confident": order[::-1][:NUM_SHOWN],
        "Most confident errors": wrong[:NUM_SHOWN],
    }


def describe_sample(recorded: SavedPredictions, number: int, pictures: Thumbnails) -> dict[str, str | None]:
    classes, key = recorded.faces.classes, str(recorded.faces.keys[number])
    predicted = recorded.answers.predicted_labels[number]
    votes = recorded.faces.votes[number] if recorded.faces.votes is not None else np.zeros(len(classes))
    most = [c for c in np.argsort(-votes, kind="stable")[:3] if votes[c]]
    return {
        "key": key,
        "url": pictures.find(key, "validation"),
        "label": classes[recorded.faces.labels[number]],
        "predicted": classes[predicted],
        "share": f"{recorded.answers.target_probs[number, predicted]:.0%}",
        "votes": ", ".join(f"{classes[c]} {votes[c]:g}" for c in most),
    }
