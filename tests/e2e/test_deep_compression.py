"""Deep Compression from the command line, with few epochs: each stage does its part, and the table stands at the end."""

import numpy as np
import pandas as pd
import pytest

from mlperf_opt import cli

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SHORT = {
    "lenet300": ("deep_compression", {"prune": 3, "retrain": 1, "retrain_shared": 1}),
    "lenet5": ("deep_compression_lenet5", {"prune": 1, "retrain": 1, "retrain_shared": 1}),
}


@pytest.mark.parametrize("model", SHORT)
def test_a_short_deep_compression_is_over_thirty_times_smaller(model, mnist_root, tmp_path, monkeypatch, capsys):
    pipeline, epochs = SHORT[model]
    monkeypatch.chdir(tmp_path)
    words = [f"model={model}", f"pipeline={pipeline}", f"data.root={mnist_root}", "measure.seconds=0.05"]
    words += [f"passes.{step}.epochs={count}" for step, count in epochs.items()]
    with np.errstate(all="raise", under="ignore"):
        assert cli.main([*words, "passes.prune.hold=0", "hydra.run.dir=run"]) == 0
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv").set_index("name")
    assert (rows["status"] == "VALID").all()
    assert rows["sparsity"]["retrain"] == pytest.approx(0.92, abs=0.002)
    assert rows["sparsity"]["retrain_shared"] == rows["sparsity"]["retrain"]
    assert (1 / rows["file_ratio"]["share":]).min() > 33
    assert 1 / rows["file_ratio"]["retrain"] < 12
    assert rows["quality"]["retrain_shared"] >= 0.98
    table = capsys.readouterr().out
    assert all(label in table for label in ("reference", "pruned and shared", "and coded", "x bytes", "x weights"))
