"""Each benchmark runs to its end on next to nothing, and leaves its figures."""

import json
import subprocess
import sys

import pytest
from benchmark_scripts import BENCHMARKS

TINY = {
    "side_by_side": ["--models", "mlp", "--batches", "1", "--peers", "ours,onnxruntime", "--threads", "1"],
    "roofline": ["--short"],
    "decode": ["--tokens", "16"],
    "context": [],
    "streaming": ["--short"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("form", [[], ["--markdown"]], ids=["screen", "markdown"])
def test_runs(name, form, tmp_path, request):
    if name == "streaming":
        request.getfixturevalue("shakespeare")
    kept = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *TINY[name], "--seconds", "0.01", "--json", str(kept), *form]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "wanted" in done.stdout and max(map(len, done.stdout.splitlines()[2:20])) <= 130
    assert {"cpu", "versions"} <= json.loads(kept.read_text())["system"].keys()
    assert ("| ---" in done.stdout) == bool(form)
