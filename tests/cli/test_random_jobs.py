"""Command lines of right and wrong settings, drawn at random: each runs whole, or is refused in one line."""

import os
import shutil
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlperf_opt import cli

pytestmark = pytest.mark.integration

PASSES = ["profile", "quant", "prune", "finetune", "kv_cache"]
SETTINGS = {
    "prune": ["sparsity=0", "sparsity=0.5", "sparsity=0.99", "sparsity=1", "sparsity=x", "scope=layer", "skip=[fc1]"],
    "quant": ["dtype=fp16", "dtype=int4", "scheme=dynamic", "scheme=weight_only", "granularity=tensor", "calibration=mse"],
    "finetune": ["epochs=0 lr=0.1", "epochs=0 lr=0", "epochs=0 l1=-1"],
    "profile": ["nothing=1"],
    "kv_cache": ["nothing=1"],
}
ELSEWHERE = [
    "seed=3",
    "seed=-3",
    "measure.batch=3",
    "measure.batch=1000000",
    "measure.max_drop=0",
    "data=digits",
    "data=mnist",
]


@st.composite
def command_lines(draw):
    """(words, passes, jobs): finetune trains for no epoch, whatever is drawn, or a test would take minutes."""
    passes = draw(st.lists(st.sampled_from(PASSES), max_size=3, unique=True))
    model = draw(st.sampled_from(["mlp", "cnn", "transformer"]))
    words = [f"model={model}", f"passes=[{','.join(passes)}]"]
    words += ["passes.finetune.epochs=0"] if "finetune" in passes else []
    for name in draw(st.lists(st.sampled_from(passes), max_size=2, unique=True)) if passes else []:
        words += [f"passes.{name}.{setting}" for setting in draw(st.sampled_from(SETTINGS[name])).split()]
    words += draw(st.lists(st.sampled_from(ELSEWHERE), max_size=1))
    seeds = draw(st.sampled_from([None, None, None, "0,1"]))
    return [*words, *(["-m", f"seed={seeds}"] if seeds else [])], passes, 2 if seeds else 1


@pytest.fixture(scope="module", autouse=True)
def folder():
    """An empty folder to run in."""
    before = os.getcwd()  # noqa: PTH109
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        yield Path(name)
        os.chdir(before)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(command_lines())
@example((["model=mlp", "passes=[prune]", "passes.prune.sparsity=0.99", "-m", "seed=0,1"], ["prune"], 2))
@example((["model=cnn", "passes=[]", "measure.batch=1000000"], [], 1))
def test_a_job_runs_whole_or_leaves_nothing(capsys, folder, line):
    words, passes, jobs = line
    capsys.readouterr()
    status = cli.main([*words, "measure.seconds=0.004", "measure.throughput_batch=8"])
    out, err = capsys.readouterr()
    tables = sorted(folder.glob("outputs/**/metrics.csv"))
    try:
        assert status in (0, 2), (words, err)
        if status == 2:
            assert out == "" and err.startswith("error: ") and err.count("\n") == 1
            assert list(folder.iterdir()) == []
            return
        assert err == "" and "written to outputs/" in out and "Traceback" not in out
        assert len(tables) == jobs
        for table in tables:
            rows = pd.read_csv(table)
            assert rows["pass"].tolist() == ["baseline", *passes]
            assert (rows["status"] == "VALID").all(), (words, rows["reasons"].tolist())
            files = {path.name for path in table.parent.glob("*.safetensors")}
            assert files == {f"{step:02d}-{name}.safetensors" for step, name in enumerate(["baseline", *passes])}
        assert len(list(folder.glob("outputs/*/*/summary.csv"))) == (jobs > 1)
    finally:
        shutil.rmtree(folder / "outputs", ignore_errors=True)
