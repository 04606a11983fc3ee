"""Which tensors of a file are the backbone's, whatever the code that saved them put around the names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from adadf_dist.errors import UserError
from adadf_dist.method.weight_files import strip_wrapper_prefix

TRAINED_COPIES = ("encoder_q", "base_encoder", "online", "student")
"""In the name of the copy to take where a file has two: MoCo, MoCo v3, BYOL, DINO."""
SEQUENTIAL = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
"""A ResNet's modules by their places in `nn.Sequential(*resnet.children())`, as SCN's code has it."""
FIRST_AFTER = 8
"""Modules of that sequence from here on are pooling and classifier."""


class Found(NamedTuple):
    """A file's tensors, by where they belong."""

    inside: dict[str, Tensor]
    """Below the backbone's prefix, by the backbone's own names."""
    outside: tuple[str, ...]
    """Names of those elsewhere: other copies, projection heads, the attention of another method."""


def find_backbone(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> Found:
    """Match by the prefix under which most of the `wanted` names are.

    Raises `UserError` when several prefixes hold the same names and none is known to be the one to take.
    """
    wanted = set(wanted)
    best: tuple[int, str, dict[str, str]] = (0, "", {})
    for own_names in layouts(wanted):
        count, prefix = common_prefix(tensors, own_names)
        if count > best[0]:
            best = count, prefix, own_names
    count, prefix, own_names = best
    if 2 * count < len(wanted):  # another network: by its plain names, so that messages can compare
        return Found({strip_wrapper_prefix(name): tensor for name, tensor in tensors.items()}, ())
    inside, outside = {}, []
    sequential = any(name[0].isdigit() for name in own_names)
    for name, tensor in tensors.items():
        tail = name.removeprefix(prefix)
        place = tail.partition(".")[0]
        after = sequential and place.isdigit() and int(place) >= FIRST_AFTER
        if name.startswith(prefix) and not after:
            inside[own_names.get(tail, tail)] = tensor
        else:
            outside.append(name)
    return Found(inside, tuple(sorted(outside)))


def layouts(wanted: set[str]) -> list[dict[str, str]]:
    """Name in the file -> the backbone's own name, for each way that a backbone is saved."""
    plain = {name: name for name in wanted}
    parts = {name: name.partition(".") for name in wanted}
    if not all(first in SEQUENTIAL for first, _, _ in parts.values()):
        return [plain]
    return [plain, {f"{SEQUENTIAL[first]}.{rest}": name for name, (first, _, rest) in parts.items()}]


def common_prefix(names: Iterable[str], known: Mapping[str, str]) -> tuple[int, str]:
    """How many of the known names are below the prefix that has most of them, and that prefix."""
    counts: Counter[str] = Counter()
    for name in names:
        pieces = name.split(".")
        for place in range(len(pieces)):
            if ".".join(pieces[place:]) in known:
                counts["".join(f"{piece}." for piece in pieces[:place])] += 1
    if not counts:
        return 0, ""
    most = max(counts.values())
    first = sorted(prefix for prefix, count in counts.items() if count == most)
    chosen = [prefix for prefix in first if any(copy in prefix for copy in TRAINED_COPIES)] or first
    if len(chosen) > 1 and 2 * most >= len(known):
        raise UserError(
            f"holds the same network {len(chosen)} times ({', '.join(chosen)}); save one of them as "
            "torch.save(model.state_dict(), path)"
        )
    return most, chosen[0]
