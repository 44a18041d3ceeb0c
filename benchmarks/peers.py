"""Who is compared: each is a function that binds a batch and returns the call that is timed.

What is timed is the call that a user of the library writes, from a numpy array (a tensor for PyTorch) to the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from cases import Model
from numpy.typing import NDArray

from mlperf_opt.graph import Graph
from mlperf_opt.onnx_export import export
from mlperf_opt.runtimes import RUNTIMES, RuntimeOptions

Array = NDArray[Any]
Bind = Callable[[Array], Callable[[], Any]]  # a batch -> the call


def ours(graph: Graph, threads: int, runtime: str) -> Bind:
    """A runtime of ours."""
    executable = RUNTIMES[runtime].configured(RuntimeOptions(threads)).prepare(graph)
    return lambda x: lambda: executable(x)


def onnxruntime(graph: Graph, threads: int) -> Bind:
    """onnxruntime on our export. Its session directly: our own runtime=onnx adds checks to a call."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = ort.InferenceSession(export(graph), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def bind(x: Array) -> Callable[[], Any]:
        feeds = {given.name: x}
        return lambda: session.run(None, feeds)[0]

    return bind


def pytorch(model: Model, threads: int, *, int8: bool) -> Bind:
    """PyTorch, eager, on the same weights."""
    import torch
    import torch_modules

    torch.set_num_threads(threads)
    module = torch_modules.module_of(model.graph)
    if int8:
        module = torch_modules.quantized(module, model.calibration)
    torch.set_grad_enabled(False)

    def bind(x: Array) -> Callable[[], Any]:
        given = torch.from_numpy(x)

        def call() -> Any:
            with torch.inference_mode():
                return module(given)

        return call

    return bind


SUBJECTS: dict[str, Callable[[Model, int], Bind]] = {
    "ours": lambda model, threads: ours(model.graph, threads, "compiled"),
    "ours int8": lambda model, threads: ours(model.int8, threads, "compiled"),
    "numpy": lambda model, threads: ours(model.graph, threads, "numpy"),
    "onnxruntime": lambda model, threads: onnxruntime(model.graph, threads),
    "onnxruntime int8": lambda model, threads: onnxruntime(model.int8, threads),
    "torch": lambda model, threads: pytorch(model, threads, int8=False),
    "torch int8": lambda model, threads: pytorch(model, threads, int8=True),
}
# (whose option --peers it is, the one that is to be faster, the other)
PAIRS = (
    ("ours", "ours int8", "ours"),
    ("numpy", "ours", "numpy"),
    ("onnxruntime", "ours", "onnxruntime"),
    ("torch", "ours", "torch"),
    ("onnxruntime", "ours int8", "onnxruntime int8"),
    ("torch", "ours int8", "torch int8"),
)
# who can be compared, and the modules that it takes
_NEEDS = {"ours": (), "numpy": ("numpy",), "onnxruntime": ("onnx", "onnxruntime"), "torch": ("torch",)}
PEERS = tuple(_NEEDS)


def installed() -> tuple[str, ...]:
    """The peers that can be compared here."""
    return tuple(peer for peer, needs in _NEEDS.items() if all(find_spec(name) is not None for name in needs))
