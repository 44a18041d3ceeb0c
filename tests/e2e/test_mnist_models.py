"""The two networks trained on MNIST: what ships is as good as was promised, and stays so pruned and quantized."""

import numpy as np
import pandas as pd
import pytest

from mlperf_opt import cli

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", params=["lenet300", pytest.param("lenet5", marks=pytest.mark.slow)])
def run(request, mnist_root, tmp_path_factory):
    """The name of a model and the rows of its main job, which took 10 ms of timing a step."""
    folder = tmp_path_factory.mktemp("run")
    words = [f"model={request.param}", "passes=[prune,quant]", f"data.root={mnist_root}", "measure.seconds=0.004"]
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="raise", under="ignore"):
        patch.chdir(folder)
        assert cli.main(words) == 0
    (metrics,) = folder.glob("outputs/*/*/metrics.csv")
    return request.param, pd.read_csv(metrics)


def test_the_shipped_network_reads_the_test_digits(run):
    name, rows = run
    assert rows["quality"][0] >= {"lenet300": 0.982, "lenet5": 0.991}[name]
    assert rows["quality_high"][0] - rows["quality_low"][0] < 0.006, "10,000 digits were read"


def test_half_of_the_weights_and_int8_cost_at_most_a_point(run):
    _, rows = run
    assert list(rows["name"]) == ["baseline", "prune", "quant"]
    assert (rows["status"] == "VALID").all()
    assert rows["sparsity"][1] == pytest.approx(0.5, abs=0.01)
    assert (rows["quality_delta"] >= -0.01).all()
    assert rows["weights_ratio"][2] < 0.2
