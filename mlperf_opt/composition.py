"""Command line -> composed configurations, by Hydra. YAML from outside is read as data and linted before Hydra sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlperf_opt.errors import ConfigError, did_you_mean
from mlperf_opt.overrides import CommandLine
from mlperf_opt.resources import resource_dir

MAIN, TRAIN = "config", "train_config"
VERSION_BASE = "1.3"
_PIPELINE_KEYS = ("description", "passes", "promises")


def register_pipelines(config_dir: Path | None) -> None:
    """Offer every pipeline file as an option of the group ``pipeline``; its steps replace ``passes``.

    Raises:
        ConfigError: a file that is unreadable or holds what a pipeline may not hold.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(group="pipeline", name="none", node={}, package="_global_")
    folders = [resource_dir("pipelines"), *([config_dir / "pipelines"] if config_dir else [])]
    for path in (path for folder in folders for path in sorted(folder.glob("*.yaml"))):
        content = _lint_file(path)
        for key in content:
            if key not in _PIPELINE_KEYS:
                raise ConfigError(f"{path}: {key!r} has no place in a pipeline{did_you_mean(str(key), _PIPELINE_KEYS)}")
        # The defaults entry empties the list of passes that config.yaml selects.
        store.store(
            group="pipeline", name=path.stem, node={"defaults": [{"override /passes": []}], **content}, package="_global_"
        )


def lint_folder(folder: Path) -> None:
    """Check every YAML file below the user's ``--config-dir``."""
    for path in sorted(folder.rglob("*.yaml")):
        _lint_file(path)


def _lint_file(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path} is no legal YAML{place}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values")
    for fact in _forbidden(content):
        raise ConfigError(f"{path}: {fact}; configurations are data, never code")
    return content


def _forbidden(node: Any, seen: frozenset[int] = frozenset()) -> Iterator[str]:
    """Yield what could make Hydra run code, read the environment or leave its folder."""
    if id(node) in seen:
        yield "a YAML alias that contains itself"
        return
    if isinstance(node, dict):
        for key, value in node.items():
            name = str(key)
            if name.startswith("_") or name == "hydra" or "hydra/" in name or ".." in name:
                yield f"the key {name!r} is not allowed"
            yield from _forbidden(value, seen | {id(node)})
    elif isinstance(node, list):
        for item in node:
            yield from _forbidden(item, seen | {id(node)})
    elif isinstance(node, str):
        if "${" in node:
            yield f"the interpolation in {node!r} is not allowed"
        if ".." in node.split("/"):
            yield f"the path {node!r} leaves its folder"


def expand(line: CommandLine) -> list[list[str]]:
    """Return the overrides of each job: one list, or with ``-m`` one for every combination.

    Raises:
        ConfigError: an override that can't be parsed.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(line.overrides)
        if not line.multirun:
            for override in parsed:
                if override.is_sweep_override():
                    raise ConfigError(f"{override.input_line}: several values are a sweep, add -m")
            return [line.overrides]
        own = [override for override in parsed if not override.is_hydra_override()]
        return [list(job) for batch in BasicSweeper.split_arguments(own, max_batch_size=None) for job in batch]
    except HydraException as error:
        raise ConfigError(_first_line(error)) from None


def compose(name: str, overrides: list[str], config_dir: Path | None) -> dict[str, Any]:
    """Return the composed configuration as plain data, without the ``hydra`` section.

    Args:
        name: of the primary config, `MAIN` or `TRAIN`.
        overrides: of one job.
        config_dir: folder of the user's own configs; what ships wins over equal names.

    Raises:
        ConfigError: what Hydra refuses, in one line and with the nearest right name.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    search = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
    try:
        with hydra.initialize_config_dir(str(resource_dir("conf")), version_base=VERSION_BASE):
            config = hydra.compose(name, [*overrides, *search])
            plain = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, name, overrides, config_dir)) from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _explain(error: Exception, name: str, overrides: list[str], config_dir: Path | None) -> str:
    """Say which key is wrong and what it may have meant."""
    unknown = re.search(r"Could not (?:override|append to config|delete from config)\W+'?([\w.@/]+)", str(error))
    if unknown is None:
        return _first_line(error)
    key = unknown.group(1).rstrip(".")
    others = [word for word in overrides if word.lstrip("+~").partition("=")[0] != key]
    if len(others) == len(overrides):
        return _first_line(error)
    node: Any = compose(name, others, config_dir)
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        if not isinstance(node, dict) or parent not in node:
            where = ".".join(parents[:depth])
            return f"{key}: no such setting {parent!r}" + (f" in {where}" if where else "") + _nearest(parent, node)
        node = node[parent]
    return f"{key}: no such setting" + _nearest(last, node)


def _nearest(name: str, node: Any) -> str:
    return did_you_mean(name, map(str, node)) if isinstance(node, dict) else ""


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
