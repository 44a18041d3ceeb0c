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


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--positions", "rotary"], ["--model", "chargpt"]], ids=" ".join)
def test_the_cache_is_shown_to_be_exact(words, request):
    if "chargpt" in words:
        request.getfixturevalue("shakespeare")
    command = [sys.executable, str(BENCHMARKS / "kv_cache_exact.py"), *words, "--rows", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {line[:16].strip(): line[16:].split() for line in done.stdout.splitlines()[2:]}
    assert len(rows) == 5
    for name in ("float32", "fp16", "int8 weight_only"):
        assert float(rows[name][0]) < 1e-4 and float(rows[name][1]) == 1, "the largest difference; the same greedy tokens"
