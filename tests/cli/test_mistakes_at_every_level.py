"""Mistakes in every part of the command line: keys at each depth, values, lists, flags, Hydra's own settings."""

import pytest

NUMBER = "expected a number"
MISTAKES = {
    # names
    "model=": "no such model",
    "model=null": "no such model",
    "model=[mlp]": "did you mean 'mlp'",
    "model=[mlp,cnn]": "no such model",
    "model=../model/cnn": "expected a name, not a path",
    "model=a/b": "expected a name, not a path",
    "model=MLP": "model=MLP: no such model (one of: chargpt, cnn, lenet300, lenet5, mlp, transformer)",
    "data=digit": "did you mean 'digits'",
    "runtime=numpi": "did you mean 'numpy'",
    "runtime.name=numpi": "did you mean 'numpy'",
    "measure=thorou": "did you mean 'thorough'",
    "pipeline=": "no such pipeline",
    "pipeline=null": "no such pipeline",
    # lists of passes
    "passes=": "expected 'passes=[a,b]'",
    "passes=null": "no such pass 'null'",
    "passes=[quant": "expected 'passes=[a,b]'",
    "passes=quant]": "expected 'passes=[a,b]'",
    "passes={quant,prune}": "expected 'passes=[a,b]'",
    "passes=[[quant]]": "expected 'passes=[a,b]'",
    "passes=[../model/cnn]": "no such pass '../model/cnn'",
    "passes=quant+": "a name is missing beside a comma",
    "passes=[,]": "a name is missing beside a comma",
    "passes=[quant,,prune]": "a name is missing beside a comma",
    "passes=quant,prune": "several lists are a sweep, add -m",
    "passes=[quant],[prune]": "several lists are a sweep, add -m",
    "passes=quant+quant": "'quant' stands twice",
    "-m passes=quant+prune,prune+prune": "'prune' stands twice",
    "-m passes=[quant,prune],[prune,qant]": "did you mean 'quant'",
    "passes=[prune] passes.prun.sparsity=0.5": "'prun' is not in passes=[prune]; did you mean 'prune'",
    "passes=[] passes.prune.sparsity=0.5": "'prune' is not in passes=[]",
    "+passes.finetune.epochs=2": "'finetune' is not in passes=[quant,prune]",
    "++passes.finetune.epochs=2": "'finetune' is not in passes=[quant,prune]",
    "passes=[kv_cache]": "mlp has no attention",
    "model=transformer passes=[kv_cache,quant]": "can't come after kv_cache",
    # keys, from the outside in
    "sed=1": "did you mean 'seed'",
    "modle=mlp": "did you mean 'model'",
    "+foo=1": "foo: no such setting",
    "foo.bar=1": "no such setting 'foo'",
    "model.size=[64,10]": "did you mean 'sizes'",
    "+model.size=[64,10]": "did you mean 'sizes'",
    "model.weights.path=x": "model.weights.path",
    "data.rot=x": "did you mean 'root'",
    "runtime.thread=1": "did you mean 'threads'",
    "measure.secods=1": "did you mean 'seconds'",
    "passes.prun.sparsity=0.5": "no such setting 'prun' in passes; did you mean 'prune'",
    "passes.quant.dtyp=int8": "did you mean 'dtype'",
    "promises=[1]": "promises: no such setting",
    "+promises=[1]": "promises[0]=1: expected keys and values",
    "+promises=5": "promises=5: expected a list",
    "model@other=mlp": "model@other: no such setting",
    "passes/quant=1": "passes/quant: no such setting",
    # deletions
    "~model": "model=None: expected keys and values",
    "~data": "data=None: expected keys and values",
    "~measure": "measure=None: expected keys and values",
    "~seed": "seed: missing",
    "~nothing": "nothing",
    "~passes": "passes",
    # types and ranges
    "seed=1.5": "expected a whole number from 0 to 4294967295",
    "seed=true": "expected a whole number",
    "seed=4294967296": "expected a whole number",
    "seed=null": "seed",
    "passes.prune=5": "passes.prune=5: expected keys and values",
    "passes.prune.sparsity=": NUMBER,
    "passes.prune.sparsity=null": NUMBER,
    "passes.prune.sparsity=true": NUMBER,
    "passes.prune.sparsity=[0.5]": NUMBER,
    "passes.prune.sparsity=1": "expected 0 to less than 1",
    "passes.prune.sparsity=-0.1": "expected 0 to less than 1",
    "passes.prune.sparsity=inf": "expected 0 to less than 1",
    "passes.prune.scope=globl": "did you mean 'global'",
    "passes.prune.skip=fc1": "expected a list",
    "passes.prune.skip=[fc3]": "skip=fc3: no such weight or node; did you mean",
    "passes.prune.skip=[fc1,fc2]": "nothing is left to prune",
    "passes.quant.dtype=int4": "did you mean 'int8'",
    "passes.quant.percentile=50": "more than 50 and at most 100",
    "passes.quant.skip=[null]": "expected a text",
    "model.sizes=[63,10]": "a first size of 64",
    "model.sizes=x": "expected a list",
    "model.name=../x": "expected a name",
    "model.family=DigitMlp": "did you mean 'DigitMLP'",
    "model.weights=5": "expected a path",
    "data.name=foo": "no such data set",
    "data.root=5": "expected a text",
    "runtime.threads=0": "expected a whole number >= 1",
    "runtime.threads=x": "expected a whole number",
    "runtime.threads=1000000": "the cores of this machine",
    "model.sizes=[64,1000000000,10]": "not enough memory: ",
    "measure.batch=0": "expected a whole number >= 1",
    "measure.split=tset": "measure.split=tset: no such choice; did you mean 'test'? (one of: calibration, test)",
    "measure.split=train": "measure.split=train: no such choice",
    "measure.split=calibration measure.batch=201": "expected at most 200, the calibration samples of data=digits",
    "measure.batch=598": "expected at most 597, the test samples of data=digits",
    "measure.seconds=0": "more than 0",
    "measure.max_drop=2": "expected 0 to 1",
    # words that are no settings
    "=5": "expected name=value",
    "@=1": "expected name=value",
    "é=1": "expected name=value",
    "a b=1": "expected name=value",
    "a=b=c": "can't be read",
    "seed='": "can't be read",
    "model.weights=/tmp/ü": "is written 'model.weights=\"/tmp/ü\"'",
    "trian": "did you mean 'train'",
    "compre": "did you mean 'compare'",
    "seed=1 train": "is neither a command nor a setting",
    "--multi": "did you mean '--multirun'",
    "--cfg": "needs a value",
    "--cfg=": "needs a value",
    "--cfg hydra": "expected --cfg job",
    "--cfg job seed=-1": "expected a whole number",
    "--cfg job modle=x": "did you mean 'model'",
    "--config-dir": "needs a value",
    "--config-dir=": "needs a value",
    "--config-dir nowhere": "no such folder",
    "--config-dir=nowhere": "no such folder",
    "help nope": "no such topic",
    "help transfomer": "did you mean 'transformer'",
    "help prune quant": "expected one topic",
    # sweeps: refused whole, before the first folder
    "seed=1,2": "several values are a sweep, add -m",
    "seed=choice(1,2)": "several values are a sweep, add -m",
    "-m seed=1,-1": "job seed=-1",
    "-m seed=choice(1,x)": "job seed=x",
    "-m seed=range(0,3,-1)": "a sweep without a job",
    "-m seed=range(0,3,0)": "must not be zero",
    "-m seed=range(": "can't be read",
    "-m model=mlp,foo": "no such model",
    "-m model=mlp,transformer passes=[quant],[kv_cache]": "job model=mlp passes=[kv_cache]",
    # Hydra's own settings: a few may be changed, and those only to what makes sense
    "hydra=null": "of Hydra's own settings only hydra.run.dir,",
    "hydra=": "hydra: of Hydra's own settings only",
    "hydra={}": "hydra: of Hydra's own settings only",
    "+hydra=x": "+hydra: of Hydra's own settings only",
    "++hydra=x": "++hydra: of Hydra's own settings only",
    "~hydra": "~hydra: of Hydra's own settings only",
    "~hydra.run.dir": "~hydra.run.dir: of Hydra's own settings only",
    "hydra.run=null": "hydra.run: of Hydra's own settings only",
    "hydra.run.dirr=x": "hydra.run.dirr: of Hydra's own settings only",
    "-m hydra.sweep.dirr=x": "hydra.sweep.dirr: of Hydra's own settings only",
    "hydra.mode=foo": "hydra.mode: of Hydra's own settings only",
    "hydra.verbose=true": "hydra.verbose: of Hydra's own settings only",
    "hydra.job.chdir=true": "hydra.job.chdir: of Hydra's own settings only",
    "hydra.job_logging.version=null": "hydra.job_logging.version: of Hydra's own settings only",
    "hydra.searchpath=[pkg://x]": "hydra.searchpath: of Hydra's own settings only",
    "hydra.callbacks.a._target_=x": "hydra.callbacks.a._target_: of Hydra's own settings only",
    "hydra.launcher._target_=x": "hydra.launcher._target_: of Hydra's own settings only",
    "data@hydra.run=digits": "data@hydra.run: of Hydra's own settings only",
    "hydra.run.dir=": "hydra.run.dir=: expected a folder",
    "hydra.run.dir=''": "expected a folder",
    "hydra.run.dir=null": "expected a folder",
    "hydra.run.dir=[a]": "expected a folder",
    "hydra.run.dir=${foo}": "expected a folder",
    "-m hydra.sweep.dir=${now:%Y}": "expected a folder",
    "-m hydra.sweep.dir=a,b": "expected a folder",
    "hydra.sweep.dir=x": "the folder of one run is hydra.run.dir",
    "-m hydra.run.dir=x": "the folder of a sweep is hydra.sweep.dir",
    "hydra/launcher=null": "expected the name of a plugin",
    "hydra/launcher=": "expected the name of a plugin",
    "hydra/launcher=jobli": "no such hydra/launcher",
    "-m hydra/sweeper=basic seed=-1": "expected a whole number",
    "-m hydra/sweeper=other seed=1,2": "no such hydra/sweeper",
    "-m hydra.sweeper.max_batch_size=0 seed=1": "chosen by hydra/sweeper=NAME",
    "-m +hydra.launcher.n_jobs=2": "chosen by hydra/launcher=NAME",
    # passes that a network doesn't suit
    "passes=cluster passes.cluster.bits=9": "passes.cluster.bits=9: expected 2 to 8",
    "passes=cluster passes.cluster.layers={fc3:4}": "cluster: layers=fc3: no such weight or node; did you mean 'fc2'?",
    "passes=prune passes.prune.structure=n:m passes.prune.m=5": "fc1.weight has 64 inputs, which m=5 does not divide",
    "passes=prune passes.prune.structure=n:m passes.prune.n=4": "passes.prune.n=4: expected 1 to less than m=4",
    "passes=prune passes.prune.sparsity=1.0": "passes.prune.sparsity=1.0: expected 0 to less than 1",
    "passes=prune passes.prune.sparsity=0.9999": "leaves none of the 2,368 weights of fc1.weight, fc2.weight",
    "passes=prune passes.prune.sparsity=0.999 passes.prune.scope=layer": "leaves none of the 320 weights of fc2.weight",
    "passes=lowrank passes.lowrank.rank=30": "fc1 (32 x 64) has 2,048 weights, at rank=30 its factors have 2,880",
    "passes=lowrank passes.lowrank.energy=1.0": "at energy=1.0 no layer of mlp has factors smaller than itself",
    # the other commands
    "train -m model=mlp,cnn": "without -m",
    "train model=foo": "no such model",
    "train train=nope": "no such train",
    "train train.epcohs=1": "did you mean 'epochs'",
    "train train.epochs=-1": "expected a whole number >= 0",
    "train train.optimizer=adm": "did you mean 'adam'",
    "train passes=[quant]": "passes: no such setting",
    "train ~train": "train=None: expected keys and values",
    "train ~data": "data=None: expected keys and values",
    "train save=5": "save=5: expected a path",
    "train save=": "save=: expected a path",
    "train hydra.run.dir=x": "chosen by save=PATH",
    "train save=x.txt": "ends in .safetensors",
    "train data=mnist": "MLPERF_OPT_DATA",
    "train model=mlp data=reverse": "but data=reverse gives",
    "train model.weights=nowhere": "cannot read nowhere",
    "compare": "expected two",
    "compare a": "expected two or more",
    "compare a b c": "no such file or folder: 'a'",
    "compare a b --fail": "unrecognized arguments: --fail",
    "compare a b --fail-on": "--fail-on",
    "plot": "plot: expected plot A [B ...] save=FILE.svg",
    "plot a": "plot: expected plot A [B ...] save=FILE.svg",
    "plot save=a.svg": "plot: expected plot A [B ...] save=FILE.svg",
    "plot a save=a.svg save=b.svg": "plot: expected plot A [B ...] save=FILE.svg",
    "plot a -m save=a.svg": "plot: -m: no such flag",
    "plot a save=a.pdf": "save=a.pdf: expected the path of a file that ends in .svg or .png",
    "plot a save=": "save=: expected a path",
    "plot a save=a.svg": "no such file or folder: 'a'",
    "help plto": "did you mean 'plot'",
}


@pytest.mark.integration
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(line, assert_refused):
    words = ["a b=1"] if line == "a b=1" else line.split()
    assert_refused(words, MISTAKES[line])


@pytest.mark.integration
@pytest.mark.parametrize(
    "words", [["export", "model=mlp"], ["train", "model=mlp"], ["plot", "run"]], ids=lambda words: words[0]
)
def test_where_nothing_can_be_written_no_work_is_done(words, assert_refused, tmp_path):
    (tmp_path / "taken").write_text("a file")
    ending = {"export": "onnx", "train": "safetensors", "plot": "svg"}[words[0]]
    for place in ("taken", "taken/deeper"):
        assert_refused([*words, f"save={place}/x.{ending}"], f"save={place}/x.{ending}: taken is a file, expected a folder")


LONG = "a" * 5000


@pytest.mark.integration
@pytest.mark.parametrize(
    "words",
    [
        *([LONG], [f"{LONG}=1"], [f"model={LONG}"], [f"passes=[{LONG}]"], [f"passes.{LONG}=1"], [f"seed={LONG}"]),
        *([f"hydra.run.dir={LONG}"], ["-m", f"hydra.sweep.dir={LONG}"], [f"model.weights={LONG}"], ["help", LONG]),
        *([f"--config-dir={LONG}"], ["compare", LONG, "b"], ["train", f"save={LONG}.safetensors"]),
    ],
    ids=lambda words: " ".join(words).replace(LONG, "LONG"),
)
def test_a_word_of_thousands_of_letters_is_shortened(words, assert_refused, say):
    assert_refused(words, "..." + "a" * 20)
    assert len(say(*words).err) < 600


@pytest.mark.integration
def test_the_first_word_decides_what_is_explained(say):
    assert "magnitude pruning" in say("help", "prune").out
    for word, text in (("train", "warmup: share of all steps"), ("cnn", "channels: [4, 8]"), ("olympics", "from: baseline")):
        assert text in say("help", word).out
    for word in ("mlp", "digits", "numpy", "thorough", "none", "optimize"):
        answer = say("help", word)
        assert answer.status == 0 and word in answer.out.splitlines()[0]
    assert say("help", "train").out == say("train", "--help").out
    assert say("help", "compare").out == say("compare", "a", "b", "--help").out
    assert "quality_delta<-0.01" in say("help", "compare").out
    assert "save=FILE.svg" in say("plot", "--help").out
    both = say("help", "export").out  # a command and a pass
    assert both.startswith("mlperf-opt export: ") and "\n\npasses=[export]\n\nWrite the model as" in both
    for words in (["--help"], ["help"], ["help", "help"], [], ["passes=[quant,prun]", "-h"], ["modle=x", "--help"]):
        answer = say(*words)
        assert answer.status == 0 and answer.out.startswith("usage: mlperf-opt"), words


@pytest.mark.integration
@pytest.mark.parametrize("group", ["model", "data", "passes", "pipeline", "runtime", "measure"])
def test_a_group_is_explained_by_what_it_offers(say, group):
    """The same lines as in the overview, and only those."""
    overview, answer = say("--help").out.splitlines(), say("help", group)
    lines = answer.out.splitlines()
    assert answer.status == 0 and len(lines) >= 3
    start = overview.index(lines[0])
    assert overview[start : start + len(lines) + 1] == [*lines, ""]


@pytest.mark.integration
def test_a_configuration_is_shown_and_nothing_runs(say, tmp_path):
    import yaml

    shown = yaml.safe_load(say("--cfg", "job", "model=cnn", "passes=prune+quant", "passes.prune.sparsity=0.7").out)
    assert shown["model"]["family"] == "SimpleCNN"
    assert list(shown["passes"]) == ["prune", "quant"] and shown["passes"]["prune"]["sparsity"] == 0.7
    both = list(yaml.safe_load_all(say("-m", "--cfg=job", "seed=3,4").out))
    assert [job["seed"] for job in both] == [3, 4]
    assert yaml.safe_load(say("train", "--cfg", "job", "train.epochs=3").out)["train"]["epochs"] == 3
    assert list(tmp_path.iterdir()) == []
