"""Find the backbone's tensors in a weight file, even if their names have extra prefixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from adadf_dist.errors import UserError
from adadf_dist.method.weight_files import strip_wrapper_prefix

TRAINED_COPIES = ("encoder_q", "base_encoder", "online", "student")
"""Parts of names that mark the copy to load if a file contains two copies of a network (MoCo, MoCo v3, BYOL, DINO)."""
SEQUENTIAL = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
"""Maps each ResNet module to its index in `nn.Sequential(*resnet.children())`, the layout that SCN's code saves."""
FIRST_AFTER = 8
"""Index of the first module that follows the backbone in `nn.Sequential(*resnet.children())`, which is the pooling."""


class Found(NamedTuple):
    """Tensors of a weight file, divided into those of the backbone and all others."""

    inside: dict[str, Tensor]
    """Tensors of the backbone, keyed by the backbone's parameter names."""
    outside: tuple[str, ...]
    """Names of all other tensors, such as projection heads or a second copy of the network."""


def find_backbone(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> Found:
    """Find the backbone's tensors, which are under the name prefix that matches the most `wanted` parameter names.

    Raises `UserError` if several prefixes match equally well and it is unclear which copy to load.
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
    """Return one mapping from names in the file to parameter names for each layout that a backbone may be saved in."""
    plain = {name: name for name in wanted}
    parts = {name: name.partition(".") for name in wanted}
    if not all(first in SEQUENTIAL for first, _, _ in parts.values()):
        return [plain]
    return [plain, {f"{SEQUENTIAL[first]}.{rest}": name for name, (first, _, rest) in parts.items()}]


def common_prefix(names: Iterable[str], known: Mapping[str, str]) -> tuple[int, str]:
    """Return (number of matches, prefix) for the prefix under which the most `known` names occur in `names`.

    Raises `UserError` if the file contains several copies of the network and it is unclear which one to load.
    """
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
