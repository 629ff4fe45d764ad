"""What a user can do wrong, and what stands in their way. Every message says the next step."""

from __future__ import annotations

from collections.abc import Iterable


class InvalidName(ValueError):
    """A name that cannot be used for what the request asks."""


class ConfigurationError(ValueError):
    """The settings hold a key or a value that cannot be used here. The message lists the valid ones."""


def shown(name: str) -> str:
    """A name of unknown origin, fit for a message."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


class NotKnown(LookupError):
    """The request names something that does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str] = (), *, step: str = "") -> None:
        valid = ", ".join(sorted(known))
        listed = f"; known: {valid}" if valid else ""
        super().__init__(f"there is no {kind} {shown(name)}{listed}" + (f". {step}" if step else ""))


class InvalidRequest(ValueError):
    """The request is not what the route expects. The message says what it should be."""


class NotYours(PermissionError):
    """The request is about something that belongs to another client. The message says whose it is."""


class NotNow(ValueError):
    """The request does not fit the state that things are in. The message says which."""


class NotConfirmed(ValueError):
    """A command waits for a second word. The message says what it would do and how to confirm it."""


class StudiesNotWritable(RuntimeError):
    """The folder of studies cannot be written. The message says what works all the same."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the folder of studies cannot be written ({why}): images can be looked at and clicked on, but nothing can "
            "be submitted, saved or uploaded. Let the server's account write there, and start the server again"
        )
