"""Where a report begins: run folders in, a page and figures out. What draws is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adadf_dist.errors import UserError
from adadf_dist.files import can_write, write_output

PAGE = "report.html"


def report(folders: Sequence[Path], page: Path, face: str = "", figures: Path | None = None) -> None:
    """Write the page about some runs, and their figures into a folder. Raises `UserError`."""
    from adadf_dist.report.compared import check_comparable
    from adadf_dist.report.drawing import save, styled
    from adadf_dist.report.figures import figures_of
    from adadf_dist.report.listed import find_listed_face
    from adadf_dist.report.page import render
    from adadf_dist.report.run import open_run

    runs = [open_run(folder) for folder in folders]
    twice = next((folder for folder in folders if sum(folder.resolve() == f.resolve() for f in folders) > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: named twice; name each run once")
    check_comparable(runs)
    listed = find_listed_face(runs[0], face)
    drawings = list(figures_of(runs, listed))
    if figures is not None:  # before the work: it may not be possible
        with can_write(figures):
            figures.mkdir(parents=True, exist_ok=True)
    write_output(page, render(runs, listed, drawings))
    if figures is not None:
        with styled():
            for drawn in drawings:
                save(drawn.make(), figures, drawn.name)
