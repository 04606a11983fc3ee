"""Option names of the previous release, which are accepted for one more release with a note on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

OLD_OPTIONS = {
    "--card": "--model-card",
    "--cpus-per-worker": "--cpus-per-rank",
    "--data-licence": "--data-license",
    "--data.cache": "--cache-dir",
    "--data.shards": "--shards",
    "--face": "--sample",
    "--faces": "--num-samples",
    "--factor": "--reduction-factor",
    "--force": "--overwrite",
    "--gallery": "--max-images",
    "--gpus-a-node": "--gpus-per-node",
    "--gpus-per-worker": "--gpus-per-rank",
    "--grace": "--grace-period",
    "--groups": "--group-by",
    "--image-size": "--max-side",
    "--mapping": "--class-mapping",
    "--max-bad": "--max-bad-images",
    "--no-face": "--on-no-face",
    "--plain-images-per-s": "--reference-images-per-s",
    "--plain-size": "--reference-size",
    "--restart": "--discard-partial",
    "--seeds": "--num-seeds",
    "--size": "--image-size",
    "--sizes": "--image-sizes",
    "--trials": "--num-trials",
    "--true-labels": "--reference-labels",
    "--which": "--checkpoint",
    "--whole": "--no-crop",
    "--workers": "--num-workers",
    "--workers-per-trial": "--ranks-per-trial",
}
"""Maps old option names to new ones. An entry applies only to commands that have the new option but not the old one."""
OLD_VALUES = {"--on-no-face": {"quarantine": "skip", "centre": "center-crop"}}


def replace_old_names(words: Sequence[str], options: Collection[str]) -> list[str]:
    """Replace old option names and values in command-line arguments. `options`: the long options of the command."""
    return list(_replace(iter(words), options))


def _replace(words: Iterator[str], options: Collection[str]) -> Iterator[str]:
    for word in words:
        if word == "--":
            yield from (word, *words)
            return
        option, equals, value = word.partition("=")
        new = OLD_OPTIONS.get(option, option) if option not in options else option
        if new != option and new in options:
            _report(f"{option} is now {new}")
            option = new
        yield option + equals + _replace_value(option, value) if equals else option
        if not equals and option in OLD_VALUES and option in options:
            yield from (_replace_value(option, following) for following in islice(words, 1))


def _replace_value(option: str, value: str) -> str:
    new = OLD_VALUES.get(option, {}).get(value, value)
    if new != value:
        _report(f"{option} {value} is now {option} {new}")
    return new


def _report(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # once per launch
        print(f"note: {text}", file=sys.stderr, flush=True)
