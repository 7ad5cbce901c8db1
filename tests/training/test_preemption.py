import os
import signal
import subprocess
import sys

import pytest

from abs_model.training.preemption import graceful_exit


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag_and_nothing_else(number):
    with graceful_exit() as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
        assert stop.signal_name == number.name
        send(signal.SIGTERM)
        assert stop.signal_name == number.name


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_after_the_first_signal_raises(first):
    with pytest.raises(KeyboardInterrupt), graceful_exit():
        send(first)
        send(signal.SIGINT)


@pytest.mark.parametrize("fail", [False, True])
def test_the_handlers_before_are_put_back(fail):
    received = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, lambda *_: received.append("outer"))
    try:
        try:
            with graceful_exit():
                if fail:
                    raise RuntimeError
        except RuntimeError:
            assert fail
        send(signal.SIGTERM)
        assert received == ["outer"]
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_terminated_process_finishes_its_step_and_exits_cleanly():
    code = """
import time
from abs_model.training.preemption import graceful_exit
with graceful_exit() as stop:
    print("ready", flush=True)
    steps = 0
    while not stop.requested:
        time.sleep(0.05)
        steps += 1
print("saved", steps)
"""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out.startswith("saved ")
    assert "SIGTERM: stopping" in err
