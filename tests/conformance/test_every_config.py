"""Every YAML file that ships composes, is typed by its class, and says in its first line what it is."""

import dataclasses
import re

import numpy as np
import pytest
import yaml

from mlperf_opt.composition import MAIN, TRAIN, compose, register_pipelines
from mlperf_opt.config import DataSettings, RuntimeSettings, build_config, load, model_settings
from mlperf_opt.data import DATASETS
from mlperf_opt.evaluate import MeasureSettings
from mlperf_opt.graph import verify
from mlperf_opt.networks import FAMILIES
from mlperf_opt.overrides import CommandLine
from mlperf_opt.passes import PASSES
from mlperf_opt.resources import resource_dir
from mlperf_opt.runtimes import RUNTIMES
from mlperf_opt.settings import build_settings
from mlperf_opt.training import TrainSettings

pytestmark = pytest.mark.integration

CONF, PIPELINES = resource_dir("conf"), resource_dir("pipelines")
SHIPPED = sorted([*CONF.rglob("*.yaml"), *PIPELINES.rglob("*.yaml")])
OPTIONS = {path for path in SHIPPED if path.parent != CONF}
DATA = {"transformer": "reverse", "lenet300": "mnist", "lenet5": "mnist", "chargpt": "text"}  # the others: digits
PARAMETERS = {
    "chargpt": 65 * 128 + 4 * (4 * (128 * 128 + 128) + 2 * 512 * 128 + 512 + 128 + 4 * 128) + 2 * 128 + 65 * 128 + 65,
    "mlp": 2410,
    "cnn": 666,
    "transformer": 27739,
    "lenet300": (784 * 300 + 300) + (300 * 100 + 100) + (100 * 10 + 10),
    "lenet5": (20 * 1 * 25 + 20) + (50 * 20 * 25 + 50) + (50 * 4 * 4 * 500 + 500) + (500 * 10 + 10),
}
FORBIDDEN = {
    "code": r"_target_|_recursive_|!!python",
    "the environment": r"\$\{oc",
    "an absolute path": r"""(?m)(?:^|[\s:=\[,"'])/(?:\w+/)*\w""",
    "a path out of its folder": r"(?:^|/|\s)\.\.(?:/|\s|$)",
    "an address": r"https?://",
}


def _name(path):
    return f"{path.parent.name}/{path.name}"


def _names(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _defaults(cls):
    return {field.name: _plain(field.default) for field in dataclasses.fields(cls)}


def _check_equal(found, expected):
    """Equal values of equal types: 1 is not 1.0, and not true."""
    assert found == expected
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in expected.items()}


@pytest.fixture(autouse=True, scope="module")
def _pipelines_are_known():
    """`compose` needs the group, were it only for none."""
    register_pipelines(CommandLine([]))


each_shipped = pytest.mark.parametrize("path", SHIPPED, ids=_name)


def test_the_groups_are_complete():
    assert _names("passes") == sorted(PASSES)
    assert _names("runtime") == sorted(RUNTIMES)
    assert _names("data") == sorted(DATASETS)
    assert set(PARAMETERS) <= set(_names("model")) <= set(_names("train")), "every model says how it is trained"
    assert "olympics" in {path.stem for path in PIPELINES.glob("*.yaml")}


@pytest.mark.parametrize("path", sorted(OPTIONS), ids=_name)
def test_first_line_says_what_it_is(path):
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    assert re.fullmatch(r"# \S.{10,110}[^.\s]", first), first
    assert rest.endswith("\n") and not rest.endswith("\n\n")


@each_shipped
@pytest.mark.parametrize("what", FORBIDDEN)
def test_holds_data_only(path, what):
    text = re.sub(r"(?m)^\s*#.*$", "", path.read_text(encoding="utf-8"))
    text = re.sub(r"(?m)^(\s*- override) /?[\w/@.]+:", r"\1:", text)  # Hydra's own way to name a group
    assert re.search(FORBIDDEN[what], text) is None


@pytest.mark.parametrize(
    "what, text",
    [
        ("code", "_target_: os.system"),
        ("the environment", "root: ${oc.env:HOME}"),
        ("an absolute path", "root: /etc/passwd"),
        ("an absolute path", "root: '/data'"),
        ("a path out of its folder", "root: ../data"),
        ("a path out of its folder", "root: data/.."),
    ],
)
def test_the_check_of_forbidden_text_finds_it(what, text):
    assert re.search(FORBIDDEN[what], text)


@pytest.mark.parametrize("name", sorted(PASSES))
def test_pass_yaml_is_its_class_in_yaml(name):
    _check_equal(_read(CONF / "passes" / f"{name}.yaml")[name] or {}, _defaults(PASSES[name]))


def test_default_runtime_and_measure_are_those_of_the_classes():
    _check_equal(_read(CONF / "runtime" / "compiled.yaml"), _defaults(RuntimeSettings))
    _check_equal(_read(CONF / "runtime" / "numpy.yaml"), {**_defaults(RuntimeSettings), "name": "numpy"})
    _check_equal(_read(CONF / "measure" / "default.yaml"), _defaults(MeasureSettings))


@pytest.mark.parametrize("name", _names("model"))
def test_model_yaml_names_exactly_the_sizes_of_its_family(name):
    content = _read(CONF / "model" / f"{name}.yaml")
    content.pop("defaults", None)
    assert content["name"] == name
    fields = [field.name for field in dataclasses.fields(FAMILIES[content["family"]])]
    assert list(content) == ["name", "family", "weights", *fields]
    assert content["weights"] is None


@pytest.mark.parametrize("name", _names("model"))
def test_every_model_composes_and_builds(name):
    config = build_config(compose(MAIN, [f"model={name}"], None))
    graph = verify(config.model.untrained(0))
    assert graph.name == name
    count = sum(weight.values.size for weight in graph.parameters().values())
    assert count == PARAMETERS.get(name, count) and count > 0
    assert [step.pass_name for step in config.steps] == ["quant", "prune"]
    assert config.data.name == DATA.get(name, "digits")


def test_the_lenets_have_their_published_sizes():
    assert (PARAMETERS["lenet300"], PARAMETERS["lenet5"]) == (266_610, 431_080)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_every_shipped_model_has_weights(name):
    graph = build_config(compose(MAIN, [f"model={name}"], None)).model.trained()
    assert all(weight.values.dtype == np.float32 for weight in graph.parameters().values())
    assert f"{PARAMETERS[name]:,} parameters" in (resource_dir("models") / name / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_every_shipped_model_fits_its_data(name, request):
    config = build_config(compose(MAIN, [f"model={name}"], None))
    if config.data.name in ("mnist", "text"):
        request.getfixturevalue({"mnist": "mnist_root", "text": "shakespeare"}[config.data.name])
    _, data = load(config)
    assert data.test.targets.size > 500


@pytest.mark.parametrize("group, cls", [("data", DataSettings), ("runtime", RuntimeSettings), ("measure", MeasureSettings)])
def test_every_option_builds_its_settings(group, cls):
    for name in _names(group):
        config = build_config(compose(MAIN, [f"{group}={name}"], None))
        settings = getattr(config, group)
        assert isinstance(settings, cls)
        assert getattr(settings, "name", name) == name


def test_thorough_measures_longer():
    quick, thorough = (build_config(compose(MAIN, [f"measure={m}"], None)).measure for m in ("default", "thorough"))
    assert thorough == dataclasses.replace(quick, seconds=5.0)


@pytest.mark.parametrize("name", _names("train"))
def test_every_recipe_of_training_builds_its_settings(name):
    plain = compose(TRAIN, [f"model={name}"], None)
    assert set(plain) == {"data", "model", "train", "seed", "save", "threads"}
    assert model_settings(plain["model"]).name == name
    _check_equal(_read(CONF / "train" / f"{name}.yaml"), plain["train"])
    settings = build_settings(TrainSettings, plain["train"], "train")
    _check_equal(plain["train"], dataclasses.asdict(settings))


@pytest.mark.parametrize("name", sorted(PASSES))
def test_every_pass_can_be_selected_and_set(name):
    step = build_config(compose(MAIN, [f"passes=[{name}]"], None)).steps[0]
    assert (step.name, step.pass_name, step.source, step.apply) == (name, name, "baseline", PASSES[name]())


def test_a_setting_of_a_pass_reaches_it():
    config = build_config(compose(MAIN, ["passes=[prune,quant]", "passes.prune.sparsity=0.7", "model=cnn"], None))
    assert [step.name for step in config.steps] == ["prune", "quant"]
    assert config.steps[0].apply.sparsity == 0.7


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=_name)
def test_every_pipeline_builds(path):
    content = _read(path)
    words = [f"pipeline={path.stem}"]
    register_pipelines(CommandLine(words))
    config = build_config(compose(MAIN, words, None))
    assert [step.name for step in config.steps] == list(content["passes"])
    assert len(config.promises) == len(content.get("promises", []))
    assert content["description"].strip()


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=_name)
def test_every_pipeline_takes_the_models_that_it_is_for(path):
    """What each pass checks before anything runs, on the weights that ship."""
    made_for = _read(path)["made_for"]
    assert made_for
    for model in made_for:
        words = [f"model={model}", f"pipeline={path.stem}"]
        register_pipelines(CommandLine(words))
        config = build_config(compose(MAIN, words, None))
        graph = config.model.trained()
        for step in config.steps:
            step.apply.check(graph)
