"""An interrupt that comes while an object is destroyed is raised by the next check."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import os, signal
from simspine_jax import interrupts

class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

interrupts.remember()
interrupts.check()
thing = Destroyed()
del thing
print("lost", flush=True)
try:
    interrupts.check()
except KeyboardInterrupt:
    print("found", flush=True)
interrupts.check()
"""


def test_a_lost_interrupt_is_found() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.stdout.split() == ["lost", "found"]
    assert done.returncode == 0
    assert "KeyboardInterrupt" in done.stderr  # Python's word about what it ignores
