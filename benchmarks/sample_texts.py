"""Sample docstrings and messages for a reader test, which asks whether each is clear at first reading without the code.

python -m benchmarks.sample_texts --seed 1
"""

from __future__ import annotations

import argparse
import ast
import random
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("adadf_dist", "shards", "tune")
MESSAGE_CALLS = ("UserError", "DiskFullError", "RunDirLockedError", "info", "warning", "error")
"""Names of functions and methods whose arguments are a message for users and, sometimes, a hint."""
MIN_WORDS = 3
"""Minimum number of words outside the placeholders of a message: with fewer, there is nothing to judge."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docstrings", type=int, default=60)
    parser.add_argument("--messages", type=int, default=30)
    options = parser.parse_args()
    docstrings, messages = [], []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            name = path.relative_to(ROOT)
            docstrings += [f"{name}: {where}: {text}" for where, text in find_docstrings(tree)]
            messages += [f"{name}: {text}" for text in find_messages(tree)]
    random.seed(options.seed)
    for title, texts, count in (
        ("docstrings", docstrings, options.docstrings),
        ("messages", messages, options.messages),
    ):
        print(f"{count} of {len(texts):,} {title}, seed {options.seed}\n")
        for number, text in enumerate(random.sample(texts, min(count, len(texts))), start=1):
            print(f"{number}. {text}\n")


def find_docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the name and the first paragraph of each module, class, function and attribute docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if text := ast.get_docstring(node):
                yield getattr(node, "name", "module"), first_paragraph(text)
            for before, after in zip(node.body, node.body[1:], strict=False):
                match before, after:
                    case (
                        ast.AnnAssign(target=target) | ast.Assign(targets=[target, *_]),
                        ast.Expr(value=ast.Constant(value=str(text))),
                    ):
                        yield ast.unparse(target), first_paragraph(text)


def find_messages(tree: ast.Module) -> Iterator[str]:
    """Yield each error, warning and log message as it is printed, with placeholders in braces.

    Skips messages with fewer than `MIN_WORDS` words outside the placeholders.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.JoinedStr | ast.Constant):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            parts = [list(split_placeholders(argument)) for argument in node.args]
            fixed = " ".join(text for part in parts for text, is_fixed in part if is_fixed)
            if name in MESSAGE_CALLS and len(re.findall(r"\S*[A-Za-z]\S*", fixed)) >= MIN_WORDS:
                message, *rest = ("".join(text for text, _ in part) for part in parts)
                if rest and isinstance(node.func, ast.Name) and name == "warning":
                    # a finding starts with the name of the check, unless the text already starts with it
                    message = rest.pop(0) if rest[0].startswith(message) else f"{message}: {rest.pop(0)}"
                yield "; ".join([message, *rest])


def split_placeholders(argument: ast.expr) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a string expression as (text, whether it is fixed); placeholders are put in braces."""
    for part in argument.values if isinstance(argument, ast.JoinedStr) else [argument]:
        if isinstance(part, ast.Constant):
            yield str(part.value), True
        else:
            expression = part.value if isinstance(part, ast.FormattedValue) else part
            yield f"{{{ast.unparse(expression)}}}", False


def first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


if __name__ == "__main__":
    main()
