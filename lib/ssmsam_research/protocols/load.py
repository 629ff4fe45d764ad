"""Protocol "load": many annotators at one server at a time, each of whom has to get their own answers.

Every annotator works on one organ of one volume under a label of their own: opens what *Next Sample* offers for the
volume, clicks, accepts slices or submits a mask, asks the few-shot model for the rest, and looks between two of these
as long as a person would. Meanwhile ``/info/`` is asked every second, as viewers do, one training runs, and the
server's memory is read. A click has to lie inside its mask, and what is annotated under a label has to be what its
annotator did.
"""

from __future__ import annotations

import json
import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import requests

from ssmsam.cli.annotator import first_click
from ssmsam.cli.live_server import LiveServer
from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

TIMEOUT_S = 300.0
"""An answer that takes longer counts as an error. A guess, beyond the longest adaptation."""


@dataclass(frozen=True, kw_only=True)
class LoadProtocol:
    """``annotators`` work for ``seconds``; after each action a person looks for ``pause_s`` (from, to) seconds.
    All three are guesses of a large reading room."""

    annotators: int = 20
    seconds: float = 300.0
    pause_s: tuple[float, float] = (2.0, 10.0)
    train: bool = True
    seed: int = 0
    name: ClassVar[str] = "load"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Tally:
    """What all annotators saw. Safe for threads: lists only grow."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Answers that belong to somebody else, or miss what was said."""
    memory_mb: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the beginning, resident memory of all the server's processes)."""

    def ask(self, route: str, method: str, url: str, **content: Any) -> requests.Response | None:
        """One request, timed; None where the answer is not a success."""
        started = time.perf_counter()
        try:
            answer = requests.request(method, url, timeout=TIMEOUT_S, **content)
        except requests.RequestException as error:
            self.errors.append(f"{route}: {type(error).__name__}")
            return None
        self.seconds.setdefault(route, []).append(time.perf_counter() - started)
        if answer.status_code != 200:
            self.errors.append(f"{route}: {answer.status_code} {answer.text[:200]}")
            return None
        return answer

    def as_json(self) -> dict[str, Any]:
        """Seconds by route, errors, and memory over time."""
        memory = np.array(self.memory_mb or [(0.0, 0.0)])
        return {
            "routes": {
                route: {
                    "n": len(found),
                    **{f"p{q}": round(float(np.percentile(found, q)), 3) for q in (50, 95, 99)},
                    "max": round(max(found), 3),
                }
                for route, found in sorted(self.seconds.items())
            },
            "errors": dict(Counter(self.errors)),
            "wrong": self.wrong,
            "memory_mb": {
                "first": round(float(memory[0, 1])),
                "median_of_second_half": round(float(np.median(memory[len(memory) // 2 :, 1]))),
                "peak": round(float(memory[:, 1].max())),
                "over_time": [[round(t), round(mb)] for t, mb in self.memory_mb[:: max(1, len(memory) // 60)]],
            },
        }


@dataclass(frozen=True, eq=False)
class Work:
    """One organ of one volume under a name of its own; ``truth`` (slices, rows, columns) bool."""

    image: str
    label: str
    volume: Volume
    truth: np.ndarray


class LoadAnnotator(threading.Thread):
    """One person at work until ``until`` (of ``time.monotonic``)."""

    def __init__(
        self, url: str, work: Work, tally: Tally, protocol: LoadProtocol, *, number: int, until: float
    ) -> None:
        super().__init__(name=f"reader-{number}", daemon=True)
        self._url, self._work, self._tally, self._protocol, self._until = url, work, tally, protocol, until
        self._random = random.Random(1000 * protocol.seed + number)
        self._done: set[int] = set()
        self._shown = np.flatnonzero(work.truth.any(axis=(1, 2))).tolist()

    def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="ssmsam-load-") as folder:
            actions = [self._click_and_accept] * 6 + [self._submit, self._next_slices, self._propose]
            while time.monotonic() < self._until:
                try:
                    self._random.choice(actions)(Path(folder))
                except Exception as error:  # an annotator that stops would be missed in the figures
                    self._tally.errors.append(f"{self.name}: {type(error).__name__}: {error}"[:300])
                time.sleep(self._random.uniform(*self._protocol.pause_s))

    def _infer(self, model: str, folder: Path, **params: Any) -> Volume | None:
        """The mask that a model answers; None for an error, or where it has none to send."""
        sent = {"client_id": self.name, "label": self._work.label, "result_extension": ".nrrd", **params}
        answer = self._tally.ask(
            f"POST /infer/{model}", "POST", f"{self._url}/infer/{model}",
            params={"image": self._work.image, "output": "image"}, files={"params": (None, json.dumps(sent))},
        )  # fmt: skip
        if answer is None:
            return None
        file = folder / "mask.nrrd"
        file.write_bytes(answer.content)
        return read_volume(file)

    def _click_and_accept(self, folder: Path) -> None:
        index = self._random.choice(self._shown)
        click = first_click(self._work.truth[index])
        mask = self._infer("sam_2d", folder, foreground=[[click.x, click.y, index]], reset_state=True)
        if mask is None:
            return
        if not mask.array[index, click.y, click.x]:
            self._tally.wrong.append(f"{self.name}: the click on slice {index} is not in its mask")
        time.sleep(self._random.uniform(*self._protocol.pause_s) / 2)
        accepted = self._tally.ask(
            "POST /infer/accept_slice", "POST", f"{self._url}/infer/accept_slice",
            params={"image": self._work.image, "output": "json"},
            files={"params": (None, json.dumps({"client_id": self.name, "label": self._work.label, "slice": index}))},
        )  # fmt: skip
        if accepted is not None:
            self._done.add(index)
            self.check()

    def _submit(self, folder: Path) -> None:
        """One slice as a viewer would send it: a label map with the values named."""
        index = self._random.choice(self._shown)
        drawn = np.zeros(self._work.truth.shape, np.uint8)
        drawn[index] = self._work.truth[index]
        file = folder / "drawn.nii.gz"
        write_volume(self._work.volume.with_array(drawn), file)
        said = {
            "label_info": [{"name": self._work.label, "idx": 1}],
            "client_id": self.name,
            "partial": {"slices": {self._work.label: {"annotated": [index]}}},
        }
        with file.open("rb") as opened:
            answer = self._tally.ask(
                "PUT /datastore/label", "PUT", f"{self._url}/datastore/label",
                params={"image": self._work.image, "tag": "partial"},
                files={"label": (file.name, opened)}, data={"params": json.dumps(said)},
            )  # fmt: skip
        if answer is not None:
            self._done.add(index)
            self.check()

    def _next_slices(self, folder: Path) -> None:
        asked = {"image": self._work.image, "labels": [self._work.label], "client_id": self.name, "budget_s": 5}
        url = f"{self._url}/activelearning/next_slices"
        self._tally.ask("POST /activelearning/next_slices", "POST", url, json=asked)

    def _propose(self, folder: Path) -> None:
        if len(self._done) >= 3:
            mask = self._infer("fewshot", folder, labels=[self._work.label])
            if mask is not None and mask.array.shape != self._work.truth.shape:
                self._tally.wrong.append(f"{self.name}: a proposal of another volume")

    def check(self) -> None:
        """What is annotated under the label is what this annotator did, no more and no less."""
        url = f"{self._url}/datastore/annotations"
        answer = self._tally.ask("GET /datastore/annotations", "GET", url, params={"image": self._work.image})
        if answer is not None:
            known = answer.json()["partial"]["slices"].get(self._work.label, {}).get("annotated", [])
            if set(known) != self._done:
                self._tally.wrong.append(f"{self.name}: annotated {sorted(known)}, not {sorted(self._done)}")


def run_load(server: LiveServer, work: list[Work], protocol: LoadProtocol) -> dict[str, Any]:
    """Let ``work`` be shared out among the annotators, and return what they saw; see :meth:`Tally.as_json`."""
    tally, started = Tally(), time.monotonic()
    until = started + protocol.seconds
    shared = [work[number % len(work)] for number in range(protocol.annotators)]
    readers = [
        LoadAnnotator(
            server.url,
            Work(one.image, f"{one.label} {number:02}", one.volume, one.truth),
            tally,
            protocol,
            number=number,
            until=until,
        )
        for number, one in enumerate(shared)
    ]
    for reader in readers:
        reader.start()
    trained = not protocol.train
    while time.monotonic() < until:
        tally.ask("GET /info/", "GET", f"{server.url}/info/")
        tally.memory_mb.append((time.monotonic() - started, server.memory_mb()["now"]))
        if not trained and time.monotonic() - started > protocol.seconds / 3:
            tally.ask("POST /train", "POST", f"{server.url}/train/fewshot_decoder", json={"steps": 20, "budget_s": 30})
            trained = True
        time.sleep(1.0)
    for reader in readers:
        reader.join(TIMEOUT_S)
        if reader.is_alive():
            tally.errors.append(f"{reader.name}: did not end")
    return tally.as_json()
