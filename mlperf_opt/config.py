"""A composed configuration, checked and typed: everything that can be refused is refused here, before any work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlperf_opt.artifacts import load_weights
from mlperf_opt.data import DATASETS, Dataset, load_data, on_demand
from mlperf_opt.data.tokenizer import MOST_TOKENS, BpeTokenizer
from mlperf_opt.errors import ArtifactError, ConfigError, PassError, did_you_mean
from mlperf_opt.evaluate import MeasureSettings
from mlperf_opt.graph import Graph
from mlperf_opt.networks import FAMILIES, Network
from mlperf_opt.report import Promise
from mlperf_opt.resources import resource_dir
from mlperf_opt.runtimes import RUNTIMES, Isa, Runtime, RuntimeOptions, Sparse
from mlperf_opt.settings import build_settings, mapping, require
from mlperf_opt.steps import BASELINE, NAME, Step, build_steps, check_known


@dataclass(frozen=True)
class ModelSettings:
    """Which network, and where its weights are (None: those that ship)."""

    name: str
    family: str
    network: Network
    weights: str | None

    def untrained(self, seed: int) -> Graph:
        """Return the network with initial weights."""
        return self.network.build(self.name, np.random.default_rng(seed))

    def trained(self) -> Graph:
        """Return the network with trained weights.

        Raises:
            ConfigError: the network has no shipped weights.
            ArtifactError: the file can't be read or doesn't fit the network.
        """
        if self.weights is not None:
            return load_weights(Path(self.weights), self.untrained(0))
        path = resource_dir("models") / self.name / "weights.safetensors"
        advice = f"train it (mlperf-opt train model={self.name} ...) and give model.weights=PATH"
        if not path.exists():
            raise ConfigError(f"model={self.name} ships no trained weights: {advice}")
        try:
            return load_weights(path, self.untrained(0))
        except ArtifactError as error:
            raise ArtifactError(
                f"the shipped weights don't fit these settings of model={self.name}: {advice} ({error})"
            ) from None


@dataclass(frozen=True)
class RuntimeSettings:
    """What executes the graphs, and how (see `runtimes.base.RuntimeOptions`)."""

    name: str = "compiled"
    threads: int = 1
    isa: Isa = "auto"
    sparse: Sparse = "auto"

    def __post_init__(self) -> None:
        require(self.threads >= 1, "threads", self.threads, "a whole number >= 1")
        # BLAS would start fewer in silence, and the record would name a number that nobody measured
        cores = os.cpu_count() or 1
        require(self.threads <= cores, "threads", self.threads, f"at most {cores}, the cores of this machine")

    @property
    def runtime(self) -> Runtime:
        """The runtime of that name, with these options. Raises `ConfigError` where there is none, or it can't run here."""
        if self.name not in RUNTIMES:
            raise ConfigError(f"runtime.name={self.name}: no such runtime{did_you_mean(self.name, RUNTIMES)}")
        return RUNTIMES[self.name].configured(RuntimeOptions(self.threads, self.isa, self.sparse))


@dataclass(frozen=True)
class DataSettings:
    """Which data set, and the folder of its files where it has any."""

    name: str
    root: str | None = None

    def load(self) -> Dataset:
        """Return the data set (cached). Raises `DataError`."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("name", "root")}
        return load_data(self.name, self.root, **own)


@dataclass(frozen=True)
class TextSettings(DataSettings):
    """How a text is read (see `data.text.load_text`)."""

    path: str | None = None
    tokenizer: Literal["char", "bpe"] = "char"
    vocabulary: int = 1024
    window: int | None = None
    prompt: int | None = None
    answer: int = 64

    def __post_init__(self) -> None:
        require(
            256 < self.vocabulary <= MOST_TOKENS, "vocabulary", self.vocabulary, f"257 to {MOST_TOKENS}, bytes and pairs"
        )
        require(self.window is None or self.window >= 2, "window", self.window, "a whole number >= 2")
        require(self.prompt is None or self.prompt >= 1, "prompt", self.prompt, "a whole number >= 1")
        require(self.answer >= 1, "answer", self.answer, "a whole number >= 1")


@dataclass(frozen=True)
class RunConfig:
    """One run, typed.

    Attributes:
        made_for: names of the models that a pipeline's settings were chosen for; empty for any.
        promises: `report.Promise` as data.
        plain: the configuration as composed.
    """

    model: ModelSettings
    data: DataSettings
    runtime: RuntimeSettings
    measure: MeasureSettings
    steps: tuple[Step, ...]
    made_for: tuple[str, ...]
    promises: tuple[Mapping[str, Any], ...]
    seed: int
    plain: Mapping[str, Any] = field(repr=False)


def build_config(plain: Mapping[str, Any]) -> RunConfig:
    """Check and type a composed configuration.

    Raises:
        ConfigError: an unknown key, name, type, range or order.
    """
    known = {"model", "data", "runtime", "measure", "passes", "promises", "made_for", "seed", "description"}
    for key in plain:
        if key not in known:
            raise ConfigError(f"{key}: no such setting{did_you_mean(str(key), known)}")
    if plain.get("seed") is None:
        raise ConfigError("seed: missing, and it has no default")
    steps = build_steps(mapping(plain.get("passes") or {}, "passes"))
    promises = plain.get("promises") or ()
    if not isinstance(promises, list | tuple):
        raise ConfigError(f"promises={promises}: expected a list")
    for place, promise in enumerate(promises):
        where = f"promises[{place}]"
        mapping(promise, where)
        check_known(build_settings(Promise, promise, where).step, [BASELINE, *(s.name for s in steps)], f"{where}.step")
    model = model_settings(mapping(plain.get("model"), "model"))
    return RunConfig(
        model=model,
        data=data_settings(mapping(plain.get("data"), "data"), model),
        runtime=build_settings(RuntimeSettings, mapping(plain.get("runtime"), "runtime"), "runtime"),
        measure=build_settings(MeasureSettings, mapping(plain.get("measure"), "measure"), "measure"),
        steps=steps,
        made_for=_made_for(() if plain.get("made_for") is None else plain["made_for"]),
        promises=tuple(promises),
        seed=check_seed(plain["seed"]),
        plain=plain,
    )


def _made_for(names: Any) -> tuple[str, ...]:
    """Return the list, checked. A model of the user's own may be among them, so any name will do."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
        raise ConfigError(f"made_for={names}: expected a list of models' names")
    return tuple(names)


def check_seed(seed: Any) -> int:
    """Return the seed. Raises `ConfigError` unless it is a whole number from 0 to 2^32 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed}: expected a whole number from 0 to {2**32 - 1}")
    return seed


def model_settings(plain: Mapping[str, Any]) -> ModelSettings:
    """Return the typed model section: name, family, weights, and the sizes of the family."""
    sizes = dict(plain)
    name, family, weights = (sizes.pop(key, None) for key in ("name", "family", "weights"))
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(f"model.name={name}: expected a name of small letters, digits and _")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ConfigError(f"model.family={family}: no such family{did_you_mean(str(family), FAMILIES)}")
    if weights is not None and not isinstance(weights, str):
        raise ConfigError(f"model.weights={weights}: expected a path")
    return ModelSettings(name, family, build_settings(FAMILIES[family], sizes, "model"), weights)


def data_settings(plain: Mapping[str, Any], model: ModelSettings) -> DataSettings:
    """Return the typed data section; a text is read in windows of the model's context."""
    settings = build_settings(TextSettings if plain.get("name") == "text" else DataSettings, plain, "data")
    if settings.name not in DATASETS:
        raise ConfigError(f"data.name={settings.name}: no such data set{did_you_mean(settings.name, DATASETS)}")
    if isinstance(settings, TextSettings) and settings.window is None:
        context = getattr(model.network, "context", None)
        require(
            context is None or context >= 2, "model.context", context, "a whole number >= 2, to read a text in windows of"
        )
        return replace(settings, window=context)
    return settings


@lru_cache(maxsize=8)  # validation and run, and the jobs of a sweep, read the file once
def _trained(model: ModelSettings, _modified: float) -> Graph:
    return model.trained()


def load(config: RunConfig) -> tuple[Graph, Dataset]:
    """Return the trained network and its data, after checking that they and the passes fit together.

    Raises:
        ConfigError, DataError, ArtifactError, PassError: what doesn't.
    """
    graph = _network(config.model)
    data = _fitting(config, graph)
    _check_steps(config, graph)
    return graph, data


def load_without_data(config: RunConfig) -> tuple[Graph, Dataset]:
    """As `load`, but the data is read, and held against the network, when a pass first looks at it."""
    graph = _network(config.model)
    _check_steps(config, graph)
    return graph, on_demand(lambda: _fitting(config, graph))


def _network(model: ModelSettings) -> Graph:
    path = Path(model.weights) if model.weights else None
    return _trained(model, path.stat().st_mtime if path and path.exists() else 0.0)


def _fitting(config: RunConfig, graph: Graph) -> Dataset:
    data = config.data.load()
    check_fit(graph, data)
    split = config.measure.split
    samples = len(data.held_out(split))
    expected = f"at most {samples:,}, the {split} samples of data={data.name}"
    require(config.measure.batch <= samples, "measure.batch", config.measure.batch, expected)
    return data


def _check_steps(config: RunConfig, graph: Graph) -> None:
    for step in config.steps:
        try:
            step.apply.check(graph)
        except PassError as error:
            prefix = "" if step.name == step.pass_name else f"passes.{step.name}: "
            if config.made_for and graph.name not in config.made_for:
                prefix = f"this pipeline is for model={' or '.join(config.made_for)}, not {graph.name}: {prefix}"
            raise PassError(f"{prefix}{error}") from None


def check_fit(graph: Graph, data: Dataset) -> None:
    """Raise `ConfigError` unless the network takes the data's inputs and gives its classes."""
    (name, spec), output = next(iter(graph.inputs.items())), graph.specs[graph.outputs[0]]
    inputs, (symbol, klass) = data.calibration.inputs, data.largest
    fits = len(spec.shape) == inputs.ndim and all(
        isinstance(want, str) or want == have for want, have in zip(spec.shape, inputs.shape, strict=True)
    )
    context = graph.context
    advice = ""
    if data.tokenizer:
        chosen = " (for bpe, data.vocabulary chooses the number)" if isinstance(data.tokenizer, BpeTokenizer) else ""
        advice = f": set model.vocabulary={data.tokenizer.size}{chosen}, and train it"
    if not fits or spec.dtype != str(inputs.dtype) or (context is not None and inputs.shape[1] > context):
        limit = f" of at most {context} tokens" if context is not None else ""
        given = f"{inputs.dtype}[N,{','.join(map(str, inputs.shape[1:]))}]"
        raise ConfigError(f"model={graph.name} takes {name}: {spec}{limit}, but data={data.name} gives {given}")
    for node in graph.consumers(name):
        symbols = graph.specs[node.inputs[1]].shape[0] if node.op == "embedding" else None
        if isinstance(symbols, int) and symbol >= symbols:
            raise ConfigError(f"model={graph.name} knows {symbols} symbols, but data={data.name} has {symbol + 1}{advice}")
    classes = output.shape[-1]
    if isinstance(classes, int) and klass >= classes:
        raise ConfigError(f"model={graph.name} has {classes} outputs, but data={data.name} has class {klass}{advice}")
    mine, theirs = graph.tokenizer, data.tokenizer
    if mine is not None and theirs is not None and mine != theirs.to_data():
        raise ConfigError(f"model={graph.name} was trained on a text of other tokens than data={data.name} has")
    if theirs is not None and data.task == "language" and classes != theirs.size:
        raise ConfigError(f"model={graph.name} has {classes} outputs, but data={data.name} has {theirs.size} tokens{advice}")
