"""The command line as a user meets it: every mistake is one line, exit 2, and nothing is written."""

import logging
import subprocess
import sys

import numpy as np
import pytest
from cli_process import ROOT, environment, run
from numba.core.ccallback import CFunc

from mlperf_opt.kernels import jit, machine, opcodes

pytestmark = pytest.mark.cli


MISTAKES = [
    (["model=mpl"], "did you mean 'mlp'"),
    (["model=mlp", "passes=[quant,prun]"], "did you mean 'prune'"),
    (["passes=quant+prun"], "did you mean 'prune'"),
    (["optimise"], "did you mean 'optimize'"),
    (["--frobnicate"], "no such flag"),
    (["passes=[prune,finetune,prune]"], "stands twice"),
    (["passes=[quant]", "passes.prune.sparsity=0.7"], "is not in passes"),
    (["passes.prune.sparsty=0.5"], "did you mean 'sparsity'"),
    (["+passes.prune.sparsty=0.5"], "did you mean 'sparsity'"),
    (["measure.secs=1"], "did you mean 'seconds'"),
    (["passes.prune.sparsity=1.5"], "expected 0 to less than 1"),
    (["passes.prune.sparsity=nan"], "expected 0 to less than 1"),
    (["passes.prune.sparsity=abc"], "expected a number"),
    (["passes.quant.scheme=statik"], "did you mean 'static'"),
    (["model=mlp", "passes=[kv_cache]"], "no attention"),
    (["model=transformer", "passes=[kv_cache,finetune]"], "can't come after kv_cache"),
    (["model=transformer", "data=digits"], "but data=digits gives"),
    (["data=mnist"], "MLPERF_OPT_DATA"),
    (["data=mnist", "data.root=nowhere"], "is missing"),
    (["model.weights=nowhere.safetensors"], "cannot read nowhere.safetensors"),
    (["model.sizes=[64,16,10]"], "the shipped weights don't fit"),
    (["seed=-1"], "expected a whole number"),
    (["pipeline=olympic"], "did you mean 'olympics'"),
    (["pipeline=olympics", "passes=[quant]"], "give one of them"),
    (["model=mlp,cnn"], "add -m"),
    (["-m", "model=mlp,cnn", "passes.prune.sparsity=0.5,1.5"], "expected 0 to less than 1"),
    (["help", "prun"], "did you mean 'prune'"),
    (["compare", "nowhere", "neither"], "nowhere"),
    (["train", "model=mlp", "train.lr=0"], "expected a number > 0"),
    (["train", "model=mlp", "save=weights.bin"], ".safetensors"),
    (["export", "model=mlp", "save=model.bin"], ".onnx"),
    (["export", "model=mlp", "safe=model.onnx"], "no such setting"),
    (["export", "model=mlp", "passes=[kv_cache]"], "no attention"),
    (["export", "-m", "model=mlp,cnn"], "without -m"),
]


@pytest.mark.parametrize("arguments, text", MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_a_mistake_is_one_line(arguments, text, assert_refused):
    assert_refused(arguments, text)


@pytest.mark.parametrize("arguments, text", [MISTAKES[0], MISTAKES[11], MISTAKES[25]])
def test_a_process_ends_as_the_function_does(arguments, text, tmp_path):
    """The other tests here call it: what the interpreter adds is the exit status, and nothing on either stream."""
    result = run(tmp_path, *arguments)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("error: ") and text in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content, text",
    [
        ("hydra: {run: {dir: elsewhere}}", "'hydra' is not allowed"),
        ("passes: {quant: {_target_: builtins.print}}", "'_target_' is not allowed"),
        ("description: ${oc.env:HOME}", "interpolation"),
        ("passes: {quant: {skip: ['../x']}}", "leaves its folder"),
        ("passes: [quant", "no legal YAML"),
        ("stages: {}", "has no place in a pipeline"),
    ],
)
def test_a_pipeline_is_data(content, text, assert_refused, tmp_path):
    (tmp_path / "own" / "pipelines").mkdir(parents=True)
    (tmp_path / "own" / "pipelines" / "mine.yaml").write_text(content)
    assert_refused(["--config-dir", "own", "pipeline=mine"], text)


def test_a_damaged_model_file_is_refused(assert_refused, tmp_path):
    whole = (ROOT / "models" / "mlp" / "weights.safetensors").read_bytes()
    for name, data in {"short": whole[:-100], "flipped": whole[:-1] + bytes([whole[-1] ^ 1]), "junk": b"junk"}.items():
        (tmp_path / name).write_bytes(data)
        assert_refused([f"model.weights={name}"], name)


def test_weights_of_another_network_are_refused(assert_refused):
    path = ROOT / "models" / "mlp" / "weights.safetensors"
    assert_refused(["model=cnn", f"model.weights={path}"], "conv1.weight")


def test_an_output_folder_that_cannot_be_made_is_one_line(assert_refused, tmp_path):
    (tmp_path / "outputs").write_text("a file stands in the way")
    assert_refused(["passes=[quant]"], "outputs")


@pytest.mark.parametrize("arguments", [["--help"], ["passes=[quant,prun]"], ["help"], ["--version"]])
def test_help_and_misspellings_import_nothing_heavy(arguments, tmp_path):
    """What makes them fast, told without a clock."""
    code = (
        "import sys; from mlperf_opt import cli; status = cli.main(sys.argv[1:]);"
        "heavy = {'numpy', 'hydra', 'pandas', 'rich', 'omegaconf', 'matplotlib', 'numba', 'onnx', 'onnxruntime'};"
        "print(status, sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip().splitlines()[-1] in ("0 []", "2 []")


def test_help_names_every_pass_and_command(say):
    status, shown, _ = say("--help")
    assert status == 0
    for word in (
        "profile",
        "quant",
        "prune",
        "finetune",
        "kv_cache",
        "olympics",
        "train",
        "export",
        "compare",
        "plot",
        "transformer",
    ):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_help_of_a_pass_is_its_docstring_and_defaults(say):
    status, shown, _ = say("help", "prune")
    assert status == 0
    assert "magnitude pruning" in shown and "sparsity: 0.5" in shown


def test_whoever_waits_for_kernels_is_told_so_by_the_command_alone(say, monkeypatch):
    """What the package logs while a command runs is a line of it; afterwards the log is the user's again."""
    log, root = logging.getLogger("mlperf_opt"), []
    handler = logging.Handler()
    handler.emit = root.append
    logging.getLogger().addHandler(handler)
    before = (list(log.handlers), log.level, log.propagate)
    name, table = opcodes.QUANTIZE, np.zeros_like(machine._table)
    monkeypatch.setattr(jit._Native, "compile", lambda self: self._tell() or CFunc.compile(self))
    monkeypatch.setitem(machine.KERNELS, name, jit.operation()(machine.KERNELS[name]._function))
    monkeypatch.setattr(machine, "_table", table)
    try:
        answer = say("model=mlp", "measure.seconds=0.01")
        told = "compiling kernels of the compiled runtime: some seconds, kept for the next time"
        assert answer.out.splitlines()[1] == told, answer
        assert say("model=mlp", "measure.seconds=0.01").out.count("compiling") == 0
    finally:
        logging.getLogger().removeHandler(handler)
    assert (log.handlers, log.level, log.propagate) == before and not root
