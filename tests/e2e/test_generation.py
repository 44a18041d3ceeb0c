"""The pipeline of caches, on the words that need no corpus."""

import pandas as pd
import pytest

from mlperf_opt import cli

pytestmark = pytest.mark.e2e


def test_one_run_compares_every_kind_of_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "model=transformer",
        "pipeline=generation",
        "passes.window.window=6",
        "hydra.run.dir=run",
        "measure.seconds=0.05",
        "measure.throughput_batch=16",
    ]
    assert cli.main(words) == 0
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv").set_index("name")
    assert list(rows.index) == ["baseline", "kv_cache", "int8", "int8_kv_cache", "int8_int8_cache", "window"]
    assert (rows["status"] == "VALID").all()
    assert (rows["quality"][:-1] > 0.99).all() and rows["quality"]["window"] < 0.5, (
        "words are spelt backwards from their end"
    )
    assert rows["state_bytes"].isna().tolist() == [True, False, True, False, False, False]
    assert rows["state_bytes"]["int8_int8_cache"] < 0.3 * rows["state_bytes"]["int8_kv_cache"]
    assert (rows["token_us"][["kv_cache", "int8_kv_cache", "int8_int8_cache"]] < rows["token_us"]["baseline"]).all()
