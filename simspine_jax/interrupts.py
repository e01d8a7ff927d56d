"""Ctrl-C that isn't lost.

Python drops an exception that a signal's handler raises while an object is being destroyed or a callback of
C++ code runs, and compiling does both by the thousand: the program would go on to its end. So the handler
remembers, and long work asks with each step whether there was an interrupt that did not arrive.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_pending: list[int] = []


def remember() -> None:
    """Takes over SIGINT for this process; only the main thread can."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del frame
    _pending.append(number)
    raise KeyboardInterrupt


def check() -> None:
    """Raises what was lost.

    Raises:
        KeyboardInterrupt: there was an interrupt.
    """
    if _pending:
        _pending.clear()
        raise KeyboardInterrupt
