"""The lines of a run that may be resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class RunLog:
    """What a long run has finished so far, one JSON line each, so that it goes on where it was stopped.

    Lines belong to one ``run``: a text that changes with everything that changes the results. Lines of other runs
    are left alone but not returned; a line that was cut off is ignored.
    """

    def __init__(self, path: Path, *, run: str) -> None:
        self.path = path
        self.run = run

    def read(self) -> dict[str, Any]:
        """Finished pieces of this run by name."""
        if not self.path.exists():
            return {}
        found: dict[str, Any] = {}
        for line in self.path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # cut off when the run was killed: that piece is done again
                continue
            if entry.get("run") == self.run:
                found[entry["name"]] = entry["content"]
        return found

    def append(self, name: str, content: Any) -> None:
        """Note that a piece is finished."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut_off = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * cut_off + json.dumps({"run": self.run, "name": name, "content": content}) + "\n")
