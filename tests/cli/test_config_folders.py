"""A folder of the user's own configurations: used where it is data, refused in one line where it is anything else."""

from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
MLP = ROOT / "models" / "mlp" / "weights.safetensors"
FAST = ["measure.seconds=0.01", "measure.throughput_batch=64"]
NOT_ALLOWED = "configurations are data, never code"
pytestmark = pytest.mark.integration

PIPELINES = {
    "hydra: {run: {dir: elsewhere}}": NOT_ALLOWED,
    "hydra.run.dir: elsewhere": NOT_ALLOWED,
    "passes: {quant: {_target_: builtins.print}}": NOT_ALLOWED,
    "passes: {quant: {dtype: '${oc.env:HOME}'}}": NOT_ALLOWED,
    "passes: {quant: {'${oc.env:HOME}': 1}}": NOT_ALLOWED,
    "passes: {quant: {skip: ['../x']}}": NOT_ALLOWED,
    "passes: &a {quant: *a}": NOT_ALLOWED,
    "# @package hydra.run\npasses: {}": NOT_ALLOWED,
    "passes: {quant: {skip: [!!binary aGk=]}}": NOT_ALLOWED,
    "!!python/object/apply:builtins.print [x]": "no legal YAML",
    "passes: {prune: {}, prune: {sparsity: 0.1}}": "found duplicate key prune",
    "passes: [quant": "no legal YAML",
    "- quant": "expected keys and values",
    "": "expected passes:",
    "passes:": "expected passes:",
    "passes: [quant, prune]": "expected passes:",
    "steps: {}": "'steps' has no place in a pipeline",
    "defaults: [override /model: cnn]\npasses: {}": "'defaults' has no place in a pipeline",
    "passes: {a: {pass: prun}}": "did you mean 'prune'",
    "passes: {a: {}}": "no such pass 'a'",
    "passes: {a: {pass: [prune]}}": "no such pass",
    "passes: {a: 5}": "passes.a=5: expected keys and values",
    "passes: {'a b': {pass: prune}}": "a step's name",
    "passes: {baseline: {pass: prune}}": "a step's name",
    "passes: {a: {pass: prune, from: b}}": "passes.a.from=b: no such step",
    "passes: {a: {pass: prune, from: a}}": "passes.a.from=a: no such step",
    "passes: {a: {pass: prune, sparsity: 2}}": "passes.a.sparsity=2.0: expected 0 to less than 1",
    "passes: {a: {pass: prune, sparsty: 0.1}}": "did you mean 'sparsity'",
    "passes: {a: {pass: quant}, b: {pass: quant}}": "can't come after a",
    "passes: {}\npromises: 5": "promises=5: expected a list",
    "passes: {}\nmade_for: mlp": "made_for=mlp: expected a list of models' names",
    "passes: {a: {pass: cluster, skip: [x]}}\nmade_for: [cnn]": "this pipeline is for model=cnn, not mlp: passes.a: ",
    "passes: {}\npromises: [{step: a, label: x}]": "promises[0].step=a: no such step",
    "passes: {}\npromises: [{step: baseline}]": "promises[0].label: missing",
    "passes: {}\npromises: [{step: baseline, label: x, quality_low: 0.9}]": "both, with 0 <= low <= high <= 1",
}


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.mark.parametrize("content", PIPELINES)
def test_a_pipeline_that_is_more_than_steps(content, assert_refused, tmp_path):
    write(tmp_path, {"own/pipelines/mine.yaml": content})
    assert_refused(["--config-dir", "own", "pipeline=mine"], PIPELINES[content])


@pytest.mark.parametrize(
    "files, text",
    [
        ({"data/mine.yaml": "defaults: [digits, extra@hydra.run]"}, NOT_ALLOWED),
        ({"data/mine.yaml": "defaults: [digits, 'override /hydra/job_logging': x]"}, NOT_ALLOWED),
        ({"data/mine.yaml": "defaults: [{/hydra/job_logging: default}]"}, NOT_ALLOWED),
        ({"data/extra.yaml": "# @package hydra.run\ndir: elsewhere"}, NOT_ALLOWED),
        ({"data/extra.yaml": "\n#@package _global_.hydra\nrun: {dir: elsewhere}"}, NOT_ALLOWED),
        ({"deep/er/x.yaml": "hydra: {}"}, NOT_ALLOWED),
        ({"data/x.yml": "hydra: {}"}, NOT_ALLOWED),
        ({"data/digits.yaml": "name: digits"}, "is a name that ships"),
        ({"config.yaml": "seed: 1"}, "is a name that ships"),
        ({"pipelines/olympics.yaml": "passes: {}"}, "is a name that ships"),
    ],
)
def test_a_folder_that_reaches_beyond_itself(files, text, assert_refused, tmp_path):
    write(tmp_path / "own", files)
    assert_refused(["--config-dir", "own", "model=mlp"], text)


def test_what_lies_behind_a_link_is_looked_at_too(assert_refused, tmp_path):
    write(tmp_path, {"far/mine.yaml": "hydra: {run: {dir: elsewhere}}", "own/note.yaml": "a: 1"})
    (tmp_path / "own" / "model").symlink_to(tmp_path / "far")
    (tmp_path / "own" / "circle").symlink_to(tmp_path / "own")
    assert_refused(["--config-dir", "own", "model=mine"], NOT_ALLOWED)


def test_a_file_that_cannot_be_read(assert_refused, tmp_path):
    """Nobody is refused a file as root, so a folder stands in its place, and then bytes that are no text."""
    (tmp_path / "own" / "pipelines" / "x.yaml").mkdir(parents=True)
    assert_refused(["--config-dir", "own", "pipeline=x"], "Is a directory")
    (tmp_path / "own" / "pipelines" / "x.yaml").rmdir()
    (tmp_path / "own" / "pipelines" / "x.yaml").write_bytes(b"\xff\xfe")
    assert_refused(["--config-dir", "own", "pipeline=x"], "cannot read")


def test_a_model_of_ones_own_needs_weights(assert_refused, say, tmp_path):
    write(tmp_path, {"own/model/mine.yaml": "defaults: [mlp, _self_]\nname: mine\n"})
    assert_refused(["--config-dir", "own", "model=mine"], "model=mine ships no trained weights")
    assert_refused(["--config-dir", "own", "model=min"], "did you mean 'mine'")
    assert_refused(
        ["train", "--config-dir", "own", "model=mine"],
        "model=mine has no recipe to train it: add train/mine.yaml to your --config-dir, or choose train=NAME (one of: ",
    )
    words = ["--config-dir", "own", "model=mine", f"model.weights={MLP}", "passes=[prune]", "hydra.run.dir=run", *FAST]
    assert say(*words).status == 0
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert rows["model"].tolist() == ["mine", "mine"] and (rows["status"] == "VALID").all()


def test_a_model_of_ones_own_is_trained_and_used(say, tmp_path):
    write(tmp_path, {"own/model/small.yaml": "defaults: [mlp, _self_]\nname: small\nsizes: [64, 12, 10]\n"})
    model = ["--config-dir", "own", "model=small"]
    assert say("train", *model, "train=mlp", "train.epochs=4", "save=small.safetensors").status == 0
    assert "# small: DigitMLP" in (tmp_path / "small.md").read_text()
    words = [*model, "model.weights=small.safetensors", "passes=[]", "hydra.run.dir=run", *FAST]
    assert say(*words).status == 0
    assert pd.read_csv(tmp_path / "run" / "metrics.csv")["parameters"].tolist() == [64 * 12 + 12 + 12 * 10 + 10]


def test_a_pipeline_repeats_a_pass_branches_and_promises(say, tmp_path):
    content = """
description: prune in two rounds, and once alone
passes:
  first: {pass: prune, sparsity: 0.3}
  second: {pass: prune, sparsity: 6e-1}
  alone: {pass: prune, sparsity: 0.9, from: baseline}
promises:
  - {step: second, label: half the weights, weights_ratio: 0.6}
  - {step: alone, label: nothing left, weights_ratio: 1e-9, quality_low: 0.99, quality_high: 1.0}
"""
    write(tmp_path, {"own/pipelines/rounds.yaml": content})
    shown = say("--config-dir", "own", "pipeline=rounds", "hydra.run.dir=run", *FAST)
    assert shown.status == 0
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv").set_index("name")
    assert list(rows.index) == ["baseline", "first", "second", "alone"]
    assert rows["pass"].tolist() == ["baseline", "prune", "prune", "prune"]
    matrices = 64 * 32 + 32 * 10
    zeros = (rows["parameters"] - rows["nonzero"]).tolist()
    # biases may be zero by themselves, of which there are 42
    for found, sparsity in zip(zeros, (0, 0.3, 0.6, 0.9), strict=True):
        assert round(sparsity * matrices) <= found <= round(sparsity * matrices) + 42
    kept = [line for line in shown.out.splitlines() if "half the weights" in line]
    missed = [line for line in shown.out.splitlines() if "nothing left" in line]
    assert "met" in kept[0] and "missed" in missed[0] and "worse" in missed[0]


def test_a_pass_file_of_ones_own_is_a_step(say, tmp_path):
    write(tmp_path, {"own/passes/hard.yaml": "hard:\n  pass: prune\n  sparsity: 0.8\n"})
    words = ["--config-dir", "own", "passes=quant+hard", "passes.hard.sparsity=0.7", "hydra.run.dir=run", *FAST]
    assert say(*words).status == 0
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert rows["name"].tolist() == ["baseline", "quant", "hard"]
    assert '"sparsity":0.7' in rows["settings"][2]
