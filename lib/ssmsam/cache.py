"""What was made a moment ago and is asked for again: kept within a bound, and made once however many ask."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from cachetools import LRUCache

from ssmsam.progress import Cancelled, FairLock, result_of

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def one(value: object) -> int:
    """The size of a value where values are counted."""
    return 1


class SingleFlight(Generic[K, V]):
    """Work by name. Who asks for what another thread is making waits for that instead of making it again.

    Nobody waits for other names. An error goes to all who wait; where the one at work was cancelled, the next of them
    takes over. Who waits can be cancelled alone.
    """

    def __init__(self) -> None:
        self._making: dict[K, Future[V]] = {}
        self._lock = threading.Lock()

    def run(self, key: K, make: Callable[[], V]) -> V:
        """``make()``, or what another thread makes under this name."""
        while True:
            with self._lock:
                in_flight = self._making.get(key)
                mine = in_flight is None
                if in_flight is None:
                    in_flight = self._making[key] = Future()
            if mine:
                return self._made(key, in_flight, make)
            try:
                return result_of(in_flight)
            except Cancelled:
                if not (in_flight.done() and isinstance(in_flight.exception(), Cancelled)):
                    raise  # this one was cancelled, not the one at work

    def _made(self, key: K, in_flight: Future[V], make: Callable[[], V]) -> V:
        try:
            made = make()
        except BaseException as error:
            self._done(key)
            in_flight.set_exception(error)
            raise
        self._done(key)
        in_flight.set_result(made)
        return made

    def _done(self, key: K) -> None:
        with self._lock:
            del self._making[key]


class Cache(Generic[K, V]):
    """The values that were used last, the least recently used forgotten first. Safe for threads.

    The key has to hold everything that a value depends on. ``limit`` bounds the sum of what ``size`` says of each
    value: their number by default, or bytes. A value above the limit is not kept, or with ``keep_newest`` kept alone.
    """

    def __init__(self, limit: int, *, size: Callable[[V], int] = one, keep_newest: bool = False) -> None:
        self._size, self._keep_newest = size, keep_newest
        self._values: LRUCache[K, V] = LRUCache(limit, getsizeof=self._weight)
        self._making: SingleFlight[K, V] = SingleFlight()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value, which counts as a use; None where it is not known."""
        with self._lock:
            value: V | None = self._values.get(key)
            return value

    def put(self, key: K, value: V) -> V:
        """Keep a value, and give it back."""
        with self._lock:
            self._values.pop(key, None)
            if self._weight(value) <= self._values.maxsize:
                self._values[key] = value
        return value

    def recalled(self, key: K, make: Callable[[], V]) -> V:
        """The value, made unless it is known; several who ask at once wait for the one who makes it."""
        known = self.get(key)
        return known if known is not None else self._making.run(key, lambda: self._known_or_made(key, make))

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._values.clear()

    def __contains__(self, key: object) -> bool:
        """Whether a value is known; does not count as a use."""
        with self._lock:
            return key in self._values

    def __len__(self) -> int:
        with self._lock:
            return len(self._values)

    @property
    def total(self) -> int:
        """The sum of the sizes of what is kept."""
        with self._lock:
            return int(self._values.currsize)

    def _known_or_made(self, key: K, make: Callable[[], V]) -> V:
        known = self.get(key)  # another thread made it meanwhile
        return known if known is not None else self.put(key, make())

    def _weight(self, value: V) -> int:
        size = self._size(value)
        return min(size, int(self._values.maxsize)) if self._keep_newest else size


class KeyedLocks:
    """A lock for each name, kept only while somebody has it. Nobody waits for other names, and nobody is overtaken."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Hashable, FairLock] = WeakValueDictionary()
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, name: Hashable) -> Iterator[None]:
        """Hold the lock of a name. Raises :class:`~ssmsam.progress.Cancelled` while it waits for it."""
        with self._lock:
            lock = self._locks.get(name)
            if lock is None:
                lock = self._locks[name] = FairLock()
        with lock:
            yield
