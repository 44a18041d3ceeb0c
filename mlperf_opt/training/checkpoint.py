"""Training state in a file: weights, optimizer slots, and how far it got. Safetensors, no pickle."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mlperf_opt.artifacts import load_arrays, load_metadata, save_arrays
from mlperf_opt.errors import ArtifactError
from mlperf_opt.training.interrupts import held_interrupts
from mlperf_opt.training.optimizers import Slots

Array = NDArray[Any]
_MEMORY = "memory/"


@dataclass
class TrainState:
    """What training changes. Batch order and augmentation depend on (seed, epoch) alone, so no generator is kept.

    It is whole between any two steps: from there training goes on to the same bits.

    Attributes:
        weights: float32 master copy of each trained weight.
        slots: the optimizer's memory of each.
        epoch: epochs done.
        step: optimizer steps done.
        history: mean training loss of each epoch.
        rows: what was observed after each epoch.
        identity: hash of what is trained, on what and how; a checkpoint of something else is refused.
        memory: what the projection knows (see `Projection.refresh`).
        loss_sum, hits, counted: of the samples of the epoch that was begun: the sum of their losses, targets predicted, and
            targets that count.
    """

    weights: dict[str, Array]
    slots: dict[str, Slots]
    epoch: int
    step: int
    history: list[float]
    rows: list[dict[str, Any]]
    identity: str
    memory: dict[str, Array] = field(default_factory=dict)
    loss_sum: float = 0.0
    hits: int = 0
    counted: int = 0

    def end_epoch(self, loss: float, row: dict[str, Any] | None) -> None:
        """Note an epoch whose steps are all done."""
        self.epoch += 1
        self.history.append(loss)
        self.rows += [] if row is None else [row]
        self.loss_sum, self.hits, self.counted = 0.0, 0, 0


class Keeper:
    """Writes checkpoints of a state: those that are due, one at the end, and one where training is interrupted.

    Args:
        path: of the file; None for none.
        seconds: from one to the next at the least.
        state: what is kept.
    """

    def __init__(self, path: Path | None, seconds: float, state: TrainState) -> None:
        self._path, self._seconds, self._state = path, seconds, state
        self._saved, self._whole = time.perf_counter(), True

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is KeyboardInterrupt and self._whole:
            with suppress(ArtifactError):  # the interrupt is what is told; whoever tells it looks for the file
                self._save()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Within the block the state isn't whole: Ctrl-C waits for its end; after a second one nothing more is written."""
        with held_interrupts():
            self._whole = False
            yield
            self._whole = True

    def keep(self, last: bool = False) -> None:
        """Write what is due. Raises `ArtifactError`."""
        if last or time.perf_counter() - self._saved >= self._seconds:
            self._save()

    def _save(self) -> None:
        if self._path is not None:
            save_checkpoint(self._path, self._state)
            self._saved = time.perf_counter()


def save_checkpoint(path: Path, state: TrainState) -> None:
    """Write ``state`` to ``path`` (temporary name, then renamed). Raises `ArtifactError`."""
    arrays = {f"weight/{name}": array for name, array in state.weights.items()}
    for name, slots in state.slots.items():
        arrays |= {f"slot/{slot}/{name}": array for slot, array in slots.items()}
    arrays |= {f"{_MEMORY}{name}": array for name, array in state.memory.items()}
    progress = {"epoch": state.epoch, "step": state.step, "history": state.history, "rows": state.rows}
    progress |= {"loss_sum": state.loss_sum, "hits": state.hits, "counted": state.counted}
    text = json.dumps(progress)
    digest = _digest(arrays, text)
    save_arrays(path, arrays, {"identity": state.identity, "progress": text, "sha256": digest})


def load_checkpoint(path: Path, fresh: TrainState) -> TrainState:
    """Return the state in ``path``, which must have been saved by the same training as ``fresh`` belongs to.

    Raises:
        ArtifactError: the file is damaged, or is a checkpoint of another training.
    """
    metadata, stored = load_metadata(path), load_arrays(path)
    if metadata.get("identity") != fresh.identity:
        raise ArtifactError(f"{path} is no checkpoint of this training: model, data, settings or seed differ; remove it")
    if metadata.get("sha256") != _digest(stored, metadata.get("progress", "")):
        raise ArtifactError(f"{path} is a damaged checkpoint (its content has another SHA-256 than it says); remove it")
    try:
        progress = json.loads(metadata["progress"])
        return TrainState(
            weights={name: stored[f"weight/{name}"].copy() for name in fresh.weights},
            slots={
                name: {slot: stored[f"slot/{slot}/{name}"].copy() for slot in slots} for name, slots in fresh.slots.items()
            },
            epoch=int(progress["epoch"]),
            step=int(progress["step"]),
            history=[float(loss) for loss in progress["history"]],
            rows=[dict(row) for row in progress["rows"]],
            identity=fresh.identity,
            memory={name[len(_MEMORY) :]: array.copy() for name, array in stored.items() if name.startswith(_MEMORY)},
            loss_sum=float(progress.get("loss_sum", 0.0)),  # older files lie between two epochs
            hits=int(progress.get("hits", 0)),
            counted=int(progress.get("counted", 0)),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is a damaged checkpoint ({error})") from None


def _digest(arrays: Mapping[str, Array], progress: str) -> str:
    digest = hashlib.sha256(progress.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
