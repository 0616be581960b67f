"""Where streams are read: in this process, or in processes that read ahead."""

from __future__ import annotations

import os
import signal
import sys
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
from torch._utils import ExceptionWrapper

from adaptmix.data._content import packed
from adaptmix.data._stream import Chunk, Place, Stream

# A domain's reader is as many chunks ahead as training had to wait for it, up to so many.
_AHEAD = 64


class Reader(Protocol):
    """Reads streams, each by its key."""

    def read(self, key: int) -> Chunk:
        """Return a stream's next chunk."""

    def seek(self, key: int, place: Place) -> None:
        """Go to a place in a stream."""


class ReadHere:
    """Reads streams in this process, when their rows are wanted.

    Args:
        streams: by key.
    """

    def __init__(self, streams: Mapping[int, Stream]) -> None:
        self._streams = streams

    def read(self, key: int) -> Chunk:
        """Return a stream's next chunk."""
        return self._streams[key].read()

    def seek(self, key: int, place: Place) -> None:
        """Go to a place in a stream."""
        self._streams[key].seek(place)


class ReadAhead:
    """Reads streams in processes of their own, each stream in one of them.

    Args:
        streams: by key.
        processes: how many, at most.
        context: of multiprocessing, in which they are started.
    """

    def __init__(self, streams: Mapping[int, Stream], *, processes: int, context: Any) -> None:
        keys = list(streams)
        count = min(processes, len(keys))
        groups = [{key: streams[key] for key in keys[place::count]} for place in range(count)]
        self._of = {}
        for group in groups:
            reader = _ReaderProcess(group, context)
            self._of.update(dict.fromkeys(group, reader))

    def read(self, key: int) -> Chunk:
        """Return a stream's next chunk; its rows are ``Packed``."""
        return self._of[key].read(key)

    def seek(self, key: int, place: Place) -> None:
        """Go to a place in a stream."""
        self._of[key].seek(key, place)


class _ReaderProcess:
    """A process that reads some streams, and what it has sent."""

    def __init__(self, streams: Mapping[int, Stream], context: Any) -> None:
        self._pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._pipe, streams), daemon=True)
        process.start()
        theirs.close()
        self._stop = weakref.finalize(self, _stop, os.getpid(), process, self._pipe)
        self._names = {key: stream.name for key, stream in streams.items()}
        self._came: dict[int, deque[Chunk | ExceptionWrapper]] = {key: deque() for key in streams}
        self._asked = dict.fromkeys(streams, 0)
        self._ahead = dict.fromkeys(streams, 1)
        self._turn = dict.fromkeys(streams, 0)  # counts seeks: what was read before is thrown away

    def read(self, key: int) -> Chunk:
        came = self._came[key]
        if not came:
            self._ask(key, 1)
            self._ahead[key] = min(2 * self._ahead[key], _AHEAD)
        while not came:
            self._receive(key)
        chunk = came.popleft()
        if isinstance(chunk, ExceptionWrapper):
            chunk.reraise()
        assert isinstance(chunk, Chunk)
        self._ask(key, self._ahead[key])
        return chunk

    def seek(self, key: int, place: Place) -> None:
        self._turn[key] += 1
        self._asked[key] = 0
        self._came[key].clear()
        # A state may be larger than the pipe, and the process may be sending as well: it takes
        # nothing before its own is taken.
        with self._told_of_its_end(key), ThreadPoolExecutor(1) as aside:
            sent = aside.submit(self._pipe.send, (key, self._turn[key], place))
            while not wait([sent], timeout=0.01).done:
                while self._pipe.poll():
                    self._receive(key)
            sent.result()

    def _ask(self, key: int, number: int) -> None:
        """Let at least ``number`` chunks be on their way or here."""
        while self._asked[key] + len(self._came[key]) < number:
            with self._told_of_its_end(key):
                self._pipe.send((key, self._turn[key], None))
            self._asked[key] += 1

    def _receive(self, key: int) -> None:
        with self._told_of_its_end(key):
            sent, turn, chunk = self._pipe.recv()
        if turn != self._turn[sent]:
            return
        self._asked[sent] -= 1
        self._came[sent].append(chunk)

    @contextmanager
    def _told_of_its_end(self, key: int) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):
            raise RuntimeError(
                f"The process that reads stream {self._names[key]!r} was ended from outside, as "
                "where memory runs out. Use num_workers=0 to read in the training process."
            ) from None


def _serve(pipe: Connection, others: Connection, streams: Mapping[int, Stream]) -> None:
    """Answer requests until the other side is gone."""
    others.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process ends this one
    torch.set_num_threads(1)
    if "fsspec.asyn" in sys.modules:
        sys.modules["fsspec.asyn"].reset_lock()  # its event loop does not live through a fork
    while True:
        try:
            key, turn, place = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if place is None:
                chunk = streams[key].read()
                answer: Any = replace(chunk, rows=[packed(row) for row in chunk.rows])
            else:
                streams[key].seek(place)
                continue
        except Exception:
            answer = ExceptionWrapper(where=f"the process that reads {streams[key].name!r}")
        try:
            pipe.send((key, turn, answer))
        except OSError:
            return


def _stop(owner: int, process: Any, pipe: Connection) -> None:
    if os.getpid() != owner:  # a loader's worker that was forked with it
        return
    pipe.close()
    process.join(timeout=1.0)
    if process.is_alive():
        process.terminate()
        process.join()
