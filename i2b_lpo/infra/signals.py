"""Ctrl-C and SIGTERM end a run after its current step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupted", "Signals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run that a signal ended, with nothing lost; the message says how to continue it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Signals:
    """Within the block the first signal is only recorded; the second stops at once.

    Only a main thread can do this; elsewhere signals are handled as before. A signal that this
    process ignores, as a background job ignores Ctrl-C, stays ignored.

    Attributes:
        received: number of the recorded signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            heard = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
            self._before = {s: signal.signal(s, self._note) for s in heard}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise Interrupted("Stopped in the middle of a step.", number)
        self.received = number
        # Not print: the signal may have interrupted a print.
        os.write(2, b"\nStopping after this step; once more stops at once.\n")
