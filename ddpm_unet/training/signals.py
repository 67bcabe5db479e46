"""SIGTERM and Ctrl-C as a request that the loop reads between two steps."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 2.0
"""A launcher forwards to its processes what the terminal sent them already."""


class StopRequest:
    """Within, the first SIGTERM or Ctrl-C sets `received`; a later one acts as usual."""

    received: int = 0

    def __enter__(self) -> StopRequest:
        self._before: dict[int, Any] = {s: signal.signal(s, self._receive) for s in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._first = number, time.monotonic()
        elif time.monotonic() - self._first > ECHO_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
