"""The registrations that were used last, in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from ssmsam.registration.register import Registration


class RegistrationMemory:
    """Up to ``limit`` registrations by the names of both volumes, the least recently used forgotten first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: OrderedDict[tuple[str, str], Registration] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, names: tuple[str, str]) -> Registration | None:
        with self._lock:
            found = self._known.get(names)
            if found is not None:
                self._known.move_to_end(names)
            return found

    def recalled(self, names: tuple[str, str], make: Callable[[], Registration]) -> Registration:
        """The registration of two volumes, made and kept unless it is known."""
        known = self.get(names)
        return self.put(names, make()) if known is None else known

    def put(self, names: tuple[str, str], registration: Registration) -> Registration:
        """Keeps a registration, and gives it back."""
        with self._lock:
            self._known[names] = registration
            self._known.move_to_end(names)
            while len(self._known) > self._limit:
                self._known.popitem(last=False)
        return registration
