"""Several processes of one machine, which find each other over the loopback interface.

The tests use it, too.
"""

import contextlib
import socket
import subprocess
from collections.abc import Iterator


def free_address() -> str:
    """HOST:PORT for the coordinator of processes, with a port that nobody listens at now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def killed_at_the_end(started: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Kills what is left of the processes when the context ends, and waits for them."""
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
