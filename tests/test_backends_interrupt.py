import signal
import threading

import pytest

from gradstep.backends.interrupt import deferred_interrupt


def test_ctrl_c_becomes_a_flag():
    with deferred_interrupt() as interrupt:
        assert not interrupt.pressed
        signal.raise_signal(signal.SIGINT)
        assert interrupt.pressed


def test_pythons_handler_is_back_afterwards():
    with pytest.raises(ZeroDivisionError), deferred_interrupt():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_programs_own_handler_is_left_alone():
    calls = []

    def handler(signum, frame):
        calls.append(signum)

    signal.signal(signal.SIGINT, handler)
    try:
        with deferred_interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert calls == [signal.SIGINT]
    assert not interrupt.pressed


def test_other_threads_change_no_handler():
    seen = []

    def run():
        with deferred_interrupt() as interrupt:
            seen.append((signal.getsignal(signal.SIGINT), interrupt.pressed))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(signal.default_int_handler, False)]
