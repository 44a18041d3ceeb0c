"""Every pass keeps the contract of `Pass` on every shipped model, alone and before and after every other pass."""

import dataclasses
import json
import re
from functools import cache

import numpy as np
import pytest
import yaml

from mlperf_opt.artifacts import load_graph, save_graph
from mlperf_opt.config import build_config, load
from mlperf_opt.data import Dataset, Split
from mlperf_opt.errors import ConfigError, PassError
from mlperf_opt.graph import graph_hash, verify
from mlperf_opt.passes import PASSES, PassContext
from mlperf_opt.resources import resource_dir
from mlperf_opt.runtimes import NUMPY, complete, stepwise

pytestmark = pytest.mark.integration

MODELS = {"mlp": "digits", "cnn": "digits", "transformer": "reverse"}
NEEDS_ATTENTION = {"kv_cache"}
# the shipped defaults first: the declared tolerance is promised for them
SETTINGS = {
    "profile": [{}, {"batch": 7, "repeats": 3}, {"sensitivity": True, "repeats": 1}],
    "quant": [
        {},
        {"calibration": "percentile"},
        {"calibration": "mse"},
        {"granularity": "tensor"},
        {"granularity": "tensor", "calibration": "mse"},
        {"scheme": "dynamic"},
        {"scheme": "dynamic", "granularity": "tensor"},
        {"scheme": "weight_only"},
        {"scheme": "weight_only", "granularity": "tensor"},
        {"dtype": "fp16"},
        {"scheme": "weight_only", "bits": 6},
        {"scheme": "weight_only", "step": "mean", "step_ratio": 0.2, "biases": "grid"},
    ],
    "prune": [
        {},
        {"sparsity": 0.3},
        {"sparsity": 0.9},
        {"scope": "layer"},
        {"skip": ["LAST"]},
        {"structure": "neuron", "sparsity": 0.25},
        {"structure": "n:m", "skip": ["conv1"]},
        {"schedule": "geometric", "score": "rate", "step_ratio": 0.5, "epochs": 1},
        {"schedule": "cubic", "regrow": False, "scope": "layer", "epochs": 1, "hold": 0},
    ],
    "finetune": [
        {"epochs": 2},
        {"epochs": 1, "optimizer": "sgd", "lr": 0.01},
        {"epochs": 1, "l1": 0.001, "batch": 64},
        {"epochs": 1, "distill": 0.5},
    ],
    "lowrank": [{}, {"rank": 4}],
    "cluster": [{}, {"bits": 3, "start": "density"}, {"bits": 8, "start": "random", "biases": "fp16"}, {"skip": ["LAST"]}],
    "tidy": [{}, {"sort": False}],
    "kv_cache": [
        {},
        {"dtype": "fp16"},
        {"dtype": "int8"},
        {"window": 12},
        {"window": 6, "sinks": 2},
        {"window": 10, "sinks": 0, "dtype": "int8"},
    ],
    "fuse": [{}],
    "export": [{}],
}
LAST = {"mlp": "fc2", "cnn": "fc1", "transformer": "logits"}
IDENTITY = [
    ("prune", {"sparsity": 0.0}),
    ("finetune", {"epochs": 0}),
    ("profile", {}),
    ("export", {}),
]
# (earlier, later): the only orders that are refused
REFUSED = {
    ("quant", "quant"),
    ("kv_cache", "quant"),
    ("kv_cache", "finetune"),
    ("kv_cache", "kv_cache"),
    ("quant", "lowrank"),
    ("lowrank", "lowrank"),
    ("quant", "cluster"),
    ("cluster", "cluster"),
    ("cluster", "quant"),
    ("cluster", "lowrank"),
}
# settings that a network has nothing for, and what is said then
REFUSES = {
    ("prune", "neuron", "cnn"): "has no layer whose neurons could be removed",
    ("prune", "n:m", "cnn"): "does not divide",
}


def _id(value):
    return "-".join(f"{key}={item}" for key, item in value.items()) or "defaults" if isinstance(value, dict) else str(value)


CASES = [
    pytest.param(name, settings, model, id=f"{name}-{_id(settings)}-{model}")
    for name, table in SETTINGS.items()
    for settings in table
    for model in MODELS
    if (model == "transformer" or name not in NEEDS_ATTENTION) and (name, settings.get("structure"), model) not in REFUSES
]
each_case = pytest.mark.parametrize("name, settings, model", CASES)
each_pass = pytest.mark.parametrize("name", list(PASSES))


@cache
def _sizes(model):
    sizes = yaml.safe_load((resource_dir("conf") / "model" / f"{model}.yaml").read_text(encoding="utf-8"))
    sizes.pop("defaults", None)
    return sizes


def _config(model, passes):
    sizes = dict(_sizes(model))
    data = {"name": MODELS[model], "root": None}
    return build_config({"model": sizes, "data": data, "runtime": {}, "measure": {}, "passes": passes, "seed": 3})


def _make(name, settings, model):
    filled = {key: [LAST[model]] if value == ["LAST"] else value for key, value in settings.items()}
    if filled.get("skip") == ["conv1"]:  # of the networks here the cnn alone has one
        filled["skip"] = ["conv1"] if model == "cnn" else []
    return _config(model, {name: filled}).steps[0].apply


@cache
def _model(model):
    """The shipped network, and its data with a short training split: what matters here doesn't need all of it."""
    graph, data = load(_config(model, {}))
    return graph, dataclasses.replace(data, train=_rows(data.train, 640), calibration=_rows(data.calibration, 200))


def _rows(split, count):
    return Split(split.inputs[:count], split.targets[:count])


@cache
def _hash_at_first(model):
    return graph_hash(_model(model)[0])


def _context(data):
    return PassContext(data=data, seed=3, runtime=NUMPY, baseline=_shipped(data))


def _shipped(data):
    """The network that the data belongs to may be a teacher."""
    return next((g for g, d in (_model(m) for m in MODELS) if d.train is data.train), None)


@cache
def _apply(step, model):
    """A pass on the shipped network, once: that a second time gives the same is a test."""
    before = _hash_at_first(model)
    graph, data = _model(model)
    step.check(graph)
    result = step(graph, _context(data))
    assert graph_hash(graph) == before, "the pass changed its input"
    return result


def _result(name, settings, model):
    return _apply(_make(name, settings, model), model)


@cache
def _quality_at_first(model):
    return _quality(*_model(model))


def _quality(graph, data):
    executable, split = NUMPY.prepare(graph), data.calibration
    if data.task == "completion":
        answers = split.targets[:, data.prompt - 1 :]
        return (complete(executable, split.inputs[:, : data.prompt], answers.shape[1]) == answers).all(axis=1).mean()
    return (executable(split.inputs).argmax(axis=-1) == split.targets).mean()


def test_the_tables_cover_exactly_the_passes():
    assert set(SETTINGS) == set(PASSES)
    assert all(issubclass(cls, cls) and name for name, cls in PASSES.items())


@each_pass
def test_contract_is_declared(name):
    cls = PASSES[name]
    assert cls.effect in {"keeps_weights", "quantizes", "discards_weights", "retrains"}
    assert isinstance(cls.tolerance, float) and 0 <= cls.tolerance < 0.1
    assert (cls.tolerance == 0) == (cls.effect == "keeps_weights")
    assert set(cls.not_after) <= set(PASSES)
    assert cls.__dataclass_params__.frozen
    assert cls() == cls(), "every setting has a default"


@each_pass
def test_docstring_explains_every_setting(name):
    doc = PASSES[name].__doc__
    fields = {field.name for field in dataclasses.fields(PASSES[name])}
    _, _, attributes = doc.partition("Attributes:")
    described = re.findall(r"^ {8}(\w+): \S", attributes, re.MULTILINE)
    assert len(doc.strip().splitlines()[0]) > 20
    assert sorted(described) == sorted(fields)


@each_pass
def test_has_a_yaml_of_its_name(name):
    content = yaml.safe_load((resource_dir("conf") / "passes" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert list(content) == [name]


@each_case
def test_input_stays_untouched_and_the_result_is_legal(name, settings, model):
    before = _hash_at_first(model)
    result = _result(name, settings, model)
    graph, _ = _model(model)
    assert graph_hash(graph) == before
    assert verify(result.graph) is result.graph
    assert result.graph.name == graph.name and result.graph.outputs == graph.outputs
    for weight in result.graph.weights.values():
        assert not weight.values.flags.writeable


@each_case
def test_result_survives_its_file(name, settings, model, tmp_path):
    graph = _result(name, settings, model).graph
    save_graph(graph, tmp_path / "model.safetensors")
    assert graph_hash(load_graph(tmp_path / "model.safetensors")) == graph_hash(graph)


@each_case
def test_stats_and_tables_are_plain_data(name, settings, model):
    result = _result(name, settings, model)
    assert json.loads(json.dumps(dict(result.stats), allow_nan=False)) == dict(result.stats)
    for rows in result.tables.values():
        assert rows and all(row.keys() == rows[0].keys() for row in rows)
        assert json.loads(json.dumps(rows, allow_nan=False)) == rows


@each_case
def test_within_tolerance(name, settings, model):
    graph, data = _model(model)
    after = _result(name, settings, model).graph
    step = _make(name, settings, model)
    if step.is_exact(graph):
        rows = data.calibration.inputs[:16]
        expected, actual = (stepwise(NUMPY.prepare(g), rows) for g in (graph, after))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    elif settings == SETTINGS[name][0]:
        assert _quality_at_first(model) - _quality(after, data) <= step.tolerance
    elif (name == "quant" and "bits" not in settings) or (name == "kv_cache" and "window" not in settings):
        # every variant is near the float network, with the percentile's tails cut
        assert _quality_at_first(model) - _quality(after, data) <= 0.02


@pytest.mark.parametrize("name, settings", IDENTITY)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("before", [None, {}, {"scheme": "dynamic"}, {"scheme": "weight_only"}, {"dtype": "fp16"}], ids=_id)
def test_identity_settings_are_identity(name, settings, model, before):
    """On the network as it ships, and on every kind of quantized one."""
    graph, data = _model(model)
    graph = graph if before is None else _result("quant", before, model).graph
    step = _make(name, settings, model)
    assert graph_hash(step(graph, _context(data)).graph) == graph_hash(graph)


@pytest.mark.parametrize("second", list(PASSES))
@pytest.mark.parametrize("first", list(PASSES))
@pytest.mark.parametrize("model", MODELS)
def test_composes_with_every_pass_or_refuses(first, second, model, tmp_path):
    """The ordinary path decides: the order by `build_config`, the network by `load`."""
    quick = {"finetune": {"epochs": 1}, "profile": {"repeats": 2}}
    passes = {f"{name}_{place}": {"pass": name, **quick.get(name, {})} for place, name in enumerate((first, second))}
    if (first, second) in REFUSED:
        with pytest.raises(ConfigError, match=rf"^passes: {second}_1 \({second}\) can't come after {first}_0: \w[^\n]+$"):
            _config(model, passes)
        return
    config = _config(model, passes)
    if model != "transformer" and NEEDS_ATTENTION & {first, second}:
        with pytest.raises(PassError, match=rf"^passes\.kv_cache_\d: kv_cache: {model} has no attention[^\n]+$"):
            load(config)
        return
    assert load(config)[0].name == model
    earlier, later = (step.apply for step in config.steps)
    data = _model(model)[1]
    graph = verify(_apply(earlier, model).graph)
    later.check(graph)
    graph = verify(later(graph, _context(data)).graph)
    save_graph(graph, tmp_path / "model.safetensors")
    graph = load_graph(tmp_path / "model.safetensors")
    allowed = PASSES[first].tolerance + PASSES[second].tolerance
    assert _quality_at_first(model) - _quality(graph, data) <= allowed + 0.005  # one sample of 200


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("name", sorted(NEEDS_ATTENTION))
def test_a_network_that_does_not_fit_is_refused_in_one_line(name, model):
    with pytest.raises(PassError, match=rf"^{name}: {model} [^\n]+$"):
        PASSES[name]().check(_model(model)[0])


@pytest.mark.parametrize("name, structure, model", REFUSES)
def test_settings_that_do_not_fit_are_refused_in_one_line(name, structure, model):
    with pytest.raises(PassError, match=rf"^{name}: [^\n]*{REFUSES[name, structure, model]}[^\n]*$"):
        PASSES[name](structure=structure).check(_model(model)[0])


class Untouchable:
    """A split that nobody may look at."""

    def __len__(self):
        raise AssertionError("a pass looked at the test split")

    inputs = targets = property(__len__)


@each_case
def test_gives_the_same_again_without_the_test_split(name, settings, model):
    """Training hashes the whole data set to know its checkpoints, so there the test split holds nonsense instead."""
    graph, data = _model(model)
    test = Untouchable()
    if name == "finetune" or "schedule" in settings:
        inputs = data.test.inputs
        nonsense = np.nan if inputs.dtype.kind == "f" else 10**6
        test = Split(np.full_like(inputs, nonsense), np.full_like(data.test.targets, -7))
    blind = Dataset(data.name, data.task, data.train, data.calibration, test, data.prompt)
    result = _make(name, settings, model)(graph, _context(blind))
    expected = _result(name, settings, model)
    assert graph_hash(result.graph) == graph_hash(expected.graph)
    if name != "profile":  # its times differ from run to run
        assert dict(result.stats) == dict(expected.stats)
