"""Ctrl-C at any step: the step is finished and kept, and training goes on from it to the same bits."""

import json
import signal
import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest

from mlperf_opt.artifacts import load_metadata, save_graph
from mlperf_opt.data import Dataset, Split, Stream
from mlperf_opt.errors import ArtifactError
from mlperf_opt.networks import MinimalTransformer, SimpleCNN
from mlperf_opt.training import TrainSettings, checkpoint, loop, train
from mlperf_opt.training.interrupts import held_interrupts
from mlperf_opt.training.projection import Free

TEXT = MinimalTransformer(vocabulary=7, context=8, layers=1, dim=8, heads=2, hidden=12, positions="rotary")
IMAGES = SimpleCNN(image=(1, 4, 4), channels=(2,), classes=3)
COMMON = TrainSettings(epochs=3, batch=6, lr=0.02, l1=0.001, clip=0.5)


def _stream():
    tokens = np.random.default_rng(2).integers(0, 7, 300)
    held_out = Split(tokens[:64].reshape(8, 8), tokens[1:65].reshape(8, 8))
    return Dataset("noise", "language", Stream(tokens.astype(np.uint16), 8), held_out, held_out)


def _rows():
    """Of uneven numbers of targets that count; the last batch of a pass is a smaller one."""
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 7, (20, 8))
    targets[np.arange(8) >= rng.integers(1, 8, 20)[:, None]] = -1
    split = Split(rng.integers(0, 7, (20, 8)), targets)
    return Dataset("uneven", "completion", split, split, split)


def _images():
    rng = np.random.default_rng(0)
    split = Split(rng.random((20, 1, 4, 4), np.float32), rng.integers(0, 3, 20))
    return Dataset("noise", "classification", split, split, split)


@dataclass(frozen=True)
class Moving:
    """The larger half of one matrix, chosen anew every three steps from what it was and what the weights are."""

    name: str
    every: int = 3
    identity: str = "moving"

    def refresh(self, shadow, memory, step, total):
        size = np.abs(shadow[self.name]) + 0.5 * memory.get("size", np.zeros_like(shadow[self.name]))
        return {"size": size, "mask": size >= np.median(size)}

    def project(self, shadow, memory):
        return {self.name: np.where(memory["mask"], shadow[self.name], np.float32(0))}


DROPPED = replace(COMMON, dropout=0.2, accumulate=3, optimizer="adamw", weight_decay=0.01)
CASES = {
    "stream": (TEXT, _stream, replace(DROPPED, steps=4), Moving("layer1.up.weight"), 2),
    "rows": (TEXT, _rows, DROPPED, Free(), 2),
    "images": (IMAGES, _images, replace(COMMON, shift=1, optimizer="sgd"), Moving("fc1.weight"), 1),
    "images in parts": (IMAGES, _images, replace(COMMON, shift=1, accumulate=2), Free(), 3),
}  # each has 4 steps an epoch


def _trained(case, folder, **arguments):
    """Train as another process would, everything made anew; return the bytes of the file, and what else is left."""
    network, data, settings, projection, threads = CASES[case]
    graph = network.build("net", np.random.default_rng(0))
    found = train(graph, data(), settings, seed=5, projection=projection, threads=threads, **arguments)
    arrays = {name: array.tobytes() for name, array in {**found.shadow, **found.memory}.items()}
    return save_graph(found.graph, folder / "net.safetensors").sha256, found.history, found.rows, arrays


def _row(report):
    return {"epoch": report.epoch, "loss": report.loss, "accuracy": report.accuracy}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What nobody interrupted leaves, by case."""
    return {case: _trained(case, tmp_path_factory.mktemp("straight"), observe=_row) for case in CASES}


@pytest.fixture
def interrupts(monkeypatch):
    """Return a function: Ctrl-C, so many times, in the middle of that step, when it is counted and no weight has moved."""

    def arm(last, times=1):
        def rate(step, *rest):
            for _ in range(times if step == last else 0):
                signal.raise_signal(signal.SIGINT)
            return healthy(step, *rest)

        monkeypatch.setattr(loop, "cosine", rate)

    healthy = loop.cosine
    return arm


def _steps(path):
    return json.loads(load_metadata(path)["progress"])["step"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stops", [(stop,) for stop in range(1, 13)] + [(1, 2, 3), (3, 4, 5, 9, 11)], ids=str)
def test_interrupted_in_the_middle_of_a_step(case, stops, straight, interrupts, tmp_path):
    path = tmp_path / "state.checkpoint"
    for stop in stops:
        interrupts(stop)
        with pytest.raises(KeyboardInterrupt):
            _trained(case, tmp_path, checkpoint=path, observe=_row)
        assert _steps(path) == stop, "its step was finished and kept"
    interrupts(None)
    steps = []
    assert _trained(case, tmp_path, checkpoint=path, observe=_row, stepped=lambda r: steps.append(r.step)) == straight[case]
    assert steps == list(range(stops[-1] + 1, 13)), "no step was done twice"


def test_another_order_would_be_noticed(straight, interrupts, monkeypatch, tmp_path):
    """Each of these trainings depends on which batches come behind the interrupt."""
    monkeypatch.setattr(loop, "islice", lambda batches, first, _last: list(batches)[: 4 - first])
    for case in CASES:
        path = tmp_path / f"{case}.checkpoint"
        interrupts(5)
        with pytest.raises(KeyboardInterrupt):
            _trained(case, tmp_path, checkpoint=path, observe=_row)
        interrupts(None)
        assert _trained(case, tmp_path, checkpoint=path, observe=_row)[0] != straight[case][0]


def test_a_second_one_is_raised_at_once_and_leaves_no_half_step(straight, interrupts, tmp_path):
    path = tmp_path / "state.checkpoint"
    interrupts(6, times=2)
    with pytest.raises(KeyboardInterrupt):
        _trained("images", tmp_path, checkpoint=path, checkpoint_seconds=0, observe=_row)
    assert _steps(path) == 5
    interrupts(None)
    assert _trained("images", tmp_path, checkpoint=path, observe=_row) == straight["images"]


def test_without_a_checkpoint_the_step_is_finished_too(interrupts, monkeypatch, tmp_path):
    interrupts(5)
    steps, healthy = [], loop._Training.step
    monkeypatch.setattr(loop._Training, "step", lambda *given: healthy(*given) or steps.append(given[1].step))
    with pytest.raises(KeyboardInterrupt):
        _trained("images", tmp_path)
    assert steps == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("where", ["observe", "progress", "stepped"])
@pytest.mark.parametrize("case", CASES)
def test_between_steps_it_is_raised_at_once_and_all_that_was_done_is_kept(case, where, straight, tmp_path):
    """A validation may take minutes: nobody waits for its end, and neither does a second Ctrl-C lose a step."""
    path, after = tmp_path / "state.checkpoint", []

    def stop(report):
        if report.epoch == 2:
            signal.raise_signal(signal.SIGINT)
            after.append("went on")
        return _row(report)

    def stop_step(report):
        if report.step == 8:
            signal.raise_signal(signal.SIGINT)
            after.append("went on")

    watching = {"observe": _row} | {where: stop_step if where == "stepped" else stop}
    with pytest.raises(KeyboardInterrupt):
        _trained(case, tmp_path, checkpoint=path, **watching)
    assert _steps(path) == 8 and not after
    assert _trained(case, tmp_path, checkpoint=path, observe=_row) == straight[case]


def test_the_loss_of_a_step_is_the_mean_of_its_epoch_so_far(straight, tmp_path):
    seen = []
    _trained("images", tmp_path, stepped=seen.append)
    assert [(report.step, report.steps) for report in seen] == [(step, 12) for step in range(1, 13)]
    assert tuple(report.loss for report in seen if report.step % 4 == 0) == straight["images"][1]
    assert all(0.3 < report.loss < 3 for report in seen)


def test_ctrl_c_is_raised_behind_the_block_at_the_latest():
    reached = []
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        signal.raise_signal(signal.SIGINT)
        reached.append(True)
    assert reached == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_does_not_swallow_it():
    """A sweep would go on with its next job."""
    with pytest.raises(KeyboardInterrupt) as interrupted, held_interrupts():
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("full")
    assert str(interrupted.value.__cause__) == "full"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(RuntimeError, match="full"), held_interrupts():
        raise RuntimeError("full")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_checkpoint_that_cannot_be_written_does_not_hide_it(interrupts, monkeypatch, tmp_path):
    interrupts(5)
    monkeypatch.setattr(checkpoint, "save_arrays", _full)
    with pytest.raises(KeyboardInterrupt):
        _trained("images", tmp_path, checkpoint=tmp_path / "state.checkpoint")


def _full(*_given):
    raise ArtifactError("No space left on device")


def test_a_handler_of_the_program_is_left_alone():
    seen = []
    signal.signal(signal.SIGINT, lambda number, _frame: seen.append(number))
    try:
        own = signal.getsignal(signal.SIGINT)
        with held_interrupts():
            signal.raise_signal(signal.SIGINT)
            assert seen == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_another_thread_trains_too(straight, tmp_path):
    """Only the main thread may set handlers."""
    found = []
    thread = threading.Thread(target=lambda: found.append(_trained("images", tmp_path, observe=_row)))
    thread.start()
    thread.join()
    assert found == [straight["images"]]
