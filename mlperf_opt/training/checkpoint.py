"""Training state in a file: weights, optimizer slots, and how far it got. Safetensors, no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mlperf_opt.artifacts import load_arrays, load_metadata, save_arrays
from mlperf_opt.errors import ArtifactError
from mlperf_opt.training.optimizers import Slots

Array = NDArray[Any]
_MEMORY = "memory/"


@dataclass
class TrainState:
    """What training changes. Batch order and augmentation depend on (seed, epoch) alone, so no generator is kept.

    Attributes:
        weights: float32 master copy of each trained weight.
        slots: the optimizer's memory of each.
        epoch: epochs done.
        step: optimizer steps done.
        history: mean training loss of each epoch.
        rows: what was observed after each epoch.
        identity: hash of what is trained, on what and how; a checkpoint of something else is refused.
        memory: what the projection knows (see `Projection.refresh`).
    """

    weights: dict[str, Array]
    slots: dict[str, Slots]
    epoch: int
    step: int
    history: list[float]
    rows: list[dict[str, Any]]
    identity: str
    memory: dict[str, Array] = field(default_factory=dict)


def save_checkpoint(path: Path, state: TrainState) -> None:
    """Write ``state`` to ``path`` (temporary name, then renamed). Raises `ArtifactError`."""
    arrays = {f"weight/{name}": array for name, array in state.weights.items()}
    for name, slots in state.slots.items():
        arrays |= {f"slot/{slot}/{name}": array for slot, array in slots.items()}
    arrays |= {f"{_MEMORY}{name}": array for name, array in state.memory.items()}
    progress = {"epoch": state.epoch, "step": state.step, "history": state.history, "rows": state.rows}
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
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is a damaged checkpoint ({error})") from None


def _digest(arrays: Mapping[str, Array], progress: str) -> str:
    digest = hashlib.sha256(progress.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
