"""DigitMLP: fully connected layers with relu between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlperf_opt.graph import Graph, GraphBuilder
from mlperf_opt.networks.initial import he_uniform, zeros
from mlperf_opt.settings import require


@dataclass(frozen=True)
class DigitMLP:
    """Layers of ``sizes`` units, the first being the pixels, the last the classes.

    64-32-10 has 2,410 parameters and does 4,736 FLOPs a sample; 784-300-100-10 is LeNet-300-100 (LeCun et al., 1998).
    """

    image: tuple[int, int, int] = (1, 8, 8)
    sizes: tuple[int, ...] = (64, 32, 10)

    def __post_init__(self) -> None:
        require(min(self.image) >= 1, "image", self.image, "three whole numbers >= 1")
        layers = all(units >= 1 for units in self.sizes) and len(self.sizes) > 1
        require(layers, "sizes", self.sizes, "two or more whole numbers >= 1")
        pixels = math.prod(self.image)
        fits = self.sizes[:1] == (pixels,)
        require(fits, "sizes", self.sizes, f"a first size of {pixels}, the pixels of image={self.image}")

    def build(self, name: str, rng: np.random.Generator) -> Graph:
        """Return the initialised graph: x (N, *image) -> logits (N, sizes[-1])."""
        build = GraphBuilder(name)
        x = build.input("x", ("N", *self.image), "float32")
        x = build.node("flatten", "flatten", x)
        layers = len(self.sizes) - 1
        for layer in range(1, layers + 1):
            fan_in, units = self.sizes[layer - 1 : layer + 1]
            x = build.node("linear", f"fc{layer}", x, weight=he_uniform(rng, (units, fan_in)), bias=zeros(units))
            if layer < layers:
                x = build.node("relu", f"relu{layer}", x)
        return build.finish(x)
