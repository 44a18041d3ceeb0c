"""Kernels of the compiled runtime: arithmetic on addresses, without a word of graphs.

    cache.py        where compiled code is kept        jit.py      how it is compiled, and for which CPU
    emit.py         LLVM instructions on 16 lanes      simd.py     those that kernels call
    narrow.py       stores of float16 and of codes     tiles.py    micro-kernels of products, generated
    product.py      linear and conv2d on tiles.py      amx.py      the same on Intel's tile registers
    sparse.py       linear on pruned weights           lanes.py    gather, scatter, transposition
    elementwise.py  activations, norms, lookups, grids images.py   layouts of images, pooling
    attention.py    attention on whole sequences       kv_cache.py the cache: writing it, and attention on it
    opcodes.py      the kernels' numbers               machine.py  the loop that runs a program of all these

A kernel that has a number is compiled when a program first asks for it.
"""
