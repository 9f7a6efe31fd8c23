"""A child that ends when its parent is gone, however that went.

The parent holds the other end of its standard input, writes nothing to it, and never lets go while it
lives: a pipe ends by whatever ends a process, `kill -9` too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def end_with_parent() -> None:
    """Have this process end in good order, as by SIGTERM, when its standard input does."""
    threading.Thread(target=_wait, args=(sys.stdin.fileno(),), daemon=True).start()


def _wait(parent: int) -> None:
    while os.read(parent, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
