"""SimpleCNN: convolution, relu and max-pooling blocks, then linear layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlperf_opt.graph import Graph, GraphBuilder
from mlperf_opt.networks.initial import he_uniform, zeros
from mlperf_opt.settings import require


@dataclass(frozen=True)
class SimpleCNN:
    """A block per entry of ``channels``: convolution, relu, 2x2 max-pooling; then ``hidden`` linear layers and the classes.

    1x8x8, channels 4 and 8, kernel 3 with padding 1 has 666 parameters and does 14,464 FLOPs a sample; 1x28x28, channels 20
    and 50, kernel 5 without padding, hidden 500 is the LeNet-5 of Caffe.
    """

    image: tuple[int, int, int] = (1, 8, 8)
    channels: tuple[int, ...] = (4, 8)
    kernel: int = 3
    padding: int = 1
    hidden: tuple[int, ...] = ()
    classes: int = 10

    def __post_init__(self) -> None:
        require(min(self.image) >= 1, "image", self.image, "three whole numbers >= 1")
        require(bool(self.channels) and min(self.channels) >= 1, "channels", self.channels, "whole numbers >= 1")
        require(self.kernel >= 1, "kernel", self.kernel, "a whole number >= 1")
        require(0 <= self.padding < self.kernel, "padding", self.padding, f"0 to {self.kernel - 1}, less than the kernel")
        require(all(units >= 1 for units in self.hidden), "hidden", self.hidden, "whole numbers >= 1")
        require(self.classes >= 2, "classes", self.classes, "at least 2")

    def build(self, name: str, rng: np.random.Generator) -> Graph:
        """Return the initialised graph: x (N, *image) -> logits (N, classes)."""
        build = GraphBuilder(name)
        x = build.input("x", ("N", *self.image), "float32")
        depth, height, width = self.image
        for block, channels in enumerate(self.channels, start=1):
            weight = he_uniform(rng, (channels, depth, self.kernel, self.kernel))
            x = build.node("conv2d", f"conv{block}", x, weight=weight, bias=zeros(channels), stride=1, padding=self.padding)
            x = build.node("relu", f"relu{block}", x)
            x = build.node("max_pool2d", f"pool{block}", x, size=2, stride=2)
            depth = channels
            height, width = ((side + 2 * self.padding - self.kernel + 1) // 2 for side in (height, width))
            require(min(height, width) >= 1, "image", self.image, f"more pixels: block {block} has none left")
        x = build.node("flatten", "flatten", x)
        units = depth * height * width
        for layer, wanted in enumerate((*self.hidden, self.classes), start=1):
            x = build.node("linear", f"fc{layer}", x, weight=he_uniform(rng, (wanted, units)), bias=zeros(wanted))
            if layer <= len(self.hidden):
                x = build.node("relu", f"relu_fc{layer}", x)
            units = wanted
        return build.finish(x)
