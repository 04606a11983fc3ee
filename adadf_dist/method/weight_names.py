"""Find the backbone's tensors in a file, whatever prefixes the saving code added to their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from adadf_dist.errors import UserError
from adadf_dist.method.weight_files import strip_wrapper_prefix

TRAINED_COPIES = ("encoder_q", "base_encoder", "online", "student")
"""Name part of the copy to load if a file has two copies: MoCo, MoCo v3, BYOL, DINO."""
SEQUENTIAL = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
"""A ResNet's modules by index in `nn.Sequential(*resnet.children())`, as in SCN's code."""
FIRST_AFTER = 8
"""Index of the first module of that sequence after the backbone (pooling, then classifier)."""


class Found(NamedTuple):
    """Tensors of a file, divided into backbone and others."""

    inside: dict[str, Tensor]
    """Tensors of the backbone, by the backbone's parameter names."""
    outside: tuple[str, ...]
    """Names of other tensors: other copies, projection heads, the attention of another method."""


def find_backbone(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> Found:
    """Find the backbone by the prefix with the most `wanted` names.

    Raises `UserError` if several prefixes have the same names and it is unknown which one to load.
    """
    wanted = set(wanted)
    best: tuple[int, str, dict[str, str]] = (0, "", {})
    for own_names in layouts(wanted):
        count, prefix = common_prefix(tensors, own_names)
        if count > best[0]:
            best = count, prefix, own_names
    count, prefix, own_names = best
    if 2 * count < len(wanted):  # another network: use its plain names, for the error messages
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
    """Return, for each layout in which a backbone is saved, a map from name in the file to parameter name."""
    plain = {name: name for name in wanted}
    parts = {name: name.partition(".") for name in wanted}
    if not all(first in SEQUENTIAL for first, _, _ in parts.values()):
        return [plain]
    return [plain, {f"{SEQUENTIAL[first]}.{rest}": name for name, (first, _, rest) in parts.items()}]


def common_prefix(names: Iterable[str], known: Mapping[str, str]) -> tuple[int, str]:
    """Return the prefix under which the most known names occur, as (number of known names, prefix)."""
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
            f"contains the same network {len(chosen)} times ({', '.join(chosen)}); save one of them with "
            "torch.save(model.state_dict(), path)"
        )
    return most, chosen[0]
