"""The main job on real models: what it leaves is checked against the files themselves."""

import hashlib
import json
import math

import numpy as np
import pandas as pd
import pytest

from mlperf_opt import cli
from mlperf_opt.artifacts import load_graph
from mlperf_opt.data import load_data
from mlperf_opt.onnx_export import export
from mlperf_opt.records import columns
from mlperf_opt.runtimes import NUMPY

pytestmark = pytest.mark.e2e
FAST = "measure.seconds=0.004"
MAY_BE_EMPTY = {
    *("latency_p90_us", "latency_p99_us", "token_us", "prefill_us", "state_bytes"),
    *("reference_max_abs_diff", "plan", "reasons"),
}


def execute(folder, *arguments):
    status = cli.main([*arguments, FAST])
    (run,) = folder.glob("outputs/*/*")
    return status, run


@pytest.fixture(
    scope="module",
    params=["model=mlp passes=[quant]", "model=cnn passes=[quant,prune]", "model=cnn passes=[prune,finetune,quant]"],
)
def classified(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        status, run = execute(folder, *request.param.split())
    assert status == 0
    return run, pd.read_csv(run / "metrics.csv")


def test_every_column_is_filled_or_honestly_empty(classified):
    _, rows = classified
    assert list(rows.columns) == columns()
    empty = {name for name in rows.columns if rows[name].isna().any()}
    assert empty <= MAY_BE_EMPTY
    assert (rows["status"] == "VALID").all()


def test_sizes_and_hashes_are_those_of_the_files(classified):
    run, rows = classified
    for row in rows.itertuples():
        data = (run / f"{row.step:02d}-{row.name}.safetensors").read_bytes()
        assert row.file_bytes == len(data)
        assert row.model_sha256 == hashlib.sha256(data).hexdigest()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        spans = {k: v["data_offsets"] for k, v in header.items() if k != "__metadata__"}
        own = data[len(data) - max(end for _, end in spans.values()) + spans["g"][0] :]
        low, high = own[8:10]  # behind the checksum, the length of the layout: 7 bits a byte
        layout = (1 + low) if low < 128 else 2 + (low & 127) + (high << 7)
        assert row.weights_bytes == sum(end - start for start, end in spans.values()) - 8 - layout
        assert row.file_ratio == pytest.approx(row.file_bytes / rows["file_bytes"][0])
        assert row.weights_ratio == pytest.approx(row.weights_bytes / rows["weights_bytes"][0])


def test_quality_is_that_of_the_file(classified):
    run, rows = classified
    test = load_data("digits").test
    for row in rows.itertuples():
        logits = NUMPY.prepare(load_graph(run / f"{row.step:02d}-{row.name}.safetensors"))(test.inputs)
        share = float(np.mean(logits.argmax(axis=1) == test.targets))
        assert row.quality == pytest.approx(share)
        assert row.quality_low < share < row.quality_high
        assert row.quality_delta == pytest.approx(share - rows["quality"][0])
        assert row.fixed - row.broken == round(row.quality_delta * len(test.targets))


def test_speed_has_an_interval(classified):
    _, rows = classified
    assert (rows["speedup_low"] <= rows["speedup"]).all() and (rows["speedup"] <= rows["speedup_high"]).all()
    assert (rows["latency_n"] > 0).all() and (rows["throughput_per_s"] > 0).all()
    assert (rows["peak_activation_bytes"] > 0).all()


def test_the_description_names_no_place(classified):
    run, _ = classified
    text = (run / "run.json").read_text()
    described = json.loads(text)
    assert described["data_sha256"] == load_data("digits").sha256
    assert described["system"]["cores"] >= 1
    assert "/root" not in text and "/home" not in text and "/tmp" not in text
    assert "baseline" in (run / "summary.md").read_text()
    assert not [p for p in run.iterdir() if p.suffix not in (".csv", ".json", ".md", ".safetensors")]


def test_a_cached_transformer_leaves_quality_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, run = execute(tmp_path, "model=transformer", "passes=[quant,kv_cache]", "measure.throughput_batch=16")
    rows = pd.read_csv(run / "metrics.csv")
    assert status == 0 and (rows["status"] == "VALID").all()
    assert rows["quality"][2] == rows["quality"][1] >= 0.99
    # two layers, keys and values, 16 places, width 32, float32; and one int64 position
    assert rows["state_bytes"][2] == 2 * 2 * 16 * 32 * 4 + 8
    assert (rows["token_us"] > 0).all() and (rows["prefill_us"] > 0).all()


def test_an_export_leaves_the_onnx_file_beside_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["model=cnn", "passes=[quant,export]", "runtime=onnx", "hydra.run.dir=run", FAST]) == 0
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.glob("02-*")) == ["02-export-check.csv", "02-export.onnx", "02-export.safetensors"]
    content = (folder / "02-export.onnx").read_bytes()
    assert content == export(load_graph(folder / "01-quant.safetensors"))
    table, exported = pd.read_csv(folder / "metrics.csv"), pd.read_csv(folder / "02-export-check.csv")
    assert (table["status"] == "VALID").all() and (table["runtime"] == "onnx").all()
    assert table["peak_activation_bytes"].isna().all(), "onnxruntime's memory can't be seen"
    assert exported["sha256"].tolist() == [hashlib.sha256(content).hexdigest()]
    assert exported["file_bytes"].tolist() == [len(content)]
    assert "200 of 200 predictions equal" in capsys.readouterr().out


def test_the_milestone_as_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["-m", "model=mlp,cnn", "pipeline=olympics", FAST]) == 0
    shown = capsys.readouterr().out
    assert shown.count("INT8 + pruning") == 2 and "missed" not in shown
    for path in sorted(tmp_path.glob("outputs/*/*/[01]/metrics.csv")):
        rows = pd.read_csv(path).set_index("name")
        assert rows.loc["int8", "weights_ratio"] <= 0.125 and rows.loc["int8", "quality"] >= 0.90
        assert rows.loc["int8_alone", "weights_ratio"] <= 0.25 and rows.loc["int8_alone", "quality"] >= 0.89


def test_a_sweep_is_one_summary_and_sizes_fall(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["-m", "model=mlp,cnn", "passes.prune.sparsity=0.3,0.5,0.7,0.9", FAST]) == 0
    (path,) = tmp_path.glob("outputs/*/*/summary.csv")
    rows = pd.read_csv(path)
    assert len(rows) == 8
    for _, group in rows.groupby("model"):
        sizes = group.sort_values("passes.prune.sparsity")["weights_bytes"].tolist()
        assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert (path.parent / "summary.md").exists()


def test_a_failed_job_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    """The second job breaks while it runs; nothing about it could be known before."""
    from mlperf_opt.passes.prune import Prune

    healthy = Prune.__call__

    def breaks(self, graph, context):
        if math.isclose(self.sparsity, 0.6):
            raise RuntimeError("out of luck")
        return healthy(self, graph, context)

    monkeypatch.setattr(Prune, "__call__", breaks)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["-m", "passes=[prune]", "passes.prune.sparsity=0.5,0.6,0.7", FAST]) == 1
    (path,) = tmp_path.glob("outputs/*/*/summary.csv")
    rows = pd.read_csv(path)
    assert rows["status"].tolist() == ["VALID", "INVALID", "VALID"]
    assert "out of luck" in rows["reasons"][1]
    assert "RuntimeError" in (path.parent / "1" / "error.txt").read_text()


def test_two_runs_compare_and_a_gate_closes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["passes=[prune]", "passes.prune.sparsity=0.5", "hydra.run.dir=a", FAST]) == 0
    assert cli.main(["passes=[prune]", "passes.prune.sparsity=0.95", "hydra.run.dir=b", FAST]) == 0
    assert cli.main(["compare", "a", "b"]) == 0
    assert "worse" in capsys.readouterr().out
    assert cli.main(["compare", "a", "b", "--fail-on", "quality_delta<-0.01"]) == 1
    assert cli.main(["compare", "a", "a", "--fail-on", "quality_delta<-0.01"]) == 0


def test_training_rebuilds_a_model_and_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["train", "model=mlp", "train.epochs=5"]
    assert cli.main([*short, "save=a/weights.safetensors"]) == 0
    assert cli.main([*short, "save=b/weights.safetensors"]) == 0
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (tmp_path / "b" / "weights.safetensors").read_bytes()
    digest = hashlib.sha256((tmp_path / "a" / "weights.safetensors").read_bytes()).hexdigest()
    assert digest in (tmp_path / "a" / "README.md").read_text()
    assert cli.main(["model=mlp", "model.weights=a/weights.safetensors", "passes=[quant]", FAST]) == 0
