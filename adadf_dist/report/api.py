"""Entry point of the report: reads run folders, writes a page and figures. Imports plotting libraries lazily."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adadf_dist.errors import UserError
from adadf_dist.files.atomic import os_errors_as_user_errors
from adadf_dist.files.outputs import write_output

PAGE = "report.html"


def report(
    folders: Sequence[Path],
    page: Path,
    face: str = "",
    figures: Path | None = None,
    shards: str = "",
    allow_other_data: bool = False,
) -> None:
    """Write the report page of one or more runs, and optionally their figures.

    `shards`: new location of the first run's dataset, if it moved. Raises `UserError` if a run cannot be read or the
    runs are not comparable. Data with other digests than the first run's is also an error, unless `allow_other_data`.
    """
    from adadf_dist.report.comparison import check_comparable
    from adadf_dist.report.figures.index import list_figures
    from adadf_dist.report.figures.style import plot_style, save
    from adadf_dist.report.figures.tracked_sample import find_tracked_sample
    from adadf_dist.report.gallery import Thumbnails
    from adadf_dist.report.page import render
    from adadf_dist.report.run_reader import open_run

    runs = [open_run(folder) for folder in folders]
    resolved = [folder.resolve() for folder in folders]
    if repeated := [folder for folder in folders if resolved.count(folder.resolve()) > 1]:
        raise UserError(f"{repeated[0]}: run is listed twice; list it once")
    check_comparable(runs, allow_other_data)
    thumbnails = Thumbnails(runs[0], shards, allow_other_data)
    sample = find_tracked_sample(runs[0], face)
    specs = list(list_figures(runs, sample))
    if figures is not None:  # fail early if it cannot be created
        with os_errors_as_user_errors(figures):
            figures.mkdir(parents=True, exist_ok=True)
    write_output(page, render(runs, sample, specs, thumbnails))
    if figures is not None:
        with plot_style():
            for spec in specs:
                save(spec.make(), figures, spec.name)
