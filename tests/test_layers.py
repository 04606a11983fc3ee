"""Imports point one way, and heavy packages stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = [
    ["terminal"],
    ["errors"],
    ["files", "progress_display", "locks"],
    ["pulse", "text_files", "console", "emotion_names"],
    ["csv_tables"],
    ["config", "rendezvous", "backbone_names"],
    ["ranges", "learning_rate", "expected_types"],
    ["settings", "world", "metrics"],
    ["data", "method", "detect", "comparison", "diagnosis"],
    ["evaluation", "answers", "health", "align", "agreement"],
    ["runtime"],
    ["setup", "rehearsal", "trained", "records"],
    ["portable", "split_pass"],
    ["report"],
    ["result", "check"],
    ["train"],
    ["evaluate", "predict", "export", "import_published", "audit", "bench"],
    ["__main__"],
]
"""Of adadf_dist: a module may import from layers above its own in this list, and from its own package."""

ONLY_IN = {
    "ray": ("tune/", "shards/ray_crew.py"),
    "wandb": ("runtime/wandb_tracker.py",),
    "mlflow": ("runtime/mlflow_tracker.py",),
    "timm": ("method/timm_backbones.py", "backbone_names.py"),
    "deepspeed": ("deepspeed_engine.py",),
    "plotly": ("tune/figures.py", "tune/page.py"),
    "optuna": ("tune/",),
    "onnx": ("portable/onnx_file.py",),
    "onnxruntime": ("portable/onnx_file.py",),
    "onnxscript": ("portable/onnx_file.py",),
    "cleanlab": ("audit/confident.py",),
    "nvidia": ("data/dali_loader.py", "bench/dali_own.py"),
}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Full names of everything a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def layer(module: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if module in names)


def part(name: str) -> str | None:
    """`data` for adadf_dist.data.format; None for other packages and for adadf_dist itself."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "adadf_dist" and len(pieces) > 1 else None


@pytest.mark.parametrize("path", sources("adadf_dist"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_package_imports_one_way(path: Path) -> None:
    own = path.relative_to(ROOT / "adadf_dist").with_suffix("").parts[0]
    for name in imports(path):
        assert name.split(".")[0] not in ("shards", "tune", "tests"), f"{path} imports {name}"
        other = part(name)
        if own == "__init__":
            assert other is None
        elif (
            other is not None
            and other != own
            and (ROOT / "adadf_dist" / other).with_suffix(".py").exists() | (ROOT / "adadf_dist" / other).is_dir()
        ):
            assert layer(other) < layer(own), f"{path} imports {name}, which is not below it"


@pytest.mark.parametrize("path", sources("adadf_dist", "shards", "tune"), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_stay_in_their_files(path: Path) -> None:
    for name in imports(path):
        places = ONLY_IN.get(name.split(".")[0])
        assert places is None or any(p in str(path.relative_to(ROOT)) for p in places), f"{path} imports {name}"


def test_a_wrong_import_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from adadf_dist.train import run\n    import ray.tune as t\n")
    assert {"adadf_dist.train", "ray.tune"} <= imports(path)
    assert layer("train") > layer("runtime")


def test_the_environment_is_read_in_one_file() -> None:
    """Worker processes copy it besides, unread."""
    users = [p.name for p in sources("adadf_dist") if "os.environ" in p.read_text() or "getenv" in p.read_text()]
    assert users == ["processes.py", "world.py"]


@pytest.mark.parametrize("module", ["adadf_dist", "adadf_dist.data.format", "shards.build"])
def test_light_modules_do_not_import_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
