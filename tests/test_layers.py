"""Heavy packages are imported only in listed files. The layers themselves are a contract in pyproject.toml."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ONLY_IN = {
    "ray": ("tune/", "shards/ray_pool.py"),
    "wandb": ("tracking/wandb_tracker.py",),
    "mlflow": ("tracking/mlflow_tracker.py",),
    "timm": ("method/timm_backbones.py", "config/backbone_names.py"),
    "deepspeed": ("engine/deepspeed.py",),
    "plotly": ("tune/report/figures.py", "tune/report/html_report.py"),
    "optuna": ("tune/",),
    "onnx": ("export/onnx_format.py",),
    "onnxruntime": ("export/onnx_format.py",),
    "onnxscript": ("export/onnx_format.py",),
    "cleanlab": ("benchmarks/audit_scores.py",),
    "nvidia": ("data/loaders/dali_loader.py", "benchmarks/dali_native.py"),
}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Full names of all imports in a file, at any level."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


@pytest.mark.parametrize("path", sources("adadf_dist", "shards", "tune"), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_are_imported_only_where_listed(path: Path) -> None:
    for name in imports(path):
        places = ONLY_IN.get(name.split(".")[0])
        assert places is None or any(p in str(path.relative_to(ROOT)) for p in places), f"{path} imports {name}"


def test_every_import_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from adadf_dist.train import run\n    import ray.tune as t\n")
    assert {"adadf_dist.train", "ray.tune"} <= imports(path)


def test_environment_is_read_only_in_listed_files() -> None:
    """Worker processes also copy it, without reading it."""
    users = [p.name for p in sources("adadf_dist") if "os.environ" in p.read_text() or "getenv" in p.read_text()]
    assert sorted(users) == ["environment.py", "old_options.py", "process.py", "world.py"]


@pytest.mark.parametrize("module", ["adadf_dist", "adadf_dist.data.dataset", "shards.build"])
def test_light_modules_do_not_import_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
