"""Kernels of the compiled runtime: the machine that runs a program, and what its instructions do.

    machine.py      runs a program; `instruction.py` is how a kernel reads its operands
    product.py      linear and conv2d on the micro-kernels of `tiles.py`, or of `amx.py` on tiles
    images.py  elementwise.py  attention.py
    simd.py         16 lanes for kernels, made of the LLVM instructions of `emit.py`; `jit.py` compiles and caches

Importing a kernel compiles it, or loads it from the cache, so this file imports none.
"""
