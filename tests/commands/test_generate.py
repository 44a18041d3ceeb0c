"""The command ``generate``: what it writes, that passes are applied, and that it refuses before any work."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mlperf_opt import cli
from mlperf_opt.artifacts import save_graph
from mlperf_opt.commands import generate, optimize
from mlperf_opt.data.tokenizer import CharTokenizer
from mlperf_opt.errors import ArtifactError, ConfigError, DataError, MlperfOptError, PassError
from mlperf_opt.networks import MinimalTransformer
from mlperf_opt.overrides import normalize, parse
from mlperf_opt.resources import resource_dir

pytestmark = pytest.mark.integration

NET = {"vocabulary": 5, "context": 24, "layers": 1, "dim": 8, "heads": 2, "hidden": 12}
SIZES = [f"model.{key}={value}" for key, value in NET.items()]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLPERF_OPT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("abc.txt").write_text("ab cab, " * 400)


def run(*words):
    """Return what it writes, without the line about the speed."""
    console = Console(file=io.StringIO(), width=100, markup=False)
    assert generate.run(normalize(parse(list(words))), console) == 0
    text, speed = console.file.getvalue().rsplit("\n", 2)[:2]
    assert re.fullmatch(r"[\d,]+ tokens in [\d.]+ s: [\d,]+ tokens/s in a batch of \d+, the first after [\d.]+ ms", speed)
    return text


REVERSE = ("model=transformer", "length=8", "temperature=0")


@pytest.mark.parametrize("passes", ["[]", "[kv_cache]", "[quant,kv_cache]"])
@pytest.mark.parametrize("runtime", ["numpy", "compiled"])
def test_the_reversing_transformer_reverses(passes, runtime):
    assert run(*REVERSE, "prompt=ABCDEFGH|", f"passes={passes}", f"runtime={runtime}") == "ABCDEFGH|HGFEDCBA\n"


def test_a_pipeline_for_another_model_says_so_before_a_token():
    said = "^this pipeline is for model=lenet300, not transformer: passes.sparsify: prune: shift=1: only images can be"
    with pytest.raises(PassError, match=said):
        run(*REVERSE, "prompt=ABCDEFGH|", "pipeline=smallest")


def test_prompts_are_gone_on_with_in_one_batch():
    words = ["ABCDEFGH|", "QWERTYUI|QWER", "ZZTOPABC|"]
    together = run(*REVERSE, "length=4", *(f"prompt={word}" for word in words), "passes=[kv_cache]")
    alone = [run(*REVERSE, "length=4", f"prompt={word}") for word in words]
    assert together == "\n\n".join(text.removesuffix("\n") for text in alone) + "\n"
    assert together.startswith("ABCDEFGH|HGFE\n\nQWERTYUI|QWER")


def test_a_row_ends_before_the_stop_text():
    assert run(*REVERSE, "prompt=ABCDEFGH|", "stop=ED") == "ABCDEFGH|HGF\n"
    assert run(*REVERSE, "prompt=ABCDEFGH|", "stop=EX") == "ABCDEFGH|HGFEDCBA\n"


def _weights(tokenizer=None, **changed):
    """Save random weights of a small network, and return the words that choose them."""
    sizes = NET | {"vocabulary": (tokenizer or CharTokenizer(" ,abc")).size} | changed
    graph = MinimalTransformer(**sizes).build("chargpt", np.random.default_rng(0))
    save_graph(replace(graph, tokenizer=tokenizer and tokenizer.to_data()), Path("weights.safetensors"))
    chosen = [f"model.{key}={value}" for key, value in sizes.items()]
    return ["model=chargpt", *chosen, "model.positions=learned", "model.weights=weights.safetensors"]


CHAR = CharTokenizer(" ,abc")


def _rotary():
    return [word for word in _weights(CHAR, positions="rotary") if word != "model.positions=learned"]


def test_the_file_is_all_that_is_needed():
    """No text, no data folder; and the same seed draws the same."""
    words = [*_weights(CHAR), "prompt=ab", "length=20", "temperature=1"]
    first, same, other = (run(*words, f"seed={seed}") for seed in (1, 1, 2))
    assert first == same != other
    assert len(first) == 23 and set(first) <= set(" ,abc\n")


@pytest.mark.parametrize("passes", ["[quant]", "[prune,quant,kv_cache] passes.kv_cache.dtype=int8", "[kv_cache]"])
def test_the_file_of_a_step_is_gone_on_with_as_it_ships(passes):
    """Quantized, with a cache, and whatever the sizes: no setting is told again, no pass applied, no text needed."""
    words = ["prompt=ab", "length=12", "temperature=0"]
    made = [*_weights(CHAR, dim=24, heads=3), "data.path=abc.txt", *f"passes={passes}".split()]
    assert (
        optimize.run(normalize(parse([*made, "measure.seconds=0.01", "hydra.run.dir=run"])), Console(file=io.StringIO()))
        == 0
    )
    last = sorted(Path("run").glob("*.safetensors"))[-1]
    assert run(f"model.weights={last}", *words) == run(*made, *words)


def test_settings_beside_a_file_are_not_ignored():
    """They describe the model then: the file must fit them, and a longer context is one."""
    made = [word for word in _weights(CHAR, positions="sinusoidal") if word != "model.positions=learned"]
    words = [*made, "prompt=ab", "temperature=0"]
    only = ["model.weights=weights.safetensors", "prompt=ab", "temperature=0"]
    with pytest.raises(ConfigError, match="context of chargpt is"):
        run(*only, "length=60")
    longer = run(*words, "model.context=99", "length=60")
    assert len(longer) == 63 and longer.startswith(run(*only, "length=6").rstrip("\n"))
    with pytest.raises(ArtifactError, match="trained with heads=2; the network has heads=1"):
        run(*words, "model.heads=1", "length=3")
    with pytest.raises(ArtifactError, match="lacks"):
        run(*only, "model=mlp", "length=3")


@pytest.mark.parametrize("passes", ["[]", "[kv_cache]"])
def test_a_file_without_a_tokenizer_must_fit_its_data(passes):
    """Letters of another alphabet would be nonsense: whose letters they are is looked up, whatever the passes look at."""
    with pytest.raises(ConfigError, match=r"model=transformer .* data=text"):
        run("model=transformer", "data=text", "data.path=abc.txt", "prompt=ab", f"passes={passes}")
    words = ["prompt=ABCDEFGH|", "length=8", "temperature=0"]
    file = resource_dir("models") / "transformer" / "weights.safetensors"
    with pytest.raises(ConfigError, match=r"model=transformer .* data=text"):
        run(f"model.weights={file}", "data.path=abc.txt", "data.window=16", *words)
    assert run(f"model.weights={file}", "data=reverse", *words) == "ABCDEFGH|HGFEDCBA\n"


def test_a_cache_changes_nothing():
    words = [*_weights(CHAR), "prompt=ab", "prompt=cab, c", "length=12", "data.path=abc.txt", "temperature=1", "seed=3"]
    assert run(*words) == run(*words, "passes=[kv_cache]") == run(*words, "runtime=numpy")


def test_passes_are_applied():
    words = [*_weights(CHAR), "prompt=ab", "length=12", "data.path=abc.txt", "temperature=0"]
    pruned = run(*words, "passes=[prune]", "passes.prune.sparsity=0.95")
    assert pruned != run(*words)


def test_everything_ends_once_all_rows_have_stopped(monkeypatch):
    steps = []
    plain = generate.choose
    monkeypatch.setattr(generate, "choose", lambda *arguments: steps.append(1) or plain(*arguments))
    run(*REVERSE, "prompt=ABCDEFGH|", "prompt=BCDEFGHA|", "stop=D")
    assert len(steps) == 6, "HGFED and AHGFED"


def test_an_added_prompt_is_a_prompt():
    assert run(*REVERSE, "+prompt=ABCDEFGH|", "+stop=ED") == "ABCDEFGH|HGF\n"


def test_a_group_of_the_users_own_may_be_added(tmp_path):
    (tmp_path / "own" / "tone").mkdir(parents=True)
    (tmp_path / "own" / "tone" / "dry.yaml").write_text("# @package _global_\nlength: 2\n")
    assert run(*REVERSE[:1], "temperature=0", "--config-dir=own", "+tone=dry", "prompt=ABCDEFGH|") == "ABCDEFGH|HG\n"
    with pytest.raises(ConfigError, match="tone: no such setting of generate"):
        run(*REVERSE, "+tone=dry", "prompt=ABCDEFGH|")


def test_a_configuration_is_shown():
    console = Console(file=io.StringIO(), width=100)
    assert generate.run(normalize(parse(["prompt=a: [b", "--cfg", "job"])), console) == 0
    text = console.file.getvalue()
    assert "length: 200" in text and "- 'a: [b'" in text and not Path("outputs").exists()


CHARGPT = "model=chargpt model.weights=weights.safetensors model.positions=learned " + " ".join(SIZES)
MISTAKES = [
    ("", "prompt: missing; give prompt=TEXT"),
    ("prompt=", "prompt= is empty: expected at least one symbol"),
    ("prompt=ab length=3 prompt=", "prompt= is empty"),
    ("prompt=abX", "prompt=abX: 'X' at character 2 is none of the 5 that the model knows"),
    ("prompt=ab length=24", "length=24: expected at most 23 behind a prompt of 2 tokens"),
    (f"prompt={'abc' * 9}", "27 tokens; expected at most 24, the context of chargpt"),
    ("prompt=ab length=0", "length=0: expected a whole number >= 1"),
    ("prompt=ab length=3 temperature=-1", "temperature=-1.0: expected 0, or 0.01 to 100"),
    ("prompt=ab length=3 top_p=0", "top_p=0.0: expected more than 0, at most 1"),
    ("prompt=ab length=3 top_k=1.5", "top_k=1.5: expected a whole number"),
    ("prompt=ab length=3 stop=", "stop= is empty: expected at least one symbol"),
    ("prompt=ab length=3 stop=a stop=b", "stop: given 2 times, a and b; expected one text"),
    ("prompt=ab length=3 stop=a stop=", "stop: given 2 times"),
    ("prompt=ab lenght=3", "did you mean 'length'"),
    (
        "promt=ab",
        "promt: no such setting of generate; did you mean 'prompt'? (one of: data, length, model, passes, pipeline,",
    ),
    ("+promt=ab", "promt: no such setting of generate; did you mean 'prompt'?"),
    ("prompt=ab stpo=a", "stpo: no such setting of generate; did you mean 'stop'?"),
    ("prompt=ab pases=[quant]", "pases: no such setting of generate; did you mean 'passes'?"),
    (
        "prompt=ab pipelin=none",
        "did you mean 'pipeline'? (one of: data, length, model, passes, pipeline, prompt, runtime, seed,",
    ),
    ("prompt=ab modl.layers=2", "modl.layers: no such setting of generate; did you mean 'model'?"),
    ("prompt=ab model.layer=2", "model.layer: no such setting; did you mean 'layers'?"),
    ("prompt=ab length=3 measure.seconds=1", "measure.seconds: no such setting of generate"),
    ("prompt=ab hydra.run.dir=x", "hydra.run.dir: no such setting of generate"),
    ("prompt=ab length=3 passes=[kv_cash]", "did you mean 'kv_cache'"),
    ("-m prompt=ab length=3,4", "without -m"),
]


@pytest.mark.parametrize("words, text", MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_refused_before_any_work(words, text, monkeypatch):
    _weights(CHAR)
    monkeypatch.setattr(generate, "apply_passes", lambda *_: pytest.fail("no pass may be applied"))
    with pytest.raises(MlperfOptError) as error:
        run(*CHARGPT.split(), *words.split())
    assert text in str(error.value)
    assert not Path("outputs").exists()


WINDOW = ("passes=[kv_cache]", "passes.kv_cache.window=6", "data.path=abc.txt")


def test_a_window_goes_on_behind_the_context():
    """Rotary positions only: others end where their table ends."""
    words = ["prompt=ab", "length=40", "temperature=1", *WINDOW]
    text = run(*_rotary(), *words)
    assert text.startswith("ab") and len(text.removesuffix("\n")) == 42 > NET["context"]
    assert len(run(*_rotary(), f"prompt={'abc' * 9}", "length=2", *WINDOW).removesuffix("\n")) == 29
    with pytest.raises(ConfigError, match="length=40: expected at most 23 behind a prompt of 2 tokens"):
        run(*_weights(CHAR), *words)


def test_without_a_window_the_context_is_the_limit_before_any_pass(monkeypatch):
    monkeypatch.setattr(generate, "apply_passes", lambda *_: pytest.fail("no pass may be applied"))
    with pytest.raises(ConfigError, match="length=40: expected at most 23"):
        run(*_rotary(), "prompt=ab", "length=40", "passes=[kv_cache]", "data.path=abc.txt")


@pytest.mark.parametrize("word", ["length=-1", "temperature=-1.0", "top_k=some"])
def test_a_mistake_is_named_as_it_is_typed(word):
    with pytest.raises(ConfigError, match=f"^{word}: expected"):
        run(*_weights(CHAR), "prompt=ab", word)


def test_a_long_prompt_is_cut_in_its_error():
    with pytest.raises(ConfigError) as error:
        run(*_weights(CHAR), f"prompt={'abc' * 100}", "length=1")
    assert str(error.value).startswith(f"prompt={('abc' * 14)[:40]}...: 300 tokens; expected at most 24")


def test_of_a_pipeline_with_branches_the_last_is_named():
    text = run(*REVERSE, "prompt=ABCDEFGH|", "pipeline=generation", "runtime=numpy")
    left_out = "kv_cache, int8, int8_kv_cache, int8_int8_cache"
    assert text == f"using the last branch (window), without {left_out}\nABCDEFGH|HGFEDCBA\n"
    assert run(*REVERSE, "prompt=ABCDEFGH|", "passes=[quant,kv_cache]") == "ABCDEFGH|HGFEDCBA\n"


@pytest.mark.parametrize(
    "passes", ["[quant]", "[kv_cache] passes.kv_cache.dtype=int8", "[prune] passes.prune.schedule=cubic"]
)
def test_passes_that_look_at_the_data_need_it(passes):
    with pytest.raises(DataError, match=r"set data\.path=FILE"):
        run(*_weights(CHAR), "prompt=ab", "length=3", *f"passes={passes}".split())


@pytest.mark.parametrize(
    "passes",
    [
        *("[kv_cache]", "[fuse,kv_cache] passes.kv_cache.dtype=fp16", "[prune]", "[lowrank]", "[cluster]"),
        *(
            "[quant,kv_cache] passes.quant.scheme=weight_only",
            "[quant] passes.quant.scheme=dynamic",
            "[quant] passes.quant.dtype=fp16",
        ),
    ],
)
def test_for_other_passes_the_file_is_enough(passes):
    words = [*_weights(CHAR), "prompt=ab", "length=6", "temperature=0", *f"passes={passes}".split()]
    text = run(*words)
    assert len(text) == 9 and text == run(*words, "data.path=abc.txt")


def test_a_network_that_reads_no_text_is_refused():
    with pytest.raises(ConfigError, match="model=mlp reads no text, so it can't go on with a prompt"):
        run("model=mlp", "prompt=a")


def test_a_file_without_a_tokenizer_takes_that_of_its_data():
    words = [*_weights(), "prompt=ab", "length=4"]
    assert len(run(*words, "data.path=abc.txt")) == 7
    with pytest.raises(DataError, match=r"set data\.path=FILE"):
        run(*words)


def test_help_explains_it(capsys):
    assert cli.main(["help", "generate"]) == 0
    text = capsys.readouterr().out
    for word in ("\n    prompt=TEXT: ", "\n    stop=TEXT: ", "top_p", "temperature: 0.8", "length: 200"):
        assert word in text
    assert cli.main(["--help"]) == 0
    assert re.search(r"\n  generate +go on with a text", capsys.readouterr().out)


def test_generated_text_is_that_of_the_data_it_was_trained_on():
    """Tokens of another text would be nonsense: a file and a data set that disagree are refused."""
    words = _weights(CharTokenizer("abcde"))
    with pytest.raises(ConfigError, match="was trained on a text of other tokens"):
        run(*words, "prompt=ab", "length=3", "data.path=abc.txt", "passes=[quant]")
