"""The pipelines that shrink a network most: whole on the digits, and shortened on MNIST."""

import pandas as pd
import pytest

from mlperf_opt import cli
from mlperf_opt.artifacts import load_graph

pytestmark = pytest.mark.e2e


def _run(folder, *arguments):
    status = cli.main([*arguments, f"hydra.run.dir={folder / 'run'}"])
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
    status, rows = _run(tmp_path, "model=mlp", "pipeline=smallest", *sizes, *batches, "measure.seconds=0.004")
    assert status == 0 and (rows["status"] == "VALID").all()
    first, last = rows.iloc[0], rows.iloc[-1]
    assert last["weights_ratio"] < 1 / 25 and last["quality"] > first["quality"] - 0.06
    tables = {path.name for path in (tmp_path / "run").glob("*-epochs.csv")}
    assert tables == {"02-sparsify-epochs.csv", "05-finetune-epochs.csv"}
    assert not list((tmp_path / "run").glob("*.checkpoint"))


SHORT = {
    "lenet300": ("smallest", 2, 150, 0.035),
    "lenet5": ("smallest_lenet5", 1, 100, 0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["compiled", "numpy"])
@pytest.mark.parametrize("model", SHORT)
def test_shortened_on_mnist(model, runtime, tmp_path, monkeypatch, mnist_root):
    """Fewer units are fewer products: faster in both runtimes, by more than the baseline differs from itself."""
    pipeline, epochs, ratio, error = SHORT[model]
    monkeypatch.setenv("MLPERF_OPT_DATA", mnist_root)
    monkeypatch.chdir(tmp_path)
    shorter = _shorter("sparsify", "finetune", epochs=epochs)
    status, rows = _run(
        tmp_path, f"model={model}", f"pipeline={pipeline}", f"runtime={runtime}", *shorter, "measure.seconds=0.1"
    )
    assert status == 0 and (rows["status"] == "VALID").all()
    first, last = rows.iloc[0], rows.iloc[-1]
    assert last["weights_ratio"] < 1 / ratio and last["quality"] > 1 - error
    assert last["macs"] < first["macs"] / 2
    assert last["speedup_low"] > max(1.02, last["noise_high"])
    graph = load_graph(tmp_path / "run" / f"{len(rows) - 1:02d}-{last['name']}.safetensors")
    was = load_graph(tmp_path / "run" / "00-baseline.safetensors")
    units = [[g.weights[name].values.shape[0] for name in g.matrices()] for g in (graph, was)]
    assert all(now < before for now, before in zip(units[0][:-1], units[1][:-1], strict=True)) and units[0][-1] == 10
