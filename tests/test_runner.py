"""One run: what is on disk after each step, branches, failures, and that nothing is measured that wasn't saved."""

import csv
import json
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from mlperf_opt import runner as runner_module
from mlperf_opt.artifacts import load_graph
from mlperf_opt.config import build_config
from mlperf_opt.data import Split, load_data
from mlperf_opt.errors import MlperfOptError, PassError
from mlperf_opt.graph import graph_hash
from mlperf_opt.passes import PASSES, PassResult
from mlperf_opt.runner import Run
from mlperf_opt.runtimes import NUMPY

pytestmark = pytest.mark.integration

PRUNE, FURTHER = {"sparsity": 0.5}, {"pass": "prune", "sparsity": 0.9}
MEASURED = ("quality", "quality_ok", "file_bytes", "weights_ratio", "latency_p50_us", "speedup", "macs", "sparsity")


def run_in(folder, passes, **changes):
    """A run of the mlp that measures for a moment, and what it shows."""
    plain = {
        "model": {"name": "mlp", "family": "DigitMLP", "weights": None},
        "data": {"name": "digits", "root": None},
        "runtime": {"name": "numpy", "threads": 1},
        "measure": {"seconds": 0.004, "throughput_batch": 32},
        "passes": passes,
        "seed": 0,
        **changes,
    }
    shown = []
    run = Run(build_config(plain), folder, shown.append)
    run.shown = shown
    return run


@pytest.fixture
def start(tmp_path):
    """Return a function: passes -> a run, in this test's folder."""
    return partial(run_in, tmp_path)


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows(folder):
    return table(folder / "metrics.csv")


def replace_pass(monkeypatch, name, call):
    """Let ``call(graph, context, apply)`` stand for a pass; ``apply`` is the pass itself."""
    healthy = PASSES[name].__call__
    monkeypatch.setattr(PASSES[name], "__call__", lambda self, g, c: call(g, c, lambda: healthy(self, g, c)))


def test_every_step_is_on_disk_before_the_next_one_starts(start, tmp_path, monkeypatch):
    seen = []

    def look(_graph, _context, apply):
        files = sorted(path.name for path in tmp_path.iterdir())
        seen.append(([row["name"] for row in rows(tmp_path)], files))
        return apply()

    replace_pass(monkeypatch, "prune", look)
    start({"prune": PRUNE, "more": FURTHER}).execute()
    first = ["00-baseline.safetensors", "metrics.csv", "run.json", "summary.md"]
    assert seen == [(["baseline"], first), (["baseline", "prune"], sorted([*first, "01-prune.safetensors"]))]
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2"]
    assert "more" in (tmp_path / "summary.md").read_text()


def test_what_is_measured_was_read_back_from_the_file(start, tmp_path, monkeypatch):
    """Every executable is made from a graph that load_graph returned."""
    read, measured = [], []
    load, healthy = runner_module.load_graph, runner_module.Subject

    def note_load(path):
        read.append(load(path))
        return read[-1]

    def note_subject(graph, *rest):
        measured.append(graph)
        return healthy(graph, *rest)

    monkeypatch.setattr(runner_module, "load_graph", note_load)
    monkeypatch.setattr(runner_module, "Subject", note_subject)
    start({"prune": PRUNE, "quant": {}}).execute()
    assert [id(graph) for graph in measured] == [id(graph) for graph in read] and len(read) == 3


def test_a_branch_starts_from_the_step_that_it_names(start, tmp_path):
    """Pruned weights of another branch are no part of it."""
    run = start({"prune": FURTHER, "quant": {"from": "baseline"}, "both": {"pass": "quant", "from": "prune"}})
    run.execute()
    zeros = {}
    for record in run.records:
        graph = load_graph(tmp_path / f"{record.step:02d}-{record.name}.safetensors")
        values = [graph.weights[f"fc{layer}.weight"].values for layer in (1, 2)]
        zeros[record.name] = sum(int((array == 0).sum()) for array in values) / sum(array.size for array in values)
    assert zeros["prune"] > 0.89 and zeros["both"] > 0.89 and zeros["quant"] < 0.8
    assert {r.name: r.division for r in run.records} == {
        "baseline": "closed-style",
        "prune": "open-style",  # weights were thrown away
        "quant": "closed-style",  # on its own branch none were
        "both": "open-style",
    }


def test_sizes_are_against_the_baseline_also_on_a_branch(start, tmp_path):
    run = start({"prune": PRUNE, "again": {**FURTHER, "from": "prune"}})
    run.execute()
    size = {
        record.name: (tmp_path / f"{record.step:02d}-{record.name}.safetensors").stat().st_size for record in run.records
    }
    for record in run.records:
        assert record.file_bytes == size[record.name]
        assert record.file_ratio == size[record.name] / size["baseline"]


def test_zeros_are_counted_over_all_parameters(start):
    """2,368 weights of which nine tenths become zero, rounded; the 42 biases stay as they are."""
    run = start({"prune": FURTHER})
    run.execute()
    zero_biases = sum(int((w.values == 0).sum()) for n, w in runner_graph(run).weights.items() if n.endswith("bias"))
    expected = round(0.9 * 2368) + zero_biases
    assert run.records[1].parameters == 2410
    assert run.records[1].nonzero == 2410 - expected
    assert run.records[1].sparsity == pytest.approx(expected / 2410)


def runner_graph(run):
    """The network that the run started from."""
    return run._config.model.trained()


def test_a_step_that_changes_nothing_is_not_measured_again(start, tmp_path, monkeypatch):
    """Its file has the same bytes, so its numbers are the same, and there is no second clock to disagree."""
    calls = []
    measure = runner_module.measure
    monkeypatch.setattr(runner_module, "measure", lambda *a: calls.append(a) or measure(*a))
    run = start({"profile": {}, "prune": PRUNE, "same": {"pass": "prune", "sparsity": 0.5}})
    run.execute()
    assert len(calls) == 2
    baseline, profile, prune, same = rows(tmp_path)
    for row, source in ((profile, baseline), (same, prune)):
        assert {key: row[key] for key in MEASURED} == {key: source[key] for key in MEASURED}
        assert row["model_sha256"] == source["model_sha256"] and row["status"] == "VALID"
    assert [row["pass"] for row in (profile, same)] == ["profile", "prune"]
    assert (tmp_path / "03-same.safetensors").read_bytes() == (tmp_path / "02-prune.safetensors").read_bytes()


@pytest.mark.parametrize(
    "error, reason",
    [
        (PassError("no luck"), "no luck"),
        (RuntimeError("a defect"), "RuntimeError: a defect"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_a_step_that_fails_is_a_row_and_the_last_one(start, tmp_path, monkeypatch, error, reason):
    def fail(_graph, _context, _apply):
        raise error

    replace_pass(monkeypatch, "quant", fail)
    run = start({"prune": PRUNE, "quant": {}, "more": {"pass": "profile"}})
    with pytest.raises(type(error)) as caught:
        run.execute()
    assert caught.value is error
    *good, bad = rows(tmp_path)
    assert [row["name"] for row in good] == ["baseline", "prune"] and {row["status"] for row in good} == {"VALID"}
    assert (bad["name"], bad["status"], bad["reasons"]) == ("quant", "INVALID", reason)
    assert not any(bad[key] for key in MEASURED), "nothing was measured, so nothing is claimed"
    assert reason in (tmp_path / "summary.md").read_text()
    assert not list(tmp_path.glob("02-*")) and not list(tmp_path.glob("03-*"))


def test_a_result_that_is_no_graph_is_refused_before_it_is_saved(start, tmp_path, monkeypatch):
    def lose_a_weight(graph, _context, _apply):
        kept = {name: weight for name, weight in graph.weights.items() if name != "fc2.bias"}
        return PassResult(type(graph)(graph.name, graph.nodes, kept, graph.inputs, graph.outputs))

    replace_pass(monkeypatch, "prune", lose_a_weight)
    with pytest.raises(MlperfOptError, match=r"fc2\.bias"):
        start({"prune": PRUNE}).execute()
    assert not list(tmp_path.glob("01-*"))


def test_an_interrupt_leaves_finished_steps_and_no_row_of_its_own(start, tmp_path, monkeypatch):
    def stop(_graph, _context, _apply):
        raise KeyboardInterrupt

    replace_pass(monkeypatch, "quant", stop)
    with pytest.raises(KeyboardInterrupt):
        start({"prune": PRUNE, "quant": {}}).execute()
    assert [(row["name"], row["status"]) for row in rows(tmp_path)] == [("baseline", "VALID"), ("prune", "VALID")]


def test_a_disk_that_fills_up_keeps_the_rows_before_it(start, tmp_path, monkeypatch):
    """metrics.csv is written anew for each row; the old one stands until the new one is whole."""
    write = runner_module.write_metrics

    def full(path, records):
        if len(records) > 1:
            raise MlperfOptError(f"cannot write {path}: No space left on device")
        write(path, records)

    monkeypatch.setattr(runner_module, "write_metrics", full)
    with pytest.raises(MlperfOptError, match="No space left"):
        start({"prune": PRUNE}).execute()
    assert [row["name"] for row in rows(tmp_path)] == ["baseline"]


def test_the_context_holds_the_data_and_the_seed(start, monkeypatch):
    given = []

    def look(_graph, context, apply):
        given.append((context.seed, context.runtime.name, context.data.sha256))
        context.progress("half way")
        return apply()

    replace_pass(monkeypatch, "prune", look)
    run = start({"prune": PRUNE}, seed=77)
    run.execute()
    assert given == [(77, "numpy", load_data("digits").sha256)]
    assert run.shown == ["baseline: measuring", "prune: applying prune", "prune: half way", "prune: measuring"]
    assert {record.seed for record in run.records} == {77}


def test_tables_of_a_pass_are_files(start, tmp_path):
    run = start({"profile": {}})
    run.execute()
    found = table(tmp_path / "01-profile-nodes.csv")
    assert [row["node"] for row in found] == ["flatten", "fc1", "relu1", "fc2"]
    assert [int(row["parameters"]) for row in found] == [0, 64 * 32 + 32, 0, 32 * 10 + 10]
    assert [row["node"] for row in run.tables["profile"]["nodes"]] == [row["node"] for row in found]


def test_two_steps_of_one_pass_keep_the_tables_of_both(start, tmp_path):
    """Two trainings of different lengths, and a network profiled before and after a layer became two."""
    steps = {"first": {"pass": "profile"}, "short": {"pass": "finetune", "epochs": 1}}
    steps |= {"long": {"pass": "finetune", "epochs": 2}, "lowrank": {"rank": 8, "skip": ["fc2"]}}
    run = start({**steps, "last": {"pass": "profile"}})
    run.execute()
    lengths = {path.name: len(table(path)) for path in tmp_path.glob("0*.csv")}
    assert lengths == {
        "01-first-nodes.csv": 4,
        "02-short-epochs.csv": 1,
        "03-long-epochs.csv": 2,
        "05-last-nodes.csv": 5,
    }
    assert list(run.tables) == ["first", "short", "long", "lowrank", "last"]


def test_notes_of_a_pass_end_in_its_own_row_and_below_the_table(start, tmp_path):
    """conv1 has 36 weights. A step that changes nothing repeats the numbers of its source, not what that had to say."""
    cnn = {"name": "cnn", "family": "SimpleCNN", "weights": None}
    layers = {"conv2": 2, "fc1": 2}
    run = start({"cluster": {"bits": 8, "layers": layers}, "again": {"pass": "profile"}}, model=cnn)
    run.execute()
    note = "conv1.weight: 36 different weights need no 255 clusters, each keeps its value"
    _, clustered, again = rows(tmp_path)
    assert note in clustered["reasons"].split("; ") and clustered["status"] == "VALID"
    assert again["model_sha256"] == clustered["model_sha256"] and note not in again["reasons"]
    # how many queries fitted may stand there too, or in a line of all rows
    below = [line for line in (tmp_path / "summary.md").read_text().splitlines() if note in line]
    assert len(below) == 1 and below[0].startswith("- 1 cluster: ")


def test_notes_of_a_pass_that_changes_nothing_are_in_its_row(start, tmp_path, monkeypatch):
    replace_pass(monkeypatch, "profile", lambda graph, _context, _apply: PassResult(graph, notes=("nothing to see",)))
    start({"profile": {}}).execute()
    assert [row["reasons"].endswith("nothing to see") for row in rows(tmp_path)] == [False, True]


def test_the_description_says_what_ran_on_what(start, tmp_path):
    run = start({"prune": PRUNE}, seed=5)
    run.execute()
    described = json.loads((tmp_path / "run.json").read_text())
    assert described["config"]["passes"] == {"prune": {"sparsity": 0.5}} and described["seed"] == 5
    assert described["data_sha256"] == load_data("digits").sha256
    assert described["weights_sha256"] == graph_hash(load_graph(tmp_path / "00-baseline.safetensors"))
    assert set(described["system"]) >= {"cpu", "cpu_flags", "load_average", "python", "dependencies", "blas", "git_commit"}


def test_threads_are_fixed_while_it_runs_and_free_afterwards(start, monkeypatch):
    def pools():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    during = []

    def look(_graph, _context, apply):
        during.extend(pools())
        return apply()

    before = pools()
    replace_pass(monkeypatch, "prune", look)
    start({"prune": PRUNE}).execute()
    assert during and set(during) == {1} and pools() == before


def test_the_same_run_twice_gives_the_same_models(start, tmp_path):
    passes = {"prune": PRUNE, "finetune": {"epochs": 1}, "quant": {"scheme": "dynamic"}}
    hashes = []
    for _ in range(2):
        run = start(passes, seed=3)
        run.execute()
        hashes.append([record.model_sha256 for record in run.records])
    assert hashes[0] == hashes[1] and len(set(hashes[0])) == 4
    other = start(passes, seed=4)
    other.execute()
    assert other.records[2].model_sha256 != hashes[0][2], "the seed orders the samples of finetune"


def test_an_exact_pass_is_compared_with_the_step_it_came_from(start, monkeypatch):
    """profile leaves outputs as they are; on a branch of pruned weights the baseline would be the wrong thing to ask."""
    asked = []
    exactness = runner_module.exactness

    def note(before, after, data):
        asked.append(np.count_nonzero(before.graph.weights["fc1.weight"].values))
        return exactness(before, after, data)

    def renamed(graph, _context, _apply):
        return PassResult(type(graph)("other", graph.nodes, graph.weights, graph.inputs, graph.outputs))

    monkeypatch.setattr(runner_module, "exactness", note)
    replace_pass(monkeypatch, "profile", renamed)
    run = start({"prune": {**FURTHER, "scope": "layer"}, "profile": {}})
    run.execute()
    assert asked == [2048 - round(0.9 * 2048)] and run.records[2].status == "VALID"


class Unread(Split):
    """A split whose samples must not be looked at; how many there are may be known."""

    def __len__(self):
        return 597

    def __getattribute__(self, name):
        if name in ("inputs", "targets"):
            raise AssertionError("the test split was read")
        return super().__getattribute__(name)


@pytest.fixture
def unread_test_split(monkeypatch):
    """Let reading a test sample fail. The hash of the whole data set, which says what ran, is made before."""
    data = load_data("digits")
    locked = replace(data, test=object.__new__(Unread))
    locked.__dict__["sha256"] = data.sha256
    monkeypatch.setattr(runner_module, "load", lambda config: (config.model.trained(), locked))


STEPS = {"prune": PRUNE, "finetune": {"epochs": 1}, "quant": {}, "profile": {}}


@pytest.mark.usefixtures("unread_test_split")
def test_settings_are_chosen_without_reading_a_test_sample(start, tmp_path):
    """Quality is that of the 200 calibration samples, counted here by hand, and every place says so."""
    run = start(STEPS, measure={"seconds": 0.004, "throughput_batch": 32, "split": "calibration"})
    run.execute()
    samples = load_data("digits").calibration
    for row in rows(tmp_path):
        graph = load_graph(tmp_path / f"{int(row['step']):02d}-{row['name']}.safetensors")
        right = NUMPY.prepare(graph)(samples.inputs).argmax(axis=1) == samples.targets
        assert float(row["quality"]) == right.mean() and row["split"] == "calibration" and row["status"] == "VALID"
    assert "mlp on digits (calibration split)" in (tmp_path / "summary.md").read_text()
    assert "| calibration accuracy |" in (tmp_path / "summary.md").read_text()
    assert json.loads((tmp_path / "run.json").read_text())["config"]["measure"]["split"] == "calibration"


@pytest.mark.usefixtures("unread_test_split")
def test_a_run_that_reads_the_test_split_would_be_seen(start):
    with pytest.raises(AssertionError, match="test split was read"):
        start(STEPS).execute()


TRAINED = {
    "sparsify": {"pass": "prune", "sparsity": 0.8, "schedule": "geometric", "epochs": 2, "batch": 50, "step_ratio": 0.6},
    "tidy": {},
    "grid": {"pass": "quant", "scheme": "weight_only", "step": "mean", "bits": 6, "biases": "grid"},
    "finetune": {"epochs": 3, "lr": 0.02},
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The hashes of a training run's models, which nobody stopped."""
    folder = tmp_path_factory.mktemp("straight")
    run_in(folder, TRAINED).execute()
    assert not list(folder.glob("*.checkpoint"))
    return [row["model_sha256"] for row in rows(folder)]


@pytest.mark.parametrize(
    "stop", ["sparsify: epoch 2/3", "finetune: epoch 1/3", "finetune: epoch 3/3", "finetune: measuring"]
)
def test_an_interrupted_training_goes_on_in_the_same_folder(start, tmp_path, uninterrupted, stop):
    """Also behind its own end: what a step has trained is not trained again because a later one was interrupted."""
    run = start(TRAINED)
    show = run._show

    def interrupt(line):
        show(line)
        if line.startswith(stop):
            signal.raise_signal(signal.SIGINT)

    run._show = interrupt
    with pytest.raises(KeyboardInterrupt):
        run.execute()
    epochs = [line for line in run.shown if ": epoch " in line]
    assert list(tmp_path.glob("*.checkpoint"))
    resumed = start(TRAINED)
    resumed.execute()
    assert [row["model_sha256"] for row in rows(tmp_path)] == uninterrupted
    assert {row["status"] for row in rows(tmp_path)} == {"VALID"}
    assert len([line for line in resumed.shown if ": epoch " in line]) == 6 - len(epochs)
    assert not list(tmp_path.glob("*.checkpoint"))


def test_the_baseline_is_the_teacher(start, monkeypatch):
    seen = []
    replace_pass(monkeypatch, "finetune", lambda _graph, context, apply: (seen.append(context.baseline), apply())[1])
    run = start({"prune": PRUNE, "finetune": {"epochs": 1, "distill": 0.5}})
    run.execute()
    assert graph_hash(seen[0]) == graph_hash(run._done["baseline"].graph)
