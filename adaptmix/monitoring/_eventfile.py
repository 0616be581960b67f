"""One TensorBoard event file, written at once: no queue, and no thread that could end early."""

from __future__ import annotations

import itertools
import os
import socket
import time
from typing import Any

from adaptmix.monitoring._records import record

_numbers = itertools.count()


class EventFile:
    """Appends events to a new file in a directory, on any file system that TensorBoard knows.

    Args:
        folder: the directory; it is made as needed.
        step: earlier events of the directory at this step and later ones are void.
    """

    def __init__(self, folder: str, *, step: int) -> None:
        # TensorBoard is imported when it is used.
        from tensorboard.compat import tf
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        tf.io.gfile.makedirs(folder)
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        path = os.path.join(folder, f"events.out.tfevents.adaptmix.{name}")  # noqa: PTH118 (URLs)
        self.log_dir = folder
        self._event = Event
        self._file = tf.io.gfile.GFile(path, "wb")
        self._write(step=step, file_version="brain.Event:2")
        self._write(step=step, session_log=SessionLog(status=SessionLog.START))

    def add_summary(self, summary: Any, step: int) -> None:
        """Write a summary."""
        self._write(step=step, summary=summary)

    def add_text(self, tag: str, text: str, step: int | None = None) -> None:
        """Write a text in Markdown."""
        from torch.utils.tensorboard.summary import text as text_summary

        self.add_summary(text_summary(tag, text), step or 0)

    def flush(self) -> None:
        """Bring what was written to the disk."""
        self._file.flush()

    def _write(self, **content: Any) -> None:
        event = self._event(wall_time=time.time(), **content)
        self._file.write(record(event.SerializeToString()))
