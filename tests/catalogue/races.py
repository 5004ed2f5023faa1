"""Several processes that do the same thing at the same moment, each with the catalogue it was forked with."""

from __future__ import annotations

import multiprocessing
import queue
import traceback
from collections.abc import Callable
from typing import Any

_fork = multiprocessing.get_context("fork")


def race(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(number, *arguments)` returned in each of `count` processes. An exception there fails here."""
    start = _fork.Barrier(count)
    answers: Any = _fork.Queue()
    racers = [_fork.Process(target=_run, args=(n, start, answers, function, arguments)) for n in range(count)]
    for racer in racers:
        racer.start()
    try:
        found = [answers.get(timeout=120) for _ in racers]
    except queue.Empty:
        raise AssertionError("a racer did not answer within two minutes") from None
    finally:
        for racer in racers:
            racer.join(10)
            if racer.is_alive():
                racer.kill()
    failed = [text for good, text in found if not good]
    assert not failed, "\n".join(failed)
    return [answer for _, answer in found]


def _run(number: int, start: Any, answers: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        start.wait(60)
        answers.put((True, function(number, *arguments)))
    except BaseException:
        answers.put((False, traceback.format_exc()))
