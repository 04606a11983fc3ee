"""Text files are read alike everywhere: byte order marks, encodings, line ends, locales, file names."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from adadf_dist.config.load import ConfigLayer, build_config, load_config_file
from adadf_dist.config.schema import Config
from adadf_dist.engine.deepspeed_config import read_json
from adadf_dist.errors import UserError
from adadf_dist.evaluate.class_mapping import read_mapping
from adadf_dist.files.text import decode_lines, escape_name, read_text, unescape_name
from tune.study.space import open_space

ROOT = Path(__file__).resolve().parents[2]
ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "windows": lambda text: text.replace("\n", "\r\n").encode(),
    "old mac": lambda text: text.replace("\n", "\r").encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16 big endian": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
}
TEXT = "# Übung 表情\nseed = 3\n"


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_self_describing_encodings_are_read(encode: Callable[[str], bytes], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(encode(TEXT))
    assert read_text(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("kind", ["toml", "TOML", "yaml", "json", "deepspeed", "mapping", "space"])
def test_every_config_file_is_read_in_every_encoding(kind: str, encode: Callable[[str], bytes], tmp_path: Path) -> None:
    contents: dict[str, tuple[str, Callable[[Path], object], object]] = {
        "toml": (TEXT, lambda path: load_config_file(path).values, {"seed": 3}),
        "TOML": (TEXT, lambda path: load_config_file(path).values, {"seed": 3}),
        "yaml": ("# Übung\nseed: 3\nout: é\n", lambda path: load_config_file(path).values, {"seed": 3, "out": "é"}),
        "json": ('{"seed": 3}\n', lambda path: load_config_file(path).values, {"seed": 3}),
        "deepspeed": ('{"zero_optimization": {"stage": 1}}', read_json, {"zero_optimization": {"stage": 1}}),
        "mapping": (
            '"fröhlich" = "happy"\n"sad" = "sad"\n',
            lambda path: read_mapping(path, ("fröhlich", "sad"), ("sad", "happy")),
            {"fröhlich": "happy", "sad": "sad"},
        ),
        "space": (
            '# Übung\n"batch_size" = { choice = [16, 32] }\n',
            lambda path: open_space(str(path), Config()).to_dict(),
            {"batch_size": {"choice": [16, 32]}},
        ),
    }
    text, read, wanted = contents[kind]
    path = tmp_path / f"x.{ {'mapping': 'toml', 'space': 'toml', 'deepspeed': 'json'}.get(kind, kind) }"
    path.write_bytes(encode(text))
    assert read(path) == wanted


def archive(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as file:
            file.writestr("a.csv", "path,label\n")
    else:
        with tarfile.open(fileobj=stream, mode=kind) as tar:  # type: ignore[call-overload]
            tar.addfile(tarfile.TarInfo("a.csv"))
    return stream.getvalue()


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "latin-1": (b"a = 1\n# fr\xf6hlich\n", "line 2: byte 0xf6 at column 5 is not UTF-8; save the file as UTF-8"),
    "nul": (b"a = 1\nb = \0\n", "line 2: contains a NUL byte"),
    "utf-16 without its mark": ("seed = 1\n".encode("utf-16-le"), "line 1: contains a NUL byte"),
    "cut utf-16": ("seed = 1\n".encode("utf-16")[:-1], "line 1: incomplete UTF-16"),
    "gzip": (gzip.compress(b"a"), "is a gzip file, not text; unpack it"),
    "zip": (archive("zip"), "is a zip archive, not text; unpack it"),
    "tar": (archive("w"), "is a tar archive, not text; unpack it"),
    "jpeg": (b"\xff\xd8\xff\xe0", "is a JPEG image, not text"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_non_text_is_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    for name in ("x.toml", "x.yaml"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            load_config_file(tmp_path / name)
        assert f"{tmp_path / name}: {reason}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "no.txt", "no such file"), (tmp_path, "Is a directory"), ("a\0b", "null byte")):
        with pytest.raises(UserError, match=reason) as caught:
            read_text(path, "--option")
        assert str(caught.value).startswith("--option: ")


def test_byte_order_marks_inside_joined_files_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "joined.txt").write_bytes(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n")
    assert read_text(tmp_path / "joined.txt") == "a\nb\n"


def test_errors_of_the_caller_pass_through(tmp_path: Path) -> None:
    assert list(decode_lines(io.BytesIO(b"caf\xe9\n"), "x", any_bytes=True)) == ["caf\udce9\n"]
    with pytest.raises(UserError, match="x: line 1: byte 0xe9 at column 4"):
        list(decode_lines(io.BytesIO(b"caf\xe9\n"), "x"))


def test_ascii_locale_changes_nothing(tmp_path: Path) -> None:
    """Config, list and images are read, and the dataset is written, as in a UTF-8 locale."""
    (tmp_path / "my.toml").write_bytes(TEXT.encode())
    script = (
        "import sys\n"
        "from adadf_dist.config.load import load_config_file\n"
        "from shards.build import main\n"
        "assert load_config_file(sys.argv[1] + '/my.toml').values == {'seed': 3}\n"
        "main(['csv', '--csv', sys.argv[1] + '/list.csv', '--out', sys.argv[2], '--num-workers', '1',"
        " '--validation-fraction', '0'])\n"
    )
    from tests.helpers.dataset_trees import jpeg

    for number in range(4):
        (tmp_path / f"bild-ä{number}.jpg").write_bytes(jpeg(number))
    lines = [f"bild-ä{number}.jpg,{('fröhlich', 'traurig')[number % 2]}" for number in range(4)]
    (tmp_path / "list.csv").write_bytes("\n".join(["path,label", *lines]).encode())
    found = []
    for name, values in {"c": {"LC_ALL": "C", "PYTHONUTF8": "0"}, "utf8": {"PYTHONUTF8": "1"}}.items():
        out = tmp_path / name / "x"
        out.parent.mkdir()
        words = [sys.executable, "-c", script, str(tmp_path), str(out)]
        process = subprocess.run(
            words, cwd=ROOT, env={**os.environ, **values, "PYTHONCOERCECLOCALE": "0"}, capture_output=True, timeout=120
        )
        assert process.returncode == 0, process.stderr
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1]
    assert json.loads(found[0]["dataset.json"])["classes"] == ["fröhlich", "traurig"]


@pytest.mark.parametrize("name", ["x.toml", "x.yaml", "x.json"])
def test_duplicate_key_is_an_error(name: str, tmp_path: Path) -> None:
    content = {"x.toml": "seed = 1\nseed = 2\n", "x.yaml": "seed: 1\nseed: 2\n", "x.json": '{"seed": 1, "seed": 2}'}
    (tmp_path / name).write_text(content[name], encoding="utf-8")
    with pytest.raises(UserError, match=rf"{name}: does not parse: .*line") as caught:
        load_config_file(tmp_path / name)
    assert "\n" not in str(caught.value)
    if name == "x.json":
        with pytest.raises(UserError, match=r"deepspeed\.config_file: .*key 'seed' appears twice"):
            read_json(tmp_path / name)


def test_yaml_merge_keys_work(tmp_path: Path) -> None:
    text = "a: &a {x: 1}\nb: &b {y: 2}\nc:\n  <<: *a\n  <<: *b\n  x: 3\n"
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    assert load_config_file(tmp_path / "x.yaml").values["c"] == {"x": 3, "y": 2}


# Names of files


def test_escaped_names_round_trip() -> None:
    draw = random.Random(0)
    seen: dict[str, bytes] = {}
    for _ in range(3000):
        raw = bytes(draw.choice(b"ab\\x5c\xc3\xa4\xe9\n\x1b\x85/") for _ in range(draw.randrange(1, 9)))
        text = escape_name(os.fsdecode(raw))
        text.encode("utf-8")  # no lone surrogate
        assert text.isprintable()
        assert os.fsencode(unescape_name(text)) == raw
        assert seen.setdefault(text, raw) == raw
    for plain in ("a.jpg", "train/기쁨/ä b (1).jpg", "日本\u3000語.png"):
        assert escape_name(plain) == plain


def test_config_rejects_paths_that_no_file_can_store() -> None:
    with pytest.raises(UserError, match=r"command line: out: .*is not UTF-8 text"):
        build_config([ConfigLayer("command line", {"out": "runs/fr\udcf6h"})])


# The package's code

OWN_FILES = {
    "adadf_dist/data/map_store.py",
    "adadf_dist/data/remote/cache.py",
    "adadf_dist/data/build/shard_task.py",
    "adadf_dist/data/build/staging.py",
    "adadf_dist/export/model_card.py",
    "adadf_dist/report/page.py",
    "adadf_dist/report/run_reader.py",
    "adadf_dist/training/final_test.py",
    "adadf_dist/tracking/sinks.py",
    "adadf_dist/tracking/logger.py",
    "adadf_dist/tracking/metrics_file.py",
    "adadf_dist/tracking/mlflow_tracker.py",
    "adadf_dist/tracking/wandb_tracker.py",
    "shards/verify.py",
    "tune/runners/ray_runner.py",
    "tune/study/study.py",
    "tune/study/trial.py",
}
"""Modules that read text without `text_files`: only what the product wrote itself, or the kernel."""
NOT_FILES = ("Image", "tarfile", "gzip", "os", "webbrowser", "tap", "tree")
"""Whose `open` opens no text."""


def text_calls(source: str) -> list[tuple[str, bool, bool]]:
    """Calls that open text: the function, whether it reads, and whether it names an encoding."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        encoded = any(keyword.arg == "encoding" for keyword in node.keywords)
        if name in ("read_text", "write_text") and isinstance(function, ast.Attribute):
            found.append((name, name == "read_text", encoded))
        elif name in ("TextIOWrapper", "genfromtxt", "loadtxt", "DictReader", "reconfigure"):
            continue
        elif name == "open":
            if isinstance(function, ast.Attribute) and ast.unparse(function.value) in NOT_FILES:
                continue
            modes = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
            mode = next((m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str)), "r")
            if "b" not in mode and not (isinstance(function, ast.Attribute) and node.args and mode == "r"):
                found.append((name, "r" in mode or "+" in mode, encoded))
    return found


def test_text_is_opened_with_an_encoding_by_one_module() -> None:
    readers = set()
    for folder in ("adadf_dist", "shards", "tune"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            for call, reads, encoded in text_calls(path.read_text(encoding="utf-8")):
                assert encoded, f"{name}: {call} without encoding: the locale would decide"
                if reads and name != "adadf_dist/files/text.py":
                    readers.add(name)
    assert readers <= OWN_FILES, f"read what users write by text_files: {sorted(readers - OWN_FILES)}"
    assert readers == OWN_FILES, f"no longer needed here: {sorted(OWN_FILES - readers)}"


def test_code_check_detects_text_calls() -> None:
    source = "p.read_text()\nopen(x)\np.open('w')\np.open('rb')\np.write_text(t, encoding='utf-8')\nImage.open(f)"
    assert text_calls(source) == [
        ("read_text", True, False),
        ("open", True, False),
        ("open", False, False),
        ("write_text", False, True),
    ]
