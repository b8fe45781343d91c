"""Ending with one's parent, however that came to its end.

The parent holds the write end of a pipe that is the child's standard input. When it ends, so does the child: in order,
where it has said how, and within seconds in any case.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

GRACE_SECONDS: Final = 4.0
"""How long the child may take to end in order."""
_STDIN: Final = 0


class Lifeline:
    """Watches standard input from a thread of its own: also a child that is stuck in a computation ends.

    :param supervised: this is one of several worker processes, whose number is another's to keep.
    """

    def __init__(self, *, supervised: bool = False) -> None:
        self.supervised = supervised
        self._lock = threading.Lock()
        self._lost = False
        self._on_loss: Callable[[], None] | None = None
        threading.Thread(target=self._watch, name="deltafan-lifeline", daemon=True).start()

    def on_loss(self, action: Callable[[], None]) -> None:
        """What to do when the parent is gone; called in the lifeline's thread. Until it is given the end is abrupt."""
        with self._lock:
            self._on_loss = action
            if self._lost:
                action()

    def _watch(self) -> None:
        while os.read(_STDIN, 4096):
            continue
        with self._lock:
            self._lost = True
            orderly = self._on_loss is not None
            if self._on_loss is not None:
                self._on_loss()
        if orderly:
            threading.Event().wait(GRACE_SECONDS)
        os._exit(1)
