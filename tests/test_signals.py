"""Stopping: one signal asks, a second one does not wait."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxgpt.signals import STOPS, stop_on_signal

WAIT = """
import signal, time
from jaxgpt.signals import stop_on_signal
with stop_on_signal() as stop:
    print("ready", flush=True)
    while not stop.requested(0):
        time.sleep(0.01)
    print(stop.reason, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", STOPS)
def test_the_first_signal_asks_and_then_the_handlers_are_the_old_ones(number):
    before = signal.getsignal(number)
    with stop_on_signal() as stop:
        assert not stop.requested(1) and stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.requested(2) and stop.reason == number.name
    assert signal.getsignal(number) is before


def test_what_the_process_was_begun_to_ignore_stays_ignored():
    """As nohup does with SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested(1)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_warning_is_not_urgent_however_often_it_comes():
    """Nor is the first SIGTERM behind it: time to save is what it was for."""
    with stop_on_signal() as stop:
        for number in (*[one for one in STOPS if one not in (signal.SIGINT, signal.SIGTERM)] * 2, signal.SIGTERM):
            os.kill(os.getpid(), number)
            time.sleep(0.05)  # the thread hears each
        assert stop.requested(1)


def test_a_system_that_lacks_some_signals_hears_the_others(monkeypatch):
    monkeypatch.setattr("jaxgpt.signals.STOPS", (signal.SIGINT, signal.SIGTERM))
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested(1)


def test_another_thread_than_the_main_one_hears_none():
    before = [signal.getsignal(number) for number in STOPS]

    def run() -> list[object]:
        with stop_on_signal() as stop:
            return [stop.requested(1), *(signal.getsignal(number) for number in STOPS)]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run).result() == [False, *before]


def test_handlers_are_the_old_ones_also_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), stop_on_signal():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(second):
    process = subprocess.Popen([sys.executable, "-c", WAIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    process.send_signal(second)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 128 + second
    assert "stopped at once; the last checkpoint is valid" in errors
