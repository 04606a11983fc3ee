"""Merge configuration layers into one validated `Config`, and convert a `Config` back to plain values."""

from __future__ import annotations

import re
import tomllib
from argparse import RawDescriptionHelpFormatter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from adadf_dist.config.fields import Role
from adadf_dist.config.keys import (
    describe_renames,
    flags,
    flatten,
    keys_with,
    renamed_keys,
    settings,
    unflatten,
    upgrade_keys,
)
from adadf_dist.config.schema import Config
from adadf_dist.config.type_errors import describe_mismatch, type_hints
from adadf_dist.config.validate import validate
from adadf_dist.console.logs import get_logger
from adadf_dist.console.parser import VERSION
from adadf_dist.errors import UserError, did_you_mean
from adadf_dist.files.text import is_text, read_text

logger = get_logger(__name__)

DEFAULT_PRESET = "demo"
DRY_RUN = "--dry-run"
"""Option that the train and check commands accept in addition to configuration keys."""

NON_PATHS = ("", "imagenet", "auto", "never")
"""Values that keys with `Role.PATH` may have although they are not paths."""

EPILOG = """\
examples:
  python -m adadf_dist.train                                    the demo, on synthetic faces
  torchrun --standalone --nproc_per_node 8 -m adadf_dist.train --preset affectnet7 --data.shards DIR
  python -m adadf_dist.train --config my.toml --loss.lambda_min 0.3 --out runs/lambda-0.3
A configuration file has the same keys, nested (TOML or YAML). The command line overrides the file, the file overrides
the preset. Training in an existing run folder resumes the run. Dashes are accepted for underscores: --batch-size is
--batch_size. There is no --device: each rank uses the GPU of its local rank, or the CPU if there is no GPU or
CUDA_VISIBLE_DEVICES is empty."""


class HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Help formatter that keeps line breaks in the description and epilog."""


class ConfigLayer(NamedTuple):
    """Configuration keys and where they come from, for error messages."""

    origin: str
    """Where the keys come from: a file path, `command line`, `preset demo`, ..."""
    values: Mapping[str, object]
    """Keys and values; the keys are nested or dotted."""


def available_presets() -> dict[str, Path]:
    """Return the built-in presets, as a mapping from names to file paths."""
    folder = Path(str(resources.files("adadf_dist.config") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_preset(name: str) -> ConfigLayer:
    known = available_presets()
    if name not in known:
        raise UserError(f"--preset {name}: no such preset{did_you_mean(name, known)}; available: {', '.join(known)}")
    return ConfigLayer(f"preset {name}", load_config_file(known[name]).values)


def load_config_file(path: str | Path) -> ConfigLayer:
    """Read a TOML, YAML or JSON file.

    Raises `UserError` with the path, and the line if the parser reports one, if the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file")
    suffix = path.suffix.lower()
    if suffix not in {".toml", ".yaml", ".yml", ".json"}:
        raise UserError(f"{path}: unsupported file type; use .toml, .yaml or .json")
    text = read_text(path)
    try:
        values = tomllib.loads(text) if suffix == ".toml" else yaml.load(text, UniqueKeyLoader) or {}
    except (tomllib.TOMLDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: does not parse: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping, got {type(values).__name__}")
    return ConfigLayer(str(path), values)


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys, as TOML does, instead of silently using the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} appears twice", key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def build_config(layers: Iterable[ConfigLayer]) -> Config:
    """Merge layers, with later ones overriding earlier ones, and validate every key, type and range.

    Raises `UserError` with the key, its origin and, for an unknown key, the closest known one.
    """
    config: dict[str, object] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for key, value in upgrade_keys(layer.values, layer.origin).items():
            check_key(key, value, layer.origin)
            check_text(key, value, layer.origin)
            config[key], origins[key] = value, layer.origin
    try:
        parsed = make_parser().parse_object(unflatten(config))
    except ArgumentError:
        for key, value in config.items():  # one at a time, to report the origin of the invalid key
            check_type(key, value, origins[key])
        raise
    built = Config(**vars(make_parser().instantiate(parsed)))
    validate(built)
    return built


def override(config: Config, values: Mapping[str, object], origin: str = "override") -> Config:
    """Return a copy of `config` with the given dotted keys changed. Changes are validated like any other layer."""
    return build_config([ConfigLayer("config", to_dict(config)), ConfigLayer(origin, values)])


def with_absolute_paths(config: Config) -> Config:
    """Return `config` with absolute paths, so that it is valid in any folder. URLs and paths with `~` are unchanged."""
    values = {key: str(value) for key, value in flatten(to_dict(config)) if key in keys_with(Role.PATH)}
    relative = {
        key: value
        for key, value in values.items()
        if value not in NON_PATHS and "://" not in value and value[0] != "~" and not Path(value).is_absolute()
    }
    return (
        override(config, {key: str(Path(value).absolute()) for key, value in relative.items()}) if relative else config
    )


def to_dict(config: Config) -> dict[str, object]:
    """Convert a configuration to nested plain values (tuples become lists), as accepted by `build_config`."""
    return unflatten({key: list(v) if isinstance(v, tuple) else v for key, v in flatten(asdict(config))})


def parse_cli(argv: Sequence[str], own_options: Sequence[str] = ()) -> Config:
    """Parse `--preset NAME`, `--config FILE` and `--any.key VALUE`; `--help` and `--version` print and exit.

    `own_options`: additional options of the command, for hints on misspelled options.
    """
    if "--version" in argv:
        print(VERSION)
        raise SystemExit(0)
    if any(word in ("-h", "--help") for word in argv):
        print_help()
        raise SystemExit(0)
    words = parse_overrides(argv, own_options)
    file = words.pop("config", None)
    preset = words.pop("preset", None)
    layers = []
    preset_given = int(file is None or preset is not None)
    if preset_given:
        layers.append(load_preset(preset or DEFAULT_PRESET))
    if file is not None:
        layers.append(load_config_file(file))
    user_layers = [*layers[preset_given:], ConfigLayer("command line", words)]
    warn_of_renames(user_layers)
    given = {key for layer in user_layers for key in upgrade_keys(layer.values, layer.origin)}
    if "data.shards" in given and "data.synthetic_samples" not in given:
        # if the user's dataset is missing, report that instead of rendering synthetic samples
        layers.append(ConfigLayer("command line", {"data.synthetic_samples": []}))
    config = build_config([*layers, ConfigLayer("command line", words)])
    if config.out:
        return config
    name = preset or (Path(file).stem if file else DEFAULT_PRESET)
    return replace(config, out=f"runs/{name}-seed{config.seed}")


def warn_of_renames(layers: Iterable[ConfigLayer]) -> None:
    """Log one warning for each layer that uses version 0.1 keys or values."""
    for layer in layers:
        renames = describe_renames(layer.values)
        if renames:
            more = f" and {len(renames) - 3} more" if len(renames) > 3 else ""
            logger.warning(
                f"{layer.origin}: {', '.join(renames[:3])}{more}; version 0.3 will reject the old names "
                "(see CHANGELOG.md)"
            )


def split_dry_run(argv: Sequence[str]) -> tuple[bool, list[str]]:
    """Return whether a command line contains `--dry-run`, and its other arguments, which `parse_cli` accepts."""
    return DRY_RUN in argv, [word for word in argv if word != DRY_RUN]


def base_config(argv: Sequence[str]) -> tuple[str, Config]:
    """Return the name and values of what the user's file and options override: a preset, or the defaults."""
    words = parse_overrides(argv)
    preset = words.get("preset", None if "config" in words else DEFAULT_PRESET)
    if preset is None:
        return "the defaults", Config()
    return f"preset {preset}", build_config([load_preset(preset)])


def parse_overrides(argv: Sequence[str], own_options: Sequence[str] = ()) -> dict[str, str]:
    """Parse `--key value` and `--key=value` into a mapping. Values remain text; they are parsed by type later."""
    words: dict[str, str] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UserError(f"command line: unexpected argument {word!r}; expected --key value (see --help)")
        key, has_value, value = word[2:].partition("=")
        key = key.replace("-", "_")
        current = renamed_keys().get(key, key)
        if current not in settings() and key not in ("config", "preset"):
            others = {option.removeprefix("--").replace("-", "_"): option for option in own_options}
            known = {**{name: f"--{name}" for name in (*sorted(settings()), "config", "preset")}, **others}
            hint = did_you_mean(key, known)
            for name in known:
                hint = known[name].join(hint.split(name)) if hint == f"; did you mean {name}?" else hint
            raise UserError(f"command line: unknown option --{key}{hint}")
        if not has_value and current in flags() and (not rest or rest[0].startswith("--")):
            value = "true"
        elif not has_value:
            if not rest:
                raise UserError(f"command line: --{key} needs a value")
            value = rest.pop(0)
        words[key] = value
    return words


@cache
def make_parser() -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m adadf_dist.train",
        usage="%(prog)s [--preset NAME] [--config FILE] [--key VALUE ...]",
        epilog=EPILOG,
        exit_on_error=False,
        formatter_class=HelpFormatter,
    )
    parser.add_class_arguments(Config)
    return parser


def print_help() -> None:
    parser = make_parser()
    parser.description = (
        "Train Ada-DF. If the run folder contains a checkpoint, the run resumes from it.\n\n"
        f"  --preset NAME         Base configuration: {', '.join(available_presets())}\n"
        f"                        (default: {DEFAULT_PRESET}).\n"
        "  --config FILE         TOML or YAML file with the keys below.\n"
        f"  {DRY_RUN}             Print the resolved plan and a cost estimate from one synthetic step; do not train.\n"
        "  --version             Print the version."
    )
    # remove jsonargparse's per-section file options: only --config reads a file
    print(re.sub(r"^  --\w+ CONFIG +Path to a configuration file\.\n", "", parser.format_help(), flags=re.MULTILINE))


def check_text(key: str, value: object, origin: str) -> None:
    """Raise `UserError` if a value contains bytes that are not UTF-8, which the run's files could not store."""
    if isinstance(value, str) and not is_text(value):
        raise UserError(
            f"{origin}: {key}: {value!a} is not UTF-8 text; rename the file or folder, or set PYTHONUTF8=1 if your "
            "locale is not UTF-8"
        )


def check_key(key: str, value: object, origin: str) -> None:
    """Raise `UserError` if a key is unknown, if a section is given a value, or if a key has no value."""
    if key not in settings():
        below = sorted(known for known in settings() if known.startswith(f"{key}."))
        if below:
            raise UserError(f"{origin}: {key} is a section and cannot be {value!r}; set its keys, such as {below[0]}")
        raise UserError(f"{origin}: unknown key {key}{did_you_mean(key, settings())}")
    if value is None or (isinstance(value, str) and value in ("null", "~") and type_hints()[key] is not str):
        raise UserError(f"{origin}: {describe_mismatch(key, value)}")


def check_type(key: str, value: object, origin: str) -> None:
    try:
        make_parser().parse_object(unflatten({key: value}))
    except ArgumentError:
        raise UserError(f"{origin}: {describe_mismatch(key, value)}") from None
