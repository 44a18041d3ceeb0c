"""The pipelines that shrink a network most: whole on the digits, and shortened on MNIST."""

import pandas as pd
import pytest

from mlperf_opt import cli
from mlperf_opt.artifacts import load_graph

pytestmark = pytest.mark.e2e
FAST = "measure.seconds=0.01"


def _run(folder, *arguments):
    status = cli.main([*arguments, f"hydra.run.dir={folder / 'run'}", FAST])
    return status, pd.read_csv(folder / "run" / "metrics.csv")


def _shorter(*steps, **counts):
    return [f"passes.{step}.{name}={value}" for step in steps for name, value in counts.items()]


def test_on_the_digits_a_few_bytes_are_enough(tmp_path, monkeypatch):
    """Every step of the recipe, on a network of 2,410 weights."""
    monkeypatch.chdir(tmp_path)
    sizes = [
        "passes.narrow.keep=[24]",
        "passes.sparsify.sparsity=0.8",
        "passes.sparsify.every=4",
        "passes.finetune.lr=0.005",
    ]
    batches = _shorter("sparsify", "finetune", batch=25, shift=0)
    status, rows = _run(tmp_path, "model=mlp", "pipeline=smallest", *sizes, *batches)
    assert status == 0 and (rows["status"] == "VALID").all()
    first, last = rows.iloc[0], rows.iloc[-1]
    assert last["weights_ratio"] < 1 / 25 and last["quality"] > first["quality"] - 0.06
    tables = {path.name for path in (tmp_path / "run").glob("*-epochs.csv")}
    assert tables == {"02-sparsify-epochs.csv", "05-finetune-epochs.csv"}
    assert not list((tmp_path / "run").glob("*.checkpoint"))


@pytest.mark.slow
@pytest.mark.parametrize("model, pipeline, ratio, error", [("lenet300", "smallest", 150, 0.035)])
def test_shortened_on_mnist(model, pipeline, ratio, error, tmp_path, monkeypatch, mnist_root):
    monkeypatch.setenv("MLPERF_OPT_DATA", mnist_root)
    monkeypatch.chdir(tmp_path)
    shorter = [*_shorter("sparsify", epochs=4), *_shorter("finetune", epochs=4)]
    status, rows = _run(tmp_path, f"model={model}", f"pipeline={pipeline}", *shorter)
    assert status == 0 and (rows["status"] == "VALID").all()
    last = rows.iloc[-1]
    assert last["weights_ratio"] < 1 / ratio and last["quality"] > 1 - error
    graph = load_graph(tmp_path / "run" / f"{len(rows) - 1:02d}-{last['name']}.safetensors")
    units = [graph.weights[name].values.shape[0] for name in graph.matrices()]
    assert units[0] <= 110 and units[1] <= 50 and units[2] == 10
    assert last["macs"] < rows.iloc[0]["macs"] / 2
