"""Ctrl-C while something changes in place: it waits for a moment at which everything is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Hold back the first Ctrl-C within the block, which should be short: `KeyboardInterrupt` is raised behind it.

    It is raised at once at a second Ctrl-C, and instead of an error that leaves the block. Outside of the main thread, and
    where a program has a handler of its own, nothing is held back.
    """
    healthy = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not healthy:
        yield
        return
    came = False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            healthy(number, frame)
        came = True

    try:
        signal.signal(signal.SIGINT, hold)
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, healthy)
    if came:
        raise KeyboardInterrupt
