"""Words -> a command line: what is told apart, rewritten, and refused before anything is imported."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_opt.errors import ConfigError
from mlperf_opt.overrides import CommandLine, normalize, options, parse


def test_flags_and_overrides_are_told_apart(tmp_path):
    line = parse(["-m", "model=mlp,cnn", "--config-dir", str(tmp_path), "~passes.prune", "--cfg", "job", "+a.b=1"])
    assert line == CommandLine(["model=mlp,cnn", "~passes.prune", "+a.b=1"], True, tmp_path.resolve(), True)
    assert parse([]) == CommandLine([], multirun=False, config_dir=None, show=False)


@pytest.mark.parametrize("words", [["--config-dir", "."], ["--config-dir=."], ["-cd", "."]])
def test_the_folder_is_absolute(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(words).config_dir == tmp_path.resolve()


@pytest.mark.parametrize("words", [["--cfg", "job"], ["-c", "job"], ["--cfg=job"]])
def test_a_configuration_can_be_asked_for(words):
    assert parse(words).show


@pytest.mark.parametrize(
    "words, text",
    [
        (["--cfg"], "--cfg needs a value"),
        (["--config-dir"], "--config-dir needs a value"),
        (["--config-dir", "nowhere"], "no such folder"),
        (["--cfg", "all"], "expected --cfg job"),
        (["--multi"], "did you mean '--multirun'"),
        (["-M"], "no such flag"),
        (["model"], "neither a command nor a setting"),
        (["=1"], "expected name=value"),
        (["1=1"], "expected name=value"),
        (["a..b=1"], "expected name=value"),
        (["~"], "expected name=value"),
    ],
)
def test_words_that_are_nothing(words, text):
    with pytest.raises(ConfigError, match="^[^\n]+$") as caught:
        parse(words)
    assert text in str(caught.value)


def test_the_last_value_of_a_key_counts():
    line = parse(["seed=1", "seed=2=3", "+seed=4", "passes.seed=5"])
    assert line.value("seed") == "2=3"
    assert line.value("sed") is None


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("quant", "[quant]"),
        ("quant+prune", "[quant,prune]"),
        ("prune+finetune+quant", "[prune,finetune,quant]"),
        ("[quant,prune]", "[quant,prune]"),
        ("[ quant , prune ]", "[ quant , prune ]"),
        ("[]", "[]"),
    ],
)
def test_a_list_of_passes_has_two_spellings(given, wanted):
    assert normalize(parse([f"passes={given}"])).overrides == [f"passes={wanted}"]


def test_a_sweep_over_lists_has_two_spellings():
    wanted = ["passes=[quant,prune],[prune,quant]"]
    for value in ("quant+prune,prune+quant", "[quant,prune],[prune,quant]"):
        assert normalize(parse(["-m", f"passes={value}"])).overrides == wanted


NAMES = st.lists(st.sampled_from(["profile", "quant", "prune", "finetune", "kv_cache"]), min_size=1, max_size=5)


@given(NAMES)
def test_any_list_without_repetition_is_taken_in_its_order(names):
    line = parse([f"passes={'+'.join(names)}"])
    if len(set(names)) == len(names):
        assert normalize(line).value("passes") == f"[{','.join(names)}]"
    else:
        with pytest.raises(ConfigError, match="stands twice"):
            normalize(line)


@pytest.mark.parametrize(
    "words",
    [
        ["passes=[prune]", "passes.prune.sparsity=0.5"],
        ["-m", "passes=[prune],[quant]", "passes.prune.sparsity=0.5"],  # belongs to one of the lists: Hydra decides
        ["-m", "model=choice(mlp,cnn)"],
        ["-m", "passes=choice([quant],[prune])"],
        ["pipeline=none", "passes=[quant]"],
        ["~model=mlp"],
    ],
)
def test_what_is_right_stays_as_it_is(words):
    line = parse(words)
    assert normalize(line) == line


def test_options_are_the_files(tmp_path):
    root = Path(__file__).resolve().parents[1]
    for group in ("model", "data", "passes", "runtime", "measure"):
        assert options(group) == sorted(path.stem for path in (root / "conf" / group).glob("*.yaml"))
    assert options("pipeline") == sorted(["none", *(path.stem for path in (root / "pipelines").glob("*.yaml"))])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").touch()
    (tmp_path / "model" / "note.txt").touch()
    assert set(options("model", tmp_path)) - set(options("model")) == {"mine"}
    assert options("nothing") == []
