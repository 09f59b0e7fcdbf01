"""Several pieces of work at once, for readers that wait more than they compute (a server)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
Piece = tuple[Hashable, Callable[[], T]]


class AtOnce(Generic[T]):
    """Does pieces of work, at most so many at once, in threads that nobody waits for at the end.

    Args:
        pieces: each with what it is about. One is begun about something that none under way is
            about, as long as there are such: a server has read the document by the next question.
        most: under way at once.
    """

    def __init__(self, pieces: Iterable[Piece[T]], most: int) -> None:
        self._waiting: dict[Hashable, deque[Callable[[], T]]] = {}
        for about, work in pieces:
            self._waiting.setdefault(about, deque()).append(work)
        self._most = most
        self._under_way: list[Hashable] = []
        self._done: SimpleQueue[tuple[Hashable, T | None, BaseException | None]] = SimpleQueue()

    def __iter__(self) -> Iterator[T]:
        """The results as they are ready; what a piece raised is raised here."""
        while True:
            while self._waiting and len(self._under_way) < self._most:
                self._begin()
            if not self._under_way:
                return
            about, result, error = self._done.get()
            self._under_way.remove(about)
            if error is not None:
                raise error
            yield result  # type: ignore[misc]

    def ready(self) -> Iterator[T]:
        """The results that are there and were not taken; waits for none."""
        while True:
            try:
                _, result, error = self._done.get_nowait()
            except Empty:
                return
            if error is None:
                yield result  # type: ignore[misc]

    def _begin(self) -> None:
        waiting = self._waiting
        about = next((each for each in waiting if each not in self._under_way), next(iter(waiting)))
        work = waiting[about].popleft()
        if not waiting[about]:
            del waiting[about]
        self._under_way.append(about)
        threading.Thread(target=self._do, args=(about, work), daemon=True).start()

    def _do(self, about: Hashable, work: Callable[[], T]) -> None:
        try:
            self._done.put((about, work(), None))
        except BaseException as error:  # it is the main thread's to handle
            self._done.put((about, None, error))
