"""Configurations are checked and typed before any work; every mistake is one line that says what was expected."""

import copy

import numpy as np
import pytest

from mlperf_opt.artifacts import save_arrays, save_graph
from mlperf_opt.config import build_config, check_fit, check_seed, data_settings, load, model_settings
from mlperf_opt.data import Dataset, Split, load_data
from mlperf_opt.errors import ArtifactError, ConfigError, DataError, PassError
from mlperf_opt.graph import graph_hash
from mlperf_opt.passes import PassContext
from mlperf_opt.passes.prune import Prune
from mlperf_opt.passes.quant import Quant
from mlperf_opt.runtimes import NUMPY
from mlperf_opt.steps import lineage

MLP = {"name": "mlp", "family": "DigitMLP", "weights": None, "image": [1, 8, 8], "sizes": [64, 32, 10]}
TRANSFORMER = {"name": "transformer", "family": "MinimalTransformer", "weights": None}
PLAIN = {
    "model": MLP,
    "data": {"name": "digits", "root": None},
    "runtime": {"name": "numpy", "threads": 1},
    "measure": {"seconds": 0.5, "batch": 1, "throughput_batch": 256, "max_drop": 0.01},
    "passes": {"quant": {}, "prune": {"sparsity": 0.3}},
    "seed": 0,
}


def _plain(**changes):
    """The configuration with some keys (``model__name``) set."""
    plain = copy.deepcopy(PLAIN)
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = plain
        for parent in parents:
            node = node[parent]
        node[last] = value
    return plain


def _steps(passes):
    return [(s.name, s.pass_name, s.source) for s in build_config(_plain(passes=passes)).steps]


def test_everything_is_typed():
    config = build_config(_plain(measure__seconds=2, description="why"))
    assert config.model.network.sizes == (64, 32, 10) and config.model.family == "DigitMLP"
    assert config.measure.seconds == 2.0 and isinstance(config.measure.seconds, float)
    assert [(s.name, s.apply) for s in config.steps] == [("quant", Quant()), ("prune", Prune(sparsity=0.3))]
    assert config.runtime.runtime == NUMPY and config.seed == 0 and config.promises == ()


@pytest.mark.parametrize("passes", [{}, None])
def test_no_passes_is_the_baseline_alone(passes):
    assert build_config(_plain(passes=passes)).steps == ()


@pytest.mark.parametrize("key", ["model", "data", "runtime", "measure", "seed"])
def test_a_missing_section_is_named(key):
    plain = _plain()
    del plain[key]
    with pytest.raises(ConfigError, match=f"^{key}\\b.*(expected keys and values|missing, and it has no default)$"):
        build_config(plain)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pases": {}}, "^pases: no such setting; did you mean 'passes'"),
        ({"model__size": [64, 10]}, "^model.size: no such setting; did you mean 'sizes'"),
        ({"model__sizes": 64}, r"^model.sizes=64: expected a list such as \[1,2\]"),
        ({"model__sizes": [63, 10]}, "^model.sizes=.*expected a first size of 64"),
        ({"model__family": "DigitMPL"}, "^model.family=DigitMPL: no such family; did you mean 'DigitMLP'"),
        ({"model__family": ["DigitMLP"]}, r"^model.family=\['DigitMLP'\]: no such family"),
        ({"model__weights": 3}, "^model.weights=3: expected a path"),
        ({"data__name": "digit"}, "^data.name=digit: no such data set; did you mean 'digits'"),
        ({"data__path": "x"}, "^data.path: no such setting"),
        ({"runtime__name": "nunpy"}, "^runtime.name=nunpy: no such runtime; did you mean 'numpy'"),
        ({"runtime__threads": 0}, "^runtime.threads=0: expected a whole number >= 1"),
        ({"runtime__threds": 1}, "^runtime.threds: no such setting; did you mean 'threads'"),
        ({"measure__seconds": 0}, "^measure.seconds=0.0: expected more than 0"),
        ({"measure__batch": 0}, "^measure.batch=0: expected a whole number >= 1"),
        ({"measure__throughput_batch": 0}, "^measure.throughput_batch=0: expected"),
        ({"measure__max_drop": float("nan")}, "^measure.max_drop=nan: expected 0 to 1"),
        ({"measure__maxdrop": 0}, "^measure.maxdrop: no such setting; did you mean 'max_drop'"),
        ({"passes__prune": {"sparsty": 0.5}}, "^passes.prune.sparsty: no such setting; did you mean 'sparsity'"),
        ({"passes__prune": {"sparsity": "half"}}, "^passes.prune.sparsity=half: expected a number"),
        ({"passes__prune": {"sparsity": 1.5}}, "^passes.prune.sparsity=1.5: expected 0 to less than 1"),
        ({"passes__prune": {"scope": "globl"}}, "^passes.prune.scope=globl: no such choice; did you mean 'global'"),
        ({"passes__prune": {"skip": "fc1"}}, r"^passes.prune.skip=fc1: expected a list"),
        ({"passes__quant": {"dtype": "int9"}}, "^passes.quant.dtype=int9: no such choice; did you mean 'int8'"),
        ({"passes__prun": {}}, "^passes.prun: no such pass 'prun'; did you mean 'prune'"),
        ({"passes__small": {"pass": "prun"}}, "^passes.small: no such pass 'prun'; did you mean 'prune'"),
        ({"passes__small": {"pass": ["prune"]}}, r"^passes.small: no such pass \['prune'\]"),
        # a value where keys belong
        ({"passes__prune": 0.5}, "^passes.prune=0.5: expected keys and values$"),
        ({"passes__prune": "hello"}, "^passes.prune=hello: expected keys and values$"),
        ({"passes": ["prune"]}, r"^passes=\['prune'\]: expected keys and values$"),
        ({"model": "mlp"}, "^model=mlp: expected keys and values$"),
        ({"runtime": 3}, "^runtime=3: expected keys and values$"),
        ({"measure": None}, "^measure=None: expected keys and values$"),
        ({"promises": {"step": "prune"}}, "^promises=.*: expected a list$"),
        ({"promises": [3]}, r"^promises\[0\]=3: expected keys and values$"),
    ],
)
def test_a_mistake_is_one_line_with_its_key(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_config(_plain(**changes)).runtime.runtime  # noqa: B018 - the runtime is looked up when it is asked for
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["CNN", "a-b", "", "9lives", "../mlp", "a" * 41, None, 3, "mlp\n"])
def test_a_models_name_is_a_plain_word(name):
    with pytest.raises(ConfigError, match=r"^model.name=[\s\S]*: expected a name of small letters, digits and _$"):
        model_settings({**MLP, "name": name})


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "0", True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ConfigError, match=f"^seed={seed}: expected a whole number from 0 to 4294967295$"):
        check_seed(seed)
    with pytest.raises(ConfigError, match=r"^seed="):
        build_config(_plain(seed=seed))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_every_legal_seed_passes(seed):
    assert check_seed(seed) == build_config(_plain(seed=seed)).seed == seed


# steps


def test_a_step_goes_by_any_name_and_follows_the_one_before():
    steps = _steps({"light": {"pass": "prune", "sparsity": 0.2}, "quant": {}, "heavy": {"pass": "prune", "sparsity": 0.9}})
    assert steps == [("light", "prune", "baseline"), ("quant", "quant", "light"), ("heavy", "prune", "quant")]


def test_from_starts_a_branch_that_the_next_step_follows():
    steps = _steps({"prune": {}, "alone": {"pass": "quant", "from": "baseline"}, "finetune": {}, "quant": {"from": "prune"}})
    sources = {name: source for name, _, source in steps}
    assert sources == {"prune": "baseline", "alone": "baseline", "finetune": "alone", "quant": "prune"}
    config = build_config(
        _plain(passes={"a": {"pass": "prune"}, "b": {"pass": "quant"}, "c": {"pass": "prune", "from": "a"}})
    )
    assert [step.name for step in lineage(config.steps, "c")] == ["a", "c"]
    assert lineage(config.steps, "baseline") == []


@pytest.mark.parametrize(
    "passes, message",
    [
        ({"prune": {"from": "basline"}}, "^passes.prune.from=basline: no such step; did you mean 'baseline'"),
        ({"prune": {"from": "prune"}}, "^passes.prune.from=prune: no such step"),
        ({"prune": {"from": "quant"}, "quant": {}}, "^passes.prune.from=quant: no such step"),
        ({"prune": {"from": ["quant"]}}, r"^passes.prune.from=\['quant'\]: no such step"),
        ({"baseline": {"pass": "prune"}}, "^passes.baseline: a step's name"),
        ({"Prune": {}}, "^passes.Prune: a step's name is made of small letters"),
        ({"a/b": {"pass": "prune"}}, "^passes.a/b: a step's name"),
        ({1: {"pass": "prune"}}, "^passes.1: a step's name"),
    ],
)
def test_a_step_that_cannot_be_is_refused(passes, message):
    with pytest.raises(ConfigError, match=message):
        build_config(_plain(passes=passes))


@pytest.mark.parametrize(
    "passes, message",
    [
        (["kv_cache", "finetune"], r"finetune \(finetune\) can't come after kv_cache: put it before kv_cache$"),
        (["kv_cache", "prune", "quant"], r"quant \(quant\) can't come after kv_cache: put it before kv_cache$"),
        (["quant", "prune", "b=quant"], r"b \(quant\) can't come after quant: it can be applied once$"),
        (["kv_cache", "b=kv_cache"], r"b \(kv_cache\) can't come after kv_cache: it can be applied once$"),
    ],
)
def test_an_order_that_cannot_be_is_refused(passes, message):
    given = {name.partition("=")[0]: {"pass": name.rpartition("=")[2]} for name in passes}
    with pytest.raises(ConfigError, match=f"^passes: {message}"):
        build_config(_plain(passes=given))


def test_the_order_counts_along_a_branch_only():
    steps = _steps(
        {"kv_cache": {}, "finetune": {"from": "baseline"}, "quant": {}, "again": {"pass": "quant", "from": "finetune"}}
    )
    assert [source for _, _, source in steps] == ["baseline", "baseline", "finetune", "finetune"]


def test_promises_are_checked():
    promise = {"step": "quant", "label": "INT8", "weights_ratio": 0.25}
    assert build_config(_plain(promises=[promise, {**promise, "step": "baseline"}])).promises[0] == promise
    for change, message in [
        ({"step": "qant"}, r"^promises\[1\].step=qant: no such step; did you mean 'quant'"),
        ({"ratio": 1}, r"^promises\[1\].ratio: no such setting; did you mean 'weights_ratio'"),
        ({"weights_ratio": -1}, r"^promises\[1\].weights_ratio=-1.0: expected more than 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            build_config(_plain(promises=[promise, {**promise, **change}]))


def _for_lenet5(**changes):
    sparse = {"share": {"pass": "cluster", "layers": {"conv1": 8}}}
    return build_config(_plain(**{"made_for": ["lenet5", "other"], "passes": sparse, **changes}))


def test_a_pipeline_that_does_not_fit_says_which_model_it_is_for():
    said = "this pipeline is for model=lenet5 or other, not mlp: passes.share: cluster: layers=conv1: no such weight"
    with pytest.raises(PassError, match=f"^{said}"):
        load(_for_lenet5())
    with pytest.raises(PassError, match="^passes.share: cluster: layers=conv1: no such weight"):
        load(_for_lenet5(made_for=["mlp"]))


def test_a_pipeline_for_another_model_is_taken_where_its_settings_fit():
    assert load(_for_lenet5(passes={"share": {"pass": "cluster", "layers": {"fc1": 8}}}))[0].name == "mlp"


@pytest.mark.parametrize("names", ["mlp", 5, [5], ["no name"], {"mlp": 1}])
def test_models_that_a_pipeline_is_for_are_names(names):
    with pytest.raises(ConfigError, match="^made_for=.*: expected a list of models' names$"):
        _for_lenet5(made_for=names)


# model and data


def test_the_shipped_model_and_its_data_fit():
    graph, data = load(build_config(_plain()))
    assert graph.name == "mlp" and data.name == "digits"


@pytest.mark.parametrize(
    "model, data, message",
    [
        (MLP, "reverse", r"^model=mlp takes x: float32\[N,1,8,8\], but data=reverse gives int64\[N,16\]$"),
        (
            TRANSFORMER,
            "digits",
            r"^model=transformer takes tokens: int64\[N,T\] of at most 16 tokens, but data=digits gives",
        ),
    ],
)
def test_data_of_another_kind_is_refused(model, data, message):
    with pytest.raises(ConfigError, match=message):
        load(build_config(_plain(model=model, data__name=data)))


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"context": 15}, "of at most 15 tokens, but data=reverse"),
        ({"vocabulary": 26}, "^model=t knows 26 symbols, but data=reverse has 27: set model.vocabulary=27, and train it$"),
        ({"vocabulary": 20}, "^model=t knows 20 symbols, but data=reverse has 27: set"),
    ],
)
def test_too_small_a_transformer_is_refused(sizes, message):
    graph = model_settings({**TRANSFORMER, "name": "t", **sizes}).untrained(0)
    data = build_config(_plain(data__name="reverse")).data.load()
    with pytest.raises(ConfigError, match=message):
        check_fit(graph, data)


def test_a_vocabulary_of_another_size_than_that_of_the_byte_pairs_names_both_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("abab " * 400)
    graph = model_settings({**TRANSFORMER, "name": "t", "vocabulary": 200}).untrained(0)
    of_text = {"tokenizer": "bpe", "vocabulary": 258, "window": 8, "prompt": 3, "answer": 5}
    data = load_data("text", path=str(tmp_path / "a.txt"), **of_text)
    said = (
        r"^model=t knows 200 symbols, but data=text has 258: set model\.vocabulary=258 \(for bpe, data\.vocabulary chooses"
    )
    with pytest.raises(ConfigError, match=said):
        check_fit(graph, data)
    by_character = load_data("text", path=str(tmp_path / "a.txt"), **of_text | {"tokenizer": "char"})
    with pytest.raises(ConfigError, match=r"^model=t has 200 outputs, but .* set model\.vocabulary=3, and train it$"):
        check_fit(graph, by_character)


def test_a_text_is_read_in_windows_of_the_context_with_a_prompt_that_leaves_room(tmp_path, monkeypatch):
    """Only a prompt that the user gave is refused for a short window."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("abab " * 400)
    plain = {"name": "text", "path": str(tmp_path / "a.txt")}

    def prompt(context, **changed):
        data = data_settings(plain | changed, model_settings({**TRANSFORMER, "context": context})).load()
        assert data.calibration.inputs.shape[1] == context
        return data.prompt, data.answer

    assert [prompt(context) for context in (2, 16, 17, 90)] == [(1, 2), (15, 2), (16, 2), (16, 64)]
    assert prompt(16, prompt=9) == (9, 8)
    with pytest.raises(DataError, match=r"^data\.prompt=16: expected less than data\.window=16, the tokens"):
        prompt(16, prompt=16)
    with pytest.raises(ConfigError, match=r"^data\.prompt=0: expected a whole number >= 1$"):
        prompt(16, prompt=0)
    with pytest.raises(ConfigError, match=r"^model\.context=1: expected a whole number >= 2, to read a text in windows of"):
        prompt(1)


def test_too_few_outputs_are_refused():
    graph = model_settings({**MLP, "sizes": [64, 9]}).untrained(0)
    data = build_config(_plain()).data.load()
    with pytest.raises(ConfigError, match=r"^model=mlp has 9 outputs, but data=digits has class 9$"):
        check_fit(graph, data)
    few = Split(np.zeros((2, 1, 8, 8), np.float32), np.array([0, 8]))
    assert check_fit(graph, Dataset("few", "classification", few, few, few)) is None


def test_a_pass_that_does_not_fit_the_model_is_refused_before_any_work():
    with pytest.raises(PassError, match=r"^kv_cache: mlp has no attention"):
        load(build_config(_plain(passes={"kv_cache": {}})))
    with pytest.raises(PassError, match=r"^passes.small: prune: skip=fc9: no such weight or node"):
        load(build_config(_plain(passes={"small": {"pass": "prune", "skip": ["fc9"]}})))


def test_a_model_without_shipped_weights_says_what_to_do():
    with pytest.raises(ConfigError, match=r"^model=mine ships no trained weights: train it \(mlperf-opt train model=mine"):
        load(build_config(_plain(model__name="mine")))


def test_shipped_weights_of_other_sizes_say_what_to_do():
    with pytest.raises(ArtifactError, match=r"^the shipped weights don't fit .*model=mlp: train it .*model.weights=PATH"):
        load(build_config(_plain(model__sizes=[64, 16, 10])))


@pytest.mark.parametrize("kind", ["plain", "own"])
def test_weights_from_a_file_of_the_user(tmp_path, kind):
    path = tmp_path / "mine.safetensors"
    graph = model_settings({**MLP, "sizes": [64, 5, 10]}).untrained(7)
    if kind == "plain":
        save_arrays(path, {name: weight.values for name, weight in graph.weights.items()}, {})
    else:
        save_graph(graph, path)
    config = build_config(_plain(model__sizes=[64, 5, 10], model__weights=str(path)))
    assert graph_hash(load(config)[0]) == graph_hash(graph)
    other = model_settings({**MLP, "sizes": [64, 5, 10]}).untrained(8)
    path.unlink()
    save_graph(other, path)
    config = build_config(_plain(model__sizes=[64, 5, 10], model__weights=str(path)))
    assert graph_hash(config.model.trained()) == graph_hash(other)


def test_files_that_are_no_weights_are_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    config = build_config(_plain(model__weights=str(path)))
    with pytest.raises(ArtifactError, match=r"mine\.safetensors"):
        load(config)
    shipped, data = load(build_config(_plain()))
    save_graph(Quant()(shipped, PassContext(data, 0, NUMPY)).graph, path)
    with pytest.raises(ArtifactError, match=r"mine\.safetensors.*a quantized model, whose codes can't be loaded"):
        load(config)
    path.write_bytes(b"no weights")
    with pytest.raises(ArtifactError, match=r"mine\.safetensors"):
        load(config)
