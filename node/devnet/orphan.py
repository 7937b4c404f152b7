"""A daemon of the devnet ends with the devnet, also where that was killed by SIGKILL.

Why the kernel: who is killed tells nobody. The death signal follows the thread that started the
daemon, which is the devnet's main one; elsewhere than on Linux a daemon stays and holds its home.
What this file does not know: what the daemon is.
"""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def end_with(parent: int) -> None:
    """SIGTERM to this process when `parent`, which has just started it, ends."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we had asked
        os.kill(os.getpid(), signal.SIGTERM)
