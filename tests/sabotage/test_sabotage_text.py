"""A language model, from its training to its table: healthy first, then one part of it broken at a time."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mlperf_opt import cli
from mlperf_opt.artifacts import load_graph
from mlperf_opt.data import Stream
from mlperf_opt.graph import Weight
from mlperf_opt.ops import OPS
from mlperf_opt.passes import PASSES
from mlperf_opt.passes.base import PassResult

pytestmark = pytest.mark.integration

SIZES = {"vocabulary": 12, "context": 16, "layers": 1, "dim": 16, "heads": 2, "hidden": 32}
MODEL = ["model=chargpt", "data.prompt=6", *(f"model.{key}={value}" for key, value in SIZES.items())]
RECIPE = ["train.epochs=4", "train.steps=50", "train.batch=16", "train.lr=0.01", "train.dropout=0"]


@pytest.fixture(scope="module")
def verse(tmp_path_factory):
    """A folder with a text of 12 characters, and a network trained on it by the command."""
    folder = tmp_path_factory.mktemp("verse")
    rng = np.random.default_rng(0)
    words = np.array(["hello ", "to ", "the ", "world,\n", "she ", "told\n"])
    (folder / "verse.txt").write_text("".join(rng.choice(words, 3000)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        with np.errstate(under="ignore"):
            train = ["train", *MODEL, *RECIPE, "data.path=verse.txt", "save=weights.safetensors", "threads=2"]
            assert cli.main(train) == 0
    return folder


@pytest.fixture(autouse=True)
def _same_cache(verse, monkeypatch):
    """The kernels are compiled already: only the tokens lie in a cache of their own."""
    monkeypatch.setattr("mlperf_opt.data.text.user_cache", lambda: verse / "cache" / "mlperf_opt")


@pytest.fixture
def job(verse, rows):
    """Return a function that runs the main job on that network."""
    words = [*MODEL, f"data.path={verse}/verse.txt", f"model.weights={verse}/weights.safetensors", "runtime=numpy"]
    return lambda passes: rows(*words, f"passes=[{passes}]")


def test_training_leaves_a_model_its_page_and_its_tokenizer(verse):
    graph = load_graph(verse / "weights.safetensors")
    assert graph.tokenizer == {"kind": "char", "symbols": "".join(sorted(set((verse / "verse.txt").read_text())))}
    page = (verse / "README.md").read_text()
    assert re.search(r"Test nats_per_token 0\.\d{4} .* perplexity \d\.\d{3}, \d\.\d{4} bits per character", page)
    # six words of 4.5 characters on average, equally likely: ln 6 / 4.5 = 0.40 nats for each
    nats = float(re.search(r"Test nats_per_token (\S+)", page)[1])
    assert 0.35 < nats < 0.7
    assert not list(verse.glob("*.checkpoint"))


def test_a_healthy_table(job):
    status, table, error = job("quant,kv_cache")
    assert status == 0, error
    assert (table["status"] == "VALID").all() and table["quality_ok"].all()
    assert set(table["quality_metric"]) == {"nats_per_token"} and table[["fixed", "broken"]].isna().all(axis=None)
    assert (table["quality"] < 0.7).all() and abs(table["quality_delta"]).max() < 0.01
    assert table["quality_delta"][1] == pytest.approx(table["quality"][0] - table["quality"][1])
    assert table["token_us"].notna().all() and table["prefill_us"].notna().all() and table["state_bytes"][2] > 0
    assert table["reasons"].str.contains("bits per character").all()


def _zeroed(graph):
    weights = {n: Weight(np.zeros_like(graph.weights[n].values), graph.weights[n].encoding) for n in graph.matrices()}
    return graph.with_weights(weights)


def test_a_quantizer_that_returns_zeros_is_worse_in_nats(job, monkeypatch, capsys):
    original = PASSES["quant"].__call__

    def broken(self, graph, context):
        return PassResult(_zeroed(original(self, graph, context).graph))

    monkeypatch.setattr(PASSES["quant"], "__call__", broken)
    _, table, _ = job("quant")
    assert not table["quality_ok"][1] and table["quality_delta"][1] < -1 and table["quality"][1] > table["quality"][0] + 1


def test_a_comparison_calls_more_nats_worse(job, monkeypatch, capsys, tmp_path):
    job("prune")
    monkeypatch.setattr(PASSES["prune"], "__call__", lambda self, graph, context: PassResult(_zeroed(graph)))
    job("prune")
    first, second = sorted(path for path in tmp_path.iterdir() if (path / "metrics.csv").exists())
    capsys.readouterr()
    assert cli.main(["compare", str(first), str(second), "--fail-on", "quality_delta<-0.5"]) == 1
    assert re.search(r"prune\s+quality .* worse", capsys.readouterr().out)
    assert cli.main(["compare", str(second), str(first), "--fail-on", "quality_delta<-0.5"]) == 0
    assert re.search(r"prune\s+quality .* better", capsys.readouterr().out)


def test_a_cache_that_looks_at_nothing_is_invalid(job, monkeypatch):
    op = OPS["cached_attention"]
    monkeypatch.setitem(OPS, "cached_attention", replace(op, forward=lambda *a, **k: op.forward(*a, **k) * np.float32(0)))
    status, table, _ = job("kv_cache")
    assert status == 1 and table["status"].tolist() == ["VALID", "INVALID"]
    assert "must leave the outputs as they are" in table["reasons"][1]
    assert table["quality"][1] > table["quality"][0] + 0.05, "quality is measured through the cache"


def test_a_stream_whose_targets_are_shuffled_learns_nothing(verse, monkeypatch, tmp_path):
    """Sabotage of the data: what follows is drawn from anywhere."""
    plain = Stream.take
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        Stream, "take", lambda self, rows: (plain(self, rows)[0], rng.permuted(plain(self, rows)[1], axis=None))
    )
    monkeypatch.chdir(tmp_path)
    words = ["train", *MODEL, *RECIPE, f"data.path={verse}/verse.txt", "save=weights.safetensors"]
    assert cli.main(words) == 0
    assert float(re.search(r"nats_per_token (\S+)", (tmp_path / "README.md").read_text())[1]) > 1.8


def test_the_table_of_a_text_says_nats(job, capsys, tmp_path):
    job("")
    (page,) = tmp_path.rglob("summary.md")
    text = page.read_text()
    assert "nats/token" in text and "perplexity" in text
    assert pd.read_csv(page.with_name("metrics.csv"))["quality_low"].notna().all()
