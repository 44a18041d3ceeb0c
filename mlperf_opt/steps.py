"""The steps of a run: named passes, each applied to the result of a step before it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlperf_opt.errors import ConfigError, did_you_mean
from mlperf_opt.passes import PASSES, Pass
from mlperf_opt.settings import build_settings, mapping

BASELINE = "baseline"  # the name of step 0, and of `from: baseline`
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")  # of a step or a model


@dataclass(frozen=True)
class Step:
    """One named step: a pass, applied to the result of the step ``source``."""

    name: str
    pass_name: str
    apply: Pass
    source: str


def build_steps(passes: Mapping[str, Any]) -> tuple[Step, ...]:
    """Return the typed steps of a configuration's ``passes``, in their order.

    Raises:
        ConfigError: an unknown pass, step, key, type, range, or an order that a pass refuses.
    """
    steps: list[Step] = []
    previous = BASELINE
    for name, given in passes.items():
        where = f"passes.{name}"
        if not NAME.fullmatch(str(name)) or name == BASELINE:
            raise ConfigError(f"{where}: a step's name is made of small letters, digits and _, and is not {BASELINE!r}")
        settings = dict(mapping({} if given is None else given, where))
        pass_name = settings.pop("pass", name)
        source = settings.pop("from", previous)
        if not isinstance(pass_name, str) or pass_name not in PASSES:
            raise ConfigError(f"{where}: no such pass {pass_name!r}{did_you_mean(str(pass_name), PASSES)}")
        check_known(source, [BASELINE, *(s.name for s in steps)], f"{where}.from")
        steps.append(Step(name, pass_name, build_settings(PASSES[pass_name], settings, where), source))
        _check_order(steps)
        previous = name
    return tuple(steps)


def check_known(name: str, known: list[str], where: str) -> None:
    """Raise `ConfigError` unless ``name`` is a step among ``known``."""
    if name not in known:
        raise ConfigError(f"{where}={name}: no such step{did_you_mean(str(name), known)}")


def lineage(steps: list[Step] | tuple[Step, ...], name: str) -> list[Step]:
    """Return the steps that lead from the baseline to ``name``, that step last."""
    by_name = {step.name: step for step in steps}
    found: list[Step] = []
    while name != BASELINE:
        found.insert(0, by_name[name])
        name = by_name[name].source
    return found


def last_branch(steps: tuple[Step, ...]) -> list[Step]:
    """Return the steps that lead to the last one of the list; of a pipeline with branches, those of its last branch."""
    return lineage(steps, steps[-1].name) if steps else []


def _check_order(steps: list[Step]) -> None:
    *before, step = lineage(steps, steps[-1].name)
    for earlier in before:
        if earlier.pass_name in step.apply.not_after:
            again = "it can be applied once" if earlier.pass_name == step.pass_name else f"put it before {earlier.name}"
            raise ConfigError(f"passes: {step.name} ({step.pass_name}) can't come after {earlier.name}: {again}")
