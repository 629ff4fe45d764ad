"""Progress on a terminal."""

from __future__ import annotations

from types import TracebackType

from tqdm import tqdm


class ProgressBar:
    """A :data:`~ssmsam.progress.Progress` that draws one bar for each phase, one after the other.

    A context manager. Nothing is drawn where the output is not a terminal. ``name`` stands before the phase.
    """

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._bar: tqdm | None = None
        self._at = ("", 0)

    def __call__(self, phase: str, done: int, total: int) -> None:
        last_phase, last_done = self._at
        if self._bar is None or phase != last_phase or done < last_done:
            self._close()
            self._bar = tqdm(total=total, desc=f"{self._name} {phase}".strip(), disable=None)
            last_done = 0
        self._bar.update(done - last_done)
        self._at = phase, done

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
