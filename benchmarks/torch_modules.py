"""PyTorch modules with the weights of our graphs: eager, as its users write them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from mlperf_opt.graph import Graph

Array = NDArray[Any]


def module_of(graph: Graph) -> nn.Module:
    """Return the module of a classifier (a sequence of layers) or of a transformer."""
    if any(node.op == "attention" for node in graph.nodes):
        return Transformer(graph).eval()
    return nn.Sequential(*(_layer(graph, node.output) for node in graph.nodes)).eval()


def quantized(module: nn.Module, calibration: Array) -> nn.Module:
    """Return the module in static int8, a scale per channel, by PyTorch's eager mode: fused, calibrated, converted."""
    from torch.ao import quantization

    torch.backends.quantized.engine = "x86"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode is deprecated in favour of a package of its own
        if isinstance(module, nn.Sequential):
            pairs = [[str(i), str(i + 1)] for i in range(len(module) - 1) if _is_fusible(module[i], module[i + 1])]
            module = quantization.QuantWrapper(quantization.fuse_modules(module, pairs))
        elif isinstance(module, Transformer):
            module.add_stubs()
        module.eval()
        module.qconfig = quantization.get_default_qconfig("x86")
        for part in module.modules():  # tables and norms stay float32
            if isinstance(part, nn.Embedding | nn.LayerNorm):
                part.qconfig = None
        prepared = quantization.prepare(module)
        with torch.inference_mode():
            prepared(torch.from_numpy(calibration))
        return quantization.convert(prepared)


def _is_fusible(first: nn.Module, second: nn.Module) -> bool:
    return isinstance(first, nn.Linear | nn.Conv2d) and isinstance(second, nn.ReLU)


def _tensor(graph: Graph, name: str) -> torch.Tensor:
    return torch.from_numpy(graph.weights[name].dense().copy())


def _linear(graph: Graph, name: str) -> nn.Linear:
    weight = _tensor(graph, f"{name}.weight")
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight, _tensor(graph, f"{name}.bias")
    return layer


def _norm(graph: Graph, name: str) -> nn.LayerNorm:
    gamma = _tensor(graph, f"{name}.gamma")
    layer = nn.LayerNorm(len(gamma), eps=float(graph.node(name).attributes["eps"]))
    layer.weight.data, layer.bias.data = gamma, _tensor(graph, f"{name}.beta")
    return layer


def _layer(graph: Graph, name: str) -> nn.Module:
    node = graph.node(name)
    if node.op == "linear":
        return _linear(graph, name)
    if node.op == "conv2d":
        weight = _tensor(graph, f"{name}.weight")
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], padding=int(node.attributes["padding"]))
        layer.weight.data, layer.bias.data = weight, _tensor(graph, f"{name}.bias")
        return layer
    if node.op == "max_pool2d":
        return nn.MaxPool2d(int(node.attributes["size"]), int(node.attributes["stride"]))
    return {"flatten": nn.Flatten, "relu": nn.ReLU}[node.op]()


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, graph: Graph, name: str) -> None:
        super().__init__()
        self.heads = int(graph.node(f"{name}.attention").attributes["heads"])
        self.norm1, self.norm2 = _norm(graph, f"{name}.norm1"), _norm(graph, f"{name}.norm2")
        self.query, self.key, self.value = (_linear(graph, f"{name}.{part}") for part in ("query", "key", "value"))
        self.project, self.up, self.down = (_linear(graph, f"{name}.{part}") for part in ("project", "up", "down"))
        # in int8, what goes into linear layers and out of them
        self.codes: nn.ModuleList | None = None
        self.real: nn.Module | None = None

    def forward(self, x: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor] | None, start: int) -> torch.Tensor:
        rows, time, width = x.shape
        y = self._codes(0, self.norm1(x))
        q, k, v = (
            self._real(layer(y)).view(rows, time, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if cache is not None:
            keys, values = cache
            keys[:, :, start : start + time], values[:, :, start : start + time] = k, v
            k, v = keys[:, :, : start + time], values[:, :, : start + time]
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=time > 1)
        y = y.transpose(1, 2).reshape(rows, time, width)
        x = x + self._real(self.project(self._codes(1, y)))
        y = functional.gelu(self._real(self.up(self._codes(2, self.norm2(x)))), approximate="tanh")
        return x + self._real(self.down(self._codes(3, y)))

    def _codes(self, which: int, x: torch.Tensor) -> torch.Tensor:
        return x if self.codes is None else self.codes[which](x)

    def _real(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.real is None else self.real(x)


class Transformer(nn.Module):
    """The graph of `MinimalTransformer`, whole or a token at a time on caches that are allocated once."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(_tensor(graph, "embed.table"))
        self.positions = nn.Embedding.from_pretrained(_tensor(graph, "positions.table"))
        layers = sum(node.op == "attention" for node in graph.nodes)
        self.blocks = nn.ModuleList(Block(graph, f"layer{layer}") for layer in range(1, layers + 1))
        self.norm, self.logits = _norm(graph, "norm"), _linear(graph, "logits")
        self.codes: nn.Module | None = None
        self.real: nn.Module | None = None

    def add_stubs(self) -> None:
        """Mark where int8 begins and ends: around linear layers. Norms, gelu and attention stay float32."""
        from torch.ao.quantization import DeQuantStub, QuantStub

        self.codes, self.real = QuantStub(), DeQuantStub()
        for block in self.blocks:
            block.codes, block.real = nn.ModuleList(QuantStub() for _ in range(4)), DeQuantStub()

    def caches(self, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of every layer, for one sequence: (1, heads, length, width)."""
        width = self.norm.normalized_shape[0]
        heads = [block.heads for block in self.blocks]
        return [(torch.zeros(1, h, length, width // h), torch.zeros(1, h, length, width // h)) for h in heads]

    def forward(self, tokens: torch.Tensor, caches: Any = None, start: int = 0) -> torch.Tensor:
        x = self.embed(tokens) + self.positions.weight[start : start + tokens.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[i], start)
        y = self.norm(x)
        y = self.logits(y if self.codes is None else self.codes(y))
        return y if self.real is None else self.real(y)
