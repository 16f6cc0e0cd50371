"""Ctrl-C while libraries are loaded that cannot be interrupted."""

from __future__ import annotations

import signal
import threading


def load_torch() -> None:
    """Import torch; meanwhile Ctrl-C ends the process as it does programs that do not care.

    An error of Python that comes up within the C++ of torch makes it abort, with a message of its
    own. To be called before anything is begun that would have to be tidied up.
    """
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        import torch  # noqa: F401
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
