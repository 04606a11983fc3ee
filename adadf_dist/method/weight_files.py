"""Read pretrained weights from files saved by common training code, and detect failed downloads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from adadf_dist.errors import UserError, single_line

CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "params",
    "module",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema",
    "params_ema",
)
"""Keys under which training code stores a state dict in a checkpoint, possibly nested. The first match is used."""
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "encoder.", "net.")
"""Prefixes that wrapper modules add to parameter names."""
AGAIN = "save it again with torch.save(model.state_dict(), path)"
HTML = re.compile(rb"\s*(<!doctype html|<html|<head|<\?xml)", re.IGNORECASE)
LFS_POINTER = b"version https://git-lfs."


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return a weight file's tensors by name, and the file's SHA-256.

    Raises `UserError` if the file cannot be read or contains no weights.
    """
    if not path.is_file():
        raise UserError(f"model.pretrained: {path}: no such file")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if problem := not_weights(content):
        raise UserError(f"model.pretrained: {path} {problem}")
    del content
    try:
        safe = path.suffix == ".safetensors"
        saved = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt file can raise anything
        raise UserError(f"model.pretrained: {path} {describe_failure(error, path.stat().st_size)}") from None
    tensors = unwrap(saved)
    if not isinstance(tensors, Mapping) or not any(isinstance(v, Tensor) for v in tensors.values()):
        raise UserError(
            f"model.pretrained: {path} contains no state dict; save one with torch.save(model.state_dict(), path)"
        )
    return {str(key): value for key, value in tensors.items() if isinstance(value, Tensor)}, digest


def not_weights(content: bytes) -> str:
    """Return what a file is if it is clearly not weights, with a fix; otherwise return an empty string."""
    head = content[:256].removeprefix(b"\xef\xbb\xbf")
    if not content:
        return "is empty; download or copy it again"
    if HTML.match(head):
        return "is a web page (HTML), not weights (perhaps a login page); download the file itself"
    if head.startswith(LFS_POINTER):
        return "is a Git LFS pointer, not the file itself; run git lfs pull in its repository"
    return ""


def describe_failure(error: Exception, size: int) -> str:
    """Return a message that says why a weight file of `size` bytes failed to load, and how to fix it."""
    text = single_line(error, 2000)
    foreign = re.search(
        r"(?:Unsupported (?:global|class)|[Cc]an only build|GLOBAL)[^.]*?([A-Za-z_]\w*(?:\.\w+)+)", text
    )
    if foreign:
        return (
            f"is not a file of plain tensors (it contains {foreign[1]}, and code in weight files is never run); load "
            f"it where that code is installed and {AGAIN}"
        )
    if re.search(
        r"central directory|truncated|unexpected EOF|Ran out of input|incomplete|invalid argument|header", text, re.I
    ):
        return f"is truncated or corrupt ({size:,} bytes: {first_sentence(error)}); download or copy it again"
    return f"is not a file of plain tensors ({first_sentence(error)}); {AGAIN}"


def unwrap(content: object) -> object:
    """Return the state dict inside a checkpoint, after removing any number of wrapping dicts."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return content
        content = inner
    return content


def strip_wrapper_prefix(key: str) -> str:
    """Return a parameter name without the prefixes that wrapper modules add."""
    while prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix)), ""):
        key = key.removeprefix(prefix)
    return key


def first_sentence(error: BaseException) -> str:
    words = single_line(error, 1000)
    return words.partition(". ")[0][:160] or type(error).__name__
