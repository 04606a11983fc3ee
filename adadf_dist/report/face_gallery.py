"""Image gallery: the most and least confident predictions of the selected model, and its most confident errors."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from adadf_dist.report.figures.tracked_sample import entropy
from adadf_dist.report.run_reader import RunData
from adadf_dist.report.thumbnails import Thumbnails
from adadf_dist.tracking.artifacts import SavedPredictions

NUM_SHOWN = 14


def face_sections(run: RunData, pictures: Thumbnails) -> Iterator[str]:
    """Yield the gallery of validation samples, or a note if the predictions are not available yet."""
    yield "<h2>Samples</h2>"
    recorded = run.predictions("validation")
    if recorded is None:
        yield '<p class="note">Validation samples by confidence are available when the run ends.</p>'
        return
    if pictures.missing:
        yield f'<p class="note">{escape(pictures.missing)}</p>'
    for title, numbers in most_and_least_confident(recorded).items():
        if len(numbers):
            yield f'<h3>{title}</h3><div class="faces">'
            yield from (face(recorded, int(number), pictures) for number in numbers)
            yield "</div>"


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


def face(recorded: SavedPredictions, number: int, pictures: Thumbnails) -> str:
    classes, key = recorded.faces.classes, str(recorded.faces.keys[number])
    label, predicted = recorded.faces.labels[number], recorded.answers.predicted_labels[number]
    share = recorded.answers.target_probs[number, predicted]
    url = pictures.find(key, "validation")
    shown = f'<img alt="{escape(key)}" src="{url}">' if url else '<div class="lost">no image</div>'
    kind = "right" if label == predicted else "wrong"
    lines = [f'<b class="{kind}">{escape(classes[predicted])} {share:.0%}</b>', f"label {escape(classes[label])}"]
    if recorded.faces.votes is not None and recorded.faces.votes[number].any():
        votes = recorded.faces.votes[number]
        most = [c for c in np.argsort(-votes, kind="stable")[:3] if votes[c]]
        lines.append("votes " + ", ".join(f"{escape(classes[c])} {votes[c]:g}" for c in most))
    return f"<figure>{shown}<figcaption>{'<br>'.join(lines)}<code>{escape(key)}</code></figcaption></figure>"
