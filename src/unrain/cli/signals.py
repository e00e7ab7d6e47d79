"""What a command does when it is asked to end."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def terminable(end: Callable[[], object]) -> Iterator[None]:
    """Let SIGTERM end a command in its own way, unless whoever runs this has other plans with it.

    Args:
        end: Called at SIGTERM. If it raises, so does what the main thread is doing.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: end())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
