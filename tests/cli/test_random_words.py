"""Whatever stands on the command line, the answer is friendly. An invalid seed at the end keeps anything from running."""

import os
import tempfile

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlperf_opt import cli

KEYS = st.sampled_from(
    [
        *("model", "data", "passes", "pipeline", "runtime", "measure", "seed", "promises", "description", "train", "save"),
        *("model.name", "model.sizes", "model.weights", "data.root", "measure.seconds", "runtime.threads", "model.image.0"),
        *("passes.quant", "passes.prune.sparsity", "passes.quant.skip", "passes.x.pass", "hydra.run.dir", "hydra.job.name"),
        *("hydra", "hydra/sweeper", "hydra.callbacks", "hydra.searchpath", "hydra.verbose", "a.b.c", "x@y", "passes@z"),
    ]
)
VALUES = st.sampled_from(
    [
        *("", "null", "true", "1", "-1", "1e400", "nan", "[]", "{}", "[quant]", "[quant,prune]", "quant+prune", "mlp"),
        *("[[1],[2]]", "{a: 1}", "{a: [1, {b: 2}]}", "${seed}", "${oc.env:NOPE}", "${", "???", "'x'", '"', "a,b", "x y"),
        *("choice(1,2)", "range(3)", "range(1,0)", "glob(*)", "interval(0,1)", "int(x)", "sort(3,1)", "tag(a,b)", "f(", ")"),
    ]
)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
WORD = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), KEYS, VALUES | TEXT),
    st.builds("~{}".format, KEYS),
    st.builds("{}={}".format, TEXT, TEXT),
    TEXT.filter(lambda text: text not in ("-h", "--help", "help", "--version", "compare")),
)


@pytest.fixture(scope="module", autouse=True)
def empty_folder():
    before = os.getcwd()  # noqa: PTH109
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        yield
        os.chdir(before)


@pytest.mark.integration
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([[], [], ["-m"], ["train"], ["--cfg", "job"]]), st.lists(WORD, max_size=3))
@example([], ["hydra.sweeper.params={a: 1}"])
@example([], ["model.image={a: 1}"])
@example(["-m"], ["hydra/sweeper=basic"])
@example([], ["passes.quant.skip=[[1]]", "~passes.prune"])
def test_any_words_get_one_line(capsys, command, words):
    capsys.readouterr()
    status = cli.main([*command, *words, "seed=-1"])
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert os.listdir(".") == []  # noqa: PTH208
