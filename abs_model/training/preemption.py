"""Stopping a run at the next safe point after a signal."""

import contextlib
import logging
import signal
import types
from collections.abc import Iterator
from typing import Any

_LOGGER = logging.getLogger(__name__)


class StopRequest:
    """Whether a signal has told the run to stop.

    Attributes:
        requested: True once SIGTERM or SIGINT has arrived.
        signal_name: The name of the first one, e.g. "SIGTERM"; "" while none has.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal_name = ""

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested = True
            self.signal_name = signal.Signals(number).name
            _LOGGER.warning(
                "%s: stopping at the next safe point, with a checkpoint (Ctrl-C to stop at once)",
                self.signal_name,
            )


@contextlib.contextmanager
def graceful_exit() -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGINT into a flag that a loop reads between its steps.

    The first signal only sets the flag. After it a SIGINT raises KeyboardInterrupt, for someone
    who won't wait; a further SIGTERM changes nothing, since schedulers may send several. The
    handlers that were there before are put back on leaving, also after an exception.

    Example::

        with graceful_exit() as stop:
            for epoch in range(epochs):
                if stop.requested:
                    break

    Yields:
        The `StopRequest` whose `requested` to read.

    Raises:
        ValueError: Called outside the main thread, where Python allows no signal handlers.
    """
    stop = StopRequest()
    previous: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, stop._receive)
        yield stop
    finally:
        for number, handler in previous.items():
            # None: the handler was not installed from Python, and can't be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
