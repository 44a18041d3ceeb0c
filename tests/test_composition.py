"""Command line -> plain configurations: order, sweeps, lint, and which name was meant."""

import dataclasses

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf.errors import OmegaConfBaseException

from mlperf_opt.composition import (
    MAIN,
    TRAIN,
    compose,
    expand,
    fixed,
    lint_folder,
    register_pipelines,
    to_yaml,
    was_interrupted,
)
from mlperf_opt.errors import ConfigError
from mlperf_opt.overrides import CommandLine, parse
from mlperf_opt.passes import PASSES
from mlperf_opt.resources import resource_dir


def refused(text, call, *arguments):
    with pytest.raises(ConfigError, match="^[^\n]+$") as caught:
        call(*arguments)
    assert text in str(caught.value)


@pytest.fixture(autouse=True)
def _pipelines():
    register_pipelines(CommandLine([]))


@pytest.mark.parametrize("names", [["quant", "prune"], ["prune", "quant"], ["profile", "prune", "finetune", "quant"], []])
def test_the_order_of_the_list_is_the_order_of_the_passes(names):
    assert list(compose(MAIN, [f"passes=[{','.join(names)}]"], None).get("passes") or {}) == names


def test_a_configuration_is_plain_data_without_hydra():
    plain = compose(MAIN, ["seed=3", "hydra.run.dir=x"], None)
    assert plain["seed"] == 3 and set(plain) == {"passes", "data", "model", "runtime", "measure", "seed"}
    assert type(plain["model"]) is dict and type(plain["model"]["sizes"]) is list
    assert set(compose(TRAIN, [], None)) == {"data", "model", "train", "seed", "save", "threads"}


def test_a_model_chooses_its_data_unless_told_otherwise():
    assert compose(MAIN, ["model=transformer"], None)["data"]["name"] == "reverse"
    assert compose(MAIN, ["model=transformer", "data=digits"], None)["data"]["name"] == "digits"
    assert compose(TRAIN, ["model=cnn"], None)["train"]["epochs"] != compose(TRAIN, ["model=mlp"], None)["train"]["epochs"]


def test_a_pipeline_replaces_the_default_passes(tmp_path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "rounds.yaml").write_text("passes: {b: {pass: prune}, a: {pass: prune, sparsity: 1e-1}}")
    register_pipelines(CommandLine([], config_dir=tmp_path))
    steps = compose(MAIN, ["pipeline=rounds", "passes.b.sparsity=0.2", "passes.b.scope=layer"], tmp_path)["passes"]
    assert list(steps) == ["b", "a"]
    defaults = dataclasses.asdict(PASSES["prune"]()) | {"skip": [], "keep": []}
    assert steps["b"] == {**defaults, "pass": "prune", "sparsity": 0.2, "scope": "layer"}
    assert steps["a"] == {**defaults, "pass": "prune", "sparsity": 0.1, "scope": "global"}


def test_a_sweep_is_every_combination_in_order():
    line = parse(["-m", "model=mlp,cnn", "seed=0,1", "measure.seconds=1", "hydra.sweep.dir=x"])
    jobs = [[f"model={m}", f"seed={s}", "measure.seconds=1"] for m in ("mlp", "cnn") for s in (0, 1)]
    assert expand(line) == jobs
    assert expand(parse(["-m"])) == [[]]
    assert expand(parse(["seed=1", "model=cnn"])) == [["seed=1", "model=cnn"]]
    assert expand(parse(["-m", "seed=range(2,5)"])) == [["seed=2"], ["seed=3"], ["seed=4"]]


def test_what_every_job_shares():
    assert fixed(parse(["-m", "seed=1,2", "model=cnn", "measure.seconds=interval(0,1)"])) == ["model=cnn"]


@pytest.mark.parametrize(
    "line, text",
    [
        (CommandLine(["seed=1,2"]), "add -m"),
        (CommandLine(["seed=range(0,0)"], multirun=True), "a sweep without a job"),
        (CommandLine(["seed=]"]), "can't be read"),
        (CommandLine(["seed=interval(0,1)"], multirun=True), "does not support"),
    ],
)
def test_a_sweep_that_is_none(line, text):
    refused(text, expand, line)


@pytest.mark.parametrize(
    "override, text",
    [
        ("passes.prune.sparsty=1", "passes.prune.sparsty: no such setting; did you mean 'sparsity'"),
        ("pases.prune.sparsity=1", "no such setting 'pases'; did you mean 'passes'"),
        ("passes.prone.sparsity=1", "no such setting 'prone' in passes; did you mean 'prune'"),
        ("model.weights.a.b=1", "model.weights.a.b"),
        ("~passes.finetune", "finetune"),
        ("model=nope", "model=nope: no such model (one of: chargpt, cnn, lenet300, lenet5, mlp, transformer)"),
        ("passes=[quant,prun]", "passes=prun: no such passes; did you mean 'prune'"),
        ("hydra/launcher=basik", "did you mean 'basic'"),
        ("hydra.sweeper.params={a: 1}", "NoneType"),
        ("+passes.finetune.epochs=1", "'finetune' is not in passes=[quant,prune]"),
    ],
)
def test_what_hydra_refuses_is_said_in_our_words(override, text):
    refused(text, compose, MAIN, [override], None)


def test_a_folder_that_ships_passes_its_own_lint(tmp_path):
    """Every rule is broken nowhere in what ships, but for names that ship and the primary configs' hydra section."""
    for number, path in enumerate(sorted(resource_dir("conf").glob("*/*.yaml"))):
        target = tmp_path / path.parent.name / f"own{number}.yaml"
        target.parent.mkdir(exist_ok=True)
        target.write_text(path.read_text())
    assert len(list(tmp_path.rglob("*.yaml"))) >= 15
    assert lint_folder(tmp_path) is None


@pytest.mark.parametrize(
    "content, text",
    [
        ("_target_: x", "the key '_target_'"),
        ("_args_: [1]", "the key '_args_'"),
        ("a: {b: [{_partial_: 1}]}", "the key '_partial_'"),
        ("hydra: {}", "the key 'hydra'"),
        ("a: {hydra: {}}", "the key 'hydra'"),
        ("hydra/launcher: x", "the key 'hydra/launcher'"),
        ("x@hydra.run: y", "the key 'x@hydra.run'"),
        ("defaults: [x@hydra.run]", "the default 'x@hydra.run'"),
        ("defaults: [{override hydra/job_logging: y}]", "the key 'override hydra/job_logging'"),
        ("defaults: ['../x']", "the path '../x'"),
        ("defaults: [{'../x': y}]", "the key '../x'"),
        ("a: a/../b", "the path 'a/../b'"),
        ("a: x${b}", "the interpolation in 'x${b}'"),
        ("# @package hydra\na: 1", "the package 'hydra'"),
        ("a: !!binary aGk=", "is no text, number or list"),
        ("a: !!set {b}", "is no text, number or list"),
        ("1.5: a", "is no name"),
        ("a: 1\na: 2", "duplicate key a"),
        ("a: &x [*x]", "a YAML alias that contains itself"),
        ("a: !!int x", "is no legal YAML"),
        ("a: [" * 3000, "is no legal YAML"),
        ("just words", "expected keys and values"),
    ],
)
def test_lint(content, text, tmp_path):
    (tmp_path / "x.yaml").write_text(content)
    refused(text, lint_folder, tmp_path)


@pytest.mark.parametrize(
    "content",
    ["description: a hydra has many heads", "a: b..c", "path: /data/x.y", "n: 1e-3", "", "a: null", "a: [1, true]"],
)
def test_what_is_data_is_let_through(content, tmp_path):
    (tmp_path / "x.yaml").write_text(content)
    assert lint_folder(tmp_path) is None


def test_a_file_that_nobody_may_read(tmp_path, monkeypatch):
    (tmp_path / "x.yaml").write_text("a: 1")

    def denied(self, *_arguments, **_named):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.read_text", denied)
    refused("x.yaml: Permission denied", lint_folder, tmp_path)


def test_yaml_of_jobs_reads_back():
    import yaml

    jobs = [compose(MAIN, [f"seed={seed}"], None) for seed in (1, 2)]
    assert list(yaml.safe_load_all(to_yaml(jobs))) == jobs


def test_ctrl_c_while_hydra_composes_is_no_mistake(monkeypatch):
    """An error of its own clean-up may come up while the interrupt passes through, wrapped once more."""

    def interrupted(*_arguments):
        try:
            try:
                raise KeyboardInterrupt
            finally:
                raise OmegaConfBaseException("cleaning up")
        except OmegaConfBaseException as error:
            raise ConfigCompositionException from error

    monkeypatch.setattr("hydra.compose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compose(MAIN, [], None)


def test_an_error_without_an_interrupt_stays_one():
    assert not was_interrupted(ConfigCompositionException("no such key"))
