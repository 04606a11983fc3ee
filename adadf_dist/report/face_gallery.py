"""The faces that the selected model is surest of and least sure of, and those that it is surely wrong about."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from adadf_dist.report.figures.tracked_sample import entropy
from adadf_dist.report.run_reader import Run
from adadf_dist.report.thumbnails import Pictures
from adadf_dist.tracking.artifacts import Recorded

SHOWN = 14


def face_sections(run: Run, pictures: Pictures) -> Iterator[str]:
    """Of validation; what training still has to write is said to be missing."""
    yield "<h2>Faces</h2>"
    recorded = run.answers("validation")
    if recorded is None:
        yield '<p class="note">The faces of validation, by certainty, are kept when the run ends.</p>'
        return
    if pictures.missing:
        yield f'<p class="note">{escape(pictures.missing)}</p>'
    for title, numbers in ranked(recorded).items():
        if len(numbers):
            yield f'<h3>{title}</h3><div class="faces">'
            yield from (face(recorded, int(number), pictures) for number in numbers)
            yield "</div>"


def ranked(recorded: Recorded) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """Face numbers by title."""
    unsure = entropy(recorded.answers.target)
    order = np.argsort(unsure, kind="stable")
    wrong = order[recorded.answers.predicted[order] != recorded.faces.labels[order]]
    return {
        "Most certain": order[:SHOWN],
        "Least certain": order[::-1][:SHOWN],
        "Certain, and not as labelled": wrong[:SHOWN],
    }


def face(recorded: Recorded, number: int, pictures: Pictures) -> str:
    classes, key = recorded.faces.classes, str(recorded.faces.keys[number])
    label, predicted = recorded.faces.labels[number], recorded.answers.predicted[number]
    share = recorded.answers.target[number, predicted]
    url = pictures.find(key, "validation")
    shown = f'<img alt="{escape(key)}" src="{url}">' if url else '<div class="lost">no picture</div>'
    kind = "right" if label == predicted else "wrong"
    lines = [f'<b class="{kind}">{escape(classes[predicted])} {share:.0%}</b>', f"label {escape(classes[label])}"]
    if recorded.faces.votes is not None and recorded.faces.votes[number].any():
        votes = recorded.faces.votes[number]
        most = [c for c in np.argsort(-votes, kind="stable")[:3] if votes[c]]
        lines.append("votes " + ", ".join(f"{escape(classes[c])} {votes[c]:g}" for c in most))
    return f"<figure>{shown}<figcaption>{'<br>'.join(lines)}<code>{escape(key)}</code></figcaption></figure>"
