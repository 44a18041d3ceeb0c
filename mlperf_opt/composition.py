"""Command line -> composed configurations, by Hydra. YAML from outside is read as data and linted before Hydra sees it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mlperf_opt.errors import ConfigError, did_you_mean
from mlperf_opt.overrides import CommandLine, options
from mlperf_opt.resources import resource_dir

MAIN, TRAIN, GENERATE = "config", "train_config", "generate_config"
VERSION_BASE = "1.3"
_PIPELINE_KEYS = ("description", "made_for", "passes", "promises")
# What escapes from Hydra itself: for a number where the name of a group's option belongs, say.
_ESCAPES = (AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_HEADER = re.compile(r"^\s*#\s*@\s*package\s+(.*)$", re.MULTILINE)


def register_pipelines(line: CommandLine) -> None:
    """Offer every pipeline file as an option of the group ``pipeline``; its steps replace ``passes``.

    Where nothing can choose one, neither a word nor a file of the user's own, none is offered: Hydra copies all that is
    registered for each composition.

    Raises:
        ConfigError: a file that is unreadable or holds what a pipeline may not hold.
    """
    from hydra.core.config_store import ConfigStore

    store, config_dir = ConfigStore.instance(), line.config_dir
    store.repo.pop("pipeline", None)  # of the command line before, in the same process
    store.store(group="pipeline", name="none", node={}, package="_global_")
    if config_dir is None and not any("pipeline" in word for word in line.overrides):
        return
    folders = [resource_dir("pipelines"), *([config_dir / "pipelines"] if config_dir else [])]
    for path in (path for folder in folders for path in sorted(folder.glob("*.yaml"))):
        content = _lint_file(path)
        for key in content:
            if key not in _PIPELINE_KEYS:
                raise ConfigError(f"{path}: {key!r} has no place in a pipeline{did_you_mean(str(key), _PIPELINE_KEYS)}")
        if not isinstance(content.get("passes"), dict):
            raise ConfigError(f"{path}: expected passes: and below it the steps, each with its settings")
        steps = {name: _with_defaults(name, given) for name, given in content["passes"].items()}
        # The defaults entry empties the list of passes that config.yaml selects.
        node = {"defaults": [{"override /passes": []}], **content, "passes": steps}
        store.store(group="pipeline", name=path.stem, node=node, package="_global_")


def _with_defaults(name: Any, given: Any) -> Any:
    """Return a step with all settings of its pass, so that each can be overridden on the command line."""
    step = {} if given is None else given
    if not isinstance(step, dict):
        return step
    pass_name = step.get("pass", name)
    path = resource_dir("conf") / "passes" / f"{pass_name}.yaml"
    return {**(_lint_file(path)[pass_name] if path.exists() else {}), **step}


def lint_folder(folder: Path) -> None:
    """Check every YAML file below the user's ``--config-dir``.

    Raises:
        ConfigError: a file that is unreadable, holds what a configuration may not hold, or has the name of one that ships.
    """
    for path in sorted(_yaml_files(folder)):
        _lint_file(path)
        inside = path.relative_to(folder)
        ours = resource_dir("pipelines").parent if inside.parts[0] == "pipelines" else resource_dir("conf")
        if (ours / inside).exists():
            raise ConfigError(f"{path}: {path.stem!r} is a name that ships; choose another")


def _yaml_files(folder: Path) -> Iterator[Path]:
    """Yield the files that Hydra would find, also behind links to other folders."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above itself
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, file) for file in files if file.endswith((".yaml", ".yml")))


def _lint_file(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return _lint(path, text)


@cache
def _lint(path: Path, text: str) -> Mapping[str, Any]:
    """Parse and check a text once: the settings of a pass stand behind every step of every pipeline."""
    import yaml

    # Hydra's own safe reader: what is checked is what is used. It takes 1e-3 as a number and refuses a repeated key.
    from omegaconf._utils import get_yaml_loader

    try:
        content = get_yaml_loader()(text).get_single_data() or {}
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a number that is none
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path} is no legal YAML{place}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values")
    for fact in _forbidden(text, content):
        raise ConfigError(f"{path}: {fact}; configurations are data, never code")
    return content


def _forbidden(text: str, content: dict[Any, Any]) -> Iterator[str]:
    """Yield what could make Hydra run code, read the environment or leave its folder."""
    for package in _HEADER.findall(text):
        if _names_hydra(package):
            yield f"the package {package!r} is not allowed"
    defaults = content.get("defaults")
    for entry in defaults if isinstance(defaults, list) else []:
        if isinstance(entry, str) and _names_hydra(entry):
            yield f"the default {entry!r} is not allowed"
    yield from _forbidden_inside(content)


def _names_hydra(name: str) -> bool:
    """Whether a key, a config group or a package (``data@hydra.run``) is Hydra's own section or lies in it."""
    return "hydra" in re.split(r"\W+", name)


def _forbidden_inside(node: Any, seen: frozenset[int] = frozenset()) -> Iterator[str]:
    if id(node) in seen:
        yield "a YAML alias that contains itself"
        return
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str | int):
                yield f"the key {key!r} is no name"
            name = str(key)
            if name.startswith("_") or _names_hydra(name) or ".." in name or "${" in name:
                yield f"the key {name!r} is not allowed"
            yield from _forbidden_inside(value, seen | {id(node)})
    elif isinstance(node, list):
        for item in node:
            yield from _forbidden_inside(item, seen | {id(node)})
    elif isinstance(node, str):
        if "${" in node:
            yield f"the interpolation in {node!r} is not allowed"
        if ".." in node.split("/"):
            yield f"the path {node!r} leaves its folder"
    elif not isinstance(node, int | float | None):
        yield f"the value {node!r} is no text, number or list"


def expand(line: CommandLine) -> list[list[str]]:
    """Return the overrides of each job: one list, or with ``-m`` one for every combination.

    Raises:
        ConfigError: an override that can't be parsed, or a sweep without a job.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.errors import HydraException

    parsed = _parse(line)
    if not line.multirun:
        for override in parsed:
            if override.is_sweep_override():
                raise ConfigError(f"{override.input_line}: several values are a sweep, add -m")
        return [line.overrides]
    own = [override for override in parsed if not override.is_hydra_override()]
    try:
        jobs = [list(job) for batch in BasicSweeper.split_arguments(own, max_batch_size=None) for job in batch]
    except (HydraException, ValueError) as error:  # ValueError: range(0,3,0)
        raise ConfigError(first_line(error)) from None
    if not jobs:
        raise ConfigError(f"a sweep without a job: {' '.join(line.overrides)} has no values")
    return jobs


def _parse(line: CommandLine) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        return OverridesParser.create().parse_overrides(line.overrides)
    except OverrideParseException as error:
        raise ConfigError(_unreadable(error.override)) from None


def fixed(line: CommandLine) -> list[str]:
    """Return the overrides that are the same in every job of a sweep. Raises `ConfigError` if one can't be parsed."""
    return [word for word, override in zip(line.overrides, _parse(line), strict=True) if not override.is_sweep_override()]


def compose(name: str, overrides: list[str], config_dir: Path | None) -> dict[str, Any]:
    """Return the composed configuration as plain data, without the ``hydra`` section.

    Args:
        name: of the primary config, `MAIN`, `TRAIN` or `GENERATE`.
        overrides: of one job.
        config_dir: folder of the user's own configs; what ships wins over equal names.

    Raises:
        ConfigError: what Hydra refuses, in one line and with the nearest right name.
    """
    import hydra
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    search = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
    _check_added(name, overrides, config_dir)
    try:
        with hydra.initialize_config_dir(str(resource_dir("conf")), version_base=VERSION_BASE):
            config = hydra.compose(name, [*overrides, *search])
            plain = OmegaConf.to_container(config, resolve=True)
    except OverrideParseException as error:
        raise ConfigError(_unreadable(error.override)) from None
    except (HydraException, OmegaConfBaseException, *_ESCAPES) as error:
        if was_interrupted(error):
            raise KeyboardInterrupt from None
        raise ConfigError(_explain(error, name, overrides, config_dir)) from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is what lies behind an error: OmegaConf makes one of its own of whatever comes up in it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def to_yaml(jobs: list[dict[str, Any]]) -> str:
    """Return configurations as YAML, one document each."""
    import yaml

    return yaml.safe_dump_all(jobs, sort_keys=False)


def _check_added(name: str, overrides: list[str], config_dir: Path | None) -> None:
    """Refuse ``+passes.prune.sparsity=...`` where prune isn't chosen: it would add a pass of its own, a ghost."""
    added = [word for word in overrides if word.startswith("+") and word.lstrip("+").startswith("passes.")]
    if not added:
        return
    chosen = compose(name, [word for word in overrides if word not in added], config_dir).get("passes") or {}
    for word in added:
        step = word.partition("=")[0].split(".")[1]
        if step not in chosen:
            raise ConfigError(f"{word}: {step!r} is not in passes=[{','.join(chosen)}]; choose it there")


def _explain(error: Exception, name: str, overrides: list[str], config_dir: Path | None) -> str:
    """Say which key is wrong and what it may have meant."""
    missing = re.search(r"Could not (?:find|load) '([\w/-]+)/([\w.-]*)'", str(error))
    if missing is not None:
        group, choice = missing.groups()
        known = options(group, config_dir) or re.findall(r"^\t(\S+)$", str(error), re.MULTILINE)
        if group == "train" and not any(word.startswith("train=") for word in overrides):  # nobody wrote train=...
            advice = f"add train/{choice}.yaml to your --config-dir, or choose train=NAME{did_you_mean('', known)}"
            return f"model={choice} has no recipe to train it: {advice}"
        return f"{group}={choice}: no such {group}{did_you_mean(choice, known)}"
    unknown = re.search(r"Could not (?:override|append to config|delete from config)\W+'?([\w.@/]+)", str(error))
    if unknown is None:
        return first_line(error)
    key = unknown.group(1).rstrip(".")
    others = [word for word in overrides if word.lstrip("+~").partition("=")[0] != key]
    if len(others) == len(overrides):
        return first_line(error)
    node: Any = compose(name, others, config_dir)
    if key.startswith("hydra"):
        return f"{key}: no such setting of Hydra"
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        if not isinstance(node, dict) or parent not in node:
            where = ".".join(parents[:depth])
            return f"{key}: no such setting {parent!r}" + (f" in {where}" if where else "") + _nearest(parent, node)
        node = node[parent]
    return f"{key}: no such setting" + _nearest(last, node)


def _nearest(name: str, node: Any) -> str:
    return did_you_mean(name, map(str, node)) if isinstance(node, dict) else ""


def _unreadable(word: str) -> str:
    """Hydra's grammar takes letters, digits and some marks; anything else must stand in quotes inside the word."""
    key, _, value = word.partition("=")
    return f"{word}: can't be read; a value with other than plain characters is written '{key}=\"{value}\"'"


def first_line(error: BaseException) -> str:
    """Return the first line of Hydra's words that says anything."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
