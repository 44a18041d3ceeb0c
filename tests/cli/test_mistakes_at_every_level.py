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
    "model=MLP": "model=MLP: no such model (one of: cnn, lenet300, lenet5, mlp, transformer)",
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
    "measure.batch=0": "expected a whole number >= 1",
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
    "--cfg hydra": "expected --cfg job",
    "--cfg job seed=-1": "expected a whole number",
    "--cfg job modle=x": "did you mean 'model'",
    "--config-dir": "needs a value",
    "--config-dir nowhere": "no such folder",
    "--config-dir=nowhere": "no such folder",
    "help nope": "no such topic",
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
    "-m passes.prune.sparsity=0.5 hydra.sweep.dirr=x": "hydra.sweep.dirr: no such setting of Hydra",
    # Hydra's own settings
    "hydra.run.dirr=x": "hydra.run.dirr: no such setting of Hydra",
    "hydra/launcher=jobli": "no such hydra/launcher",
    "hydra=null": "must be a string",
    "-m hydra/sweeper=basic seed=-1": "expected a whole number",
    "-m hydra/sweeper=other seed=1,2": "no such hydra/sweeper",
    "hydra.mode=foo": "hydra.mode",
    "hydra.run.dir=${foo}": "foo",
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
    "train save=x.txt": "ends in .safetensors",
    "train data=mnist": "MLPERF_OPT_DATA",
    "train model=mlp data=reverse": "but data=reverse gives",
    "train model.weights=nowhere": "cannot read nowhere",
    "compare": "expected two",
    "compare a": "expected two",
    "compare a b c": "unrecognized arguments: c",
    "compare a b --fail-on": "--fail-on",
}


@pytest.mark.integration
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(line, assert_refused):
    words = ["a b=1"] if line == "a b=1" else line.split()
    assert_refused(words, MISTAKES[line])


@pytest.mark.integration
def test_the_first_word_decides_what_is_explained(say):
    assert "magnitude pruning" in say("help", "prune").out
    assert say("help", "train").out == say("train", "--help").out
    assert say("help", "compare").out == say("compare", "a", "b", "--help").out
    assert "quality_delta<-0.01" in say("help", "compare").out
    for words in (["--help"], ["help"], ["help", "help"], [], ["passes=[quant,prun]", "-h"], ["modle=x", "--help"]):
        answer = say(*words)
        assert answer.status == 0 and answer.out.startswith("usage: mlperf-opt"), words


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
