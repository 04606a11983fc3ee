"""Sample docstrings and messages for a reader test, which asks whether each is clear at first reading without the code.

python -m benchmarks.sample_texts --seed 1
"""

from __future__ import annotations

import argparse
import ast
import random
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("adadf_dist", "shards", "tune")
MESSAGE_CALLS = ("UserError", "DiskFullError", "RunDirLockedError", "info", "warning", "error")
"""Names of functions and methods whose first argument is a message for users."""


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
    """Yield the source of each error, warning and log message."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in MESSAGE_CALLS and isinstance(node.args[0], ast.JoinedStr | ast.Constant):
                yield " ".join(ast.unparse(argument) for argument in node.args[:2])


def first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


if __name__ == "__main__":
    main()
