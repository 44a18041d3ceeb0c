"""The words of the command line, checked before anything heavy is imported.

A misspelt model or pass is answered in the time that Python takes to start; Hydra's own messages name neither the options
of a list-valued group nor a repeated name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from mlperf_opt.errors import ConfigError, did_you_mean
from mlperf_opt.resources import resource_dir

_LONGEST_KEY = 200  # Hydra looks for a file of that name
_LIST = re.compile(r"\[([^\[\]]*)\]")
_LISTS = re.compile(r"\[[^\[\]]*\](,\[[^\[\]]*\])*")
_KEY = re.compile(r"(~|\+\+?)?[A-Za-z_][\w/-]*([.@:][\w/-]+)*")
# Hydra draws the names of choice(...), glob(...) and the like itself
_FUNCTION = re.compile(r"\w+\(.*\)")
GROUPS = ("model", "data", "runtime", "measure", "train")
# What of Hydra's own may be set: where results go, and the plugins that share out or choose the jobs of a sweep.
RUN_DIR, SWEEP_DIR = "hydra.run.dir", "hydra.sweep.dir"
_PLUGINS = ("hydra/launcher", "hydra/sweeper")
# Plain text, or in quotes; no list, no interpolation: the folder is named before Hydra resolves anything.
_FOLDER = re.compile(r"[^'\"\[\](){}$,]+|'[^'$]+'|\"[^\"$]+\"")
_PLUGIN_SETTING = re.compile(r"hydra\.(launcher|sweeper)(\.[A-Za-z]\w*)+")
_BUILT_IN = "basic"  # the launcher and sweeper that come with Hydra have no settings of use


@dataclass(frozen=True)
class CommandLine:
    """Overrides and flags, told apart.

    Attributes:
        overrides: Hydra overrides in order (``model=cnn``).
        multirun: whether every combination of the comma-separated values is to run.
        config_dir: folder of the user's own configs, None for none.
        show: whether the configuration of each job is to be shown instead of run (``--cfg job``).
    """

    overrides: list[str]
    multirun: bool = False
    config_dir: Path | None = None
    show: bool = False

    def value(self, key: str) -> str | None:
        """Return the value given for ``key``, None if it isn't overridden."""
        found = [word.partition("=")[2] for word in self.overrides if word.partition("=")[0] == key]
        return found[-1] if found else None


def parse(words: list[str]) -> CommandLine:
    """Split the words of a command line.

    Raises:
        ConfigError: an unknown flag, a flag without its value, or a word that is no override.
    """
    overrides, show, multirun, config_dir = [], False, False, None
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if word in ("-m", "--multirun"):
            multirun = True
        elif flag in ("--config-dir", "-cd", "--cfg", "-c"):
            if not equals and rest:
                value = rest.pop(0)
            if not value:
                raise ConfigError(f"{flag} needs a value")
            if flag in ("--config-dir", "-cd"):
                config_dir = _folder(value)
            elif value == "job":
                show = True
            else:
                raise ConfigError(f"{flag} {value}: expected {flag} job")
        elif word.startswith("-"):
            known = ["-m", "--multirun", "--config-dir", "--cfg", "--help", "--version"]
            raise ConfigError(f"{word}: no such flag{did_you_mean(word, known)}")
        elif equals or word.startswith("~"):
            if not _KEY.fullmatch(flag) or len(flag) > _LONGEST_KEY:
                raise ConfigError(f"{word}: expected name=value, and a name such as passes.prune.sparsity")
            overrides.append(word)
        else:
            raise ConfigError(f"{word!r} is neither a command nor a setting; a setting is written name=value")
    return CommandLine(overrides, multirun, config_dir, show)


def _folder(value: str) -> Path:
    path = Path(value).resolve()
    if not path.is_dir():
        raise ConfigError(f"--config-dir={value}: no such folder")
    return path


def options(group: str, config_dir: Path | None = None) -> list[str]:
    """Return the names that a group offers: those that ship and the user's own."""
    folders = [resource_dir("pipelines")] if group == "pipeline" else [resource_dir("conf") / group]
    if config_dir is not None:
        folders.append(config_dir / ("pipelines" if group == "pipeline" else group))
    names = {path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")}
    return sorted(names | ({"none"} if group == "pipeline" else set()))


def normalize(line: CommandLine) -> CommandLine:
    """Return the command line with ``passes=a+b`` written as ``passes=[a,b]``, after checking every name in it.

    Raises:
        ConfigError: a name that a group doesn't offer, a pass that stands twice in the list, a comma-separated value without
            ``-m``, settings of a pass that isn't selected, both ``passes`` and ``pipeline``, or what Hydra must not be told.
    """
    overrides = []
    for word in line.overrides:
        key, equals, value = word.partition("=")
        bare = key.lstrip("+~")
        if "hydra" in re.split(r"\W+", bare):
            _check_hydra(key, value, line)
        elif bare in (*GROUPS, "pipeline") and equals:
            _check_choice(bare, value, line)
        elif bare == "passes" and equals:
            word = f"{key}={_check_passes(value, line)}"  # noqa: PLW2901 - the word is rewritten on purpose
        overrides.append(word)
    checked = replace(line, overrides=overrides)
    pipeline = checked.value("pipeline")
    if checked.value("passes") is not None and pipeline not in (None, "none"):
        raise ConfigError(f"passes and pipeline={pipeline} both choose the steps: give one of them")
    _check_selected(checked)
    return checked


def _check_hydra(key: str, value: str, line: CommandLine) -> None:
    """Let through what a run needs of Hydra: its logging, callbacks, search path and the rest are ours to set."""
    if key in (RUN_DIR, SWEEP_DIR):
        if _FOLDER.fullmatch(value) is None or value.strip("'\" ") in ("", "null"):
            raise ConfigError(f"{key}={value}: expected a folder")
        if line.multirun != (key == SWEEP_DIR):
            advice = f"the folder of a sweep is {SWEEP_DIR}" if line.multirun else f"the folder of one run is {RUN_DIR}"
            raise ConfigError(f"{key}={value}: {advice}")
        return
    setting = _PLUGIN_SETTING.fullmatch(key.lstrip("+"))
    if setting is not None and line.value(f"hydra/{setting[1]}") in (None, _BUILT_IN):
        raise ConfigError(f"{key}: a setting of a plugin, which is chosen by hydra/{setting[1]}=NAME")
    if key in _PLUGINS and value in ("", "null"):
        raise ConfigError(f"{key}={value}: expected the name of a plugin")
    if setting is None and key not in _PLUGINS:
        raise ConfigError(f"{key}: of Hydra's own settings only {', '.join((RUN_DIR, SWEEP_DIR, *_PLUGINS))} can be changed")


def _check_choice(group: str, value: str, line: CommandLine) -> None:
    known = options(group, line.config_dir)
    if _FUNCTION.fullmatch(value):
        return
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if ".." in name or "/" in name:
            raise ConfigError(f"{group}={name}: expected a name, not a path{did_you_mean(name, known)}")
        if name not in known:
            raise ConfigError(f"{group}={name}: no such {group}{did_you_mean(name, known)}")
    if len(names) > 1 and not line.multirun:
        raise ConfigError(f"{group}={value}: several values are a sweep, add -m")


def _check_passes(value: str, line: CommandLine) -> str:
    known = options("passes", line.config_dir)
    if _FUNCTION.fullmatch(value):
        return value
    if not any(mark in value for mark in "[]{}") and value.strip():
        value = ",".join(f"[{item.replace('+', ',')}]" for item in value.split(","))
    if not _LISTS.fullmatch(value.replace(" ", "")):
        raise ConfigError(f"passes={value}: expected 'passes=[a,b]', in quotes, or passes=a+b")
    lists = _LIST.findall(value)
    if len(lists) > 1 and not line.multirun:
        raise ConfigError(
            f"passes={value}: several lists are a sweep, add -m; one list is written 'passes=[a,b]' or passes=a+b"
        )
    for names in lists:
        chosen = [name.strip() for name in names.split(",")] if names.strip() else []
        if "" in chosen:
            raise ConfigError(f"passes=[{names}]: a name is missing beside a comma")
        for name in chosen:
            if name not in known:
                raise ConfigError(f"passes: no such pass {name!r}{did_you_mean(name, known)}")
        for name in chosen:
            if chosen.count(name) > 1:
                advice = f"write a pipeline with a named step for each, and pass: {name} in them"
                raise ConfigError(f"passes=[{names}]: {name!r} stands twice; {advice}")
    return value


def _check_selected(line: CommandLine) -> None:
    """Refuse the settings of a pass that isn't in the list; Hydra would advise to add them, which makes a ghost pass."""
    value = line.value("passes")
    if value is None or len(_LIST.findall(value)) != 1:
        return
    chosen = [name.strip() for name in _LIST.findall(value)[0].split(",")]
    for word in line.overrides:
        key = word.partition("=")[0].lstrip("+~").split(".")
        if key[0] == "passes" and len(key) > 1 and key[1] not in chosen:
            hint = did_you_mean(key[1], (name for name in chosen if name))
            raise ConfigError(f"{word}: {key[1]!r} is not in passes=[{','.join(chosen)}]{hint}")
