"""Signals as exceptions, and held back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from r2gen_export.system.interrupts import Terminated, interrupt_later, termination_raises


def test_ctrl_c_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupt_later():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("rest of the block")
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait():
    reached = False
    with pytest.raises(KeyboardInterrupt), interrupt_later():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert not reached


def test_without_ctrl_c_errors_pass():
    with pytest.raises(ValueError, match="mine"), interrupt_later():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_is_not_replaced_by_a_ctrl_c_that_was_held_back(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="mine"), interrupt_later("stopping soon"):
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capsys.readouterr().err == "stopping soon\n"


def test_other_threads_leave_signals_alone():
    seen = []

    def run() -> None:
        with interrupt_later():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_a_block_can_be_left_where_it_says():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupt_later() as raise_held:
        raise_held()
        os.kill(os.getpid(), signal.SIGINT)
        done.append("batch")
        raise_held()
        done.append("next batch")
    assert done == ["batch"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_a_process_waits_for_the_end_of_the_block_too(number: signal.Signals):
    done = []
    with termination_raises():
        with pytest.raises(Terminated) as caught, interrupt_later():
            os.kill(os.getpid(), number)
            done.append("rest of the block")
        assert caught.value.number == number
    assert done
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_forked_process_is_ended_by_the_signal():
    with termination_raises(), interrupt_later():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(7)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
