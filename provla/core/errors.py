"""How a command can end besides well, told apart by its exit code.

0  done
1  the machine or another program failed (a full disk, a missing device), or a job of a sweep has no result
2  what was asked cannot be done: a wrong key, value, file or data set (`ValueError`)
3  numbers that are not finite (`NotFinite`)
128 + n  ended by signal n (`Interrupted`)
"""

from __future__ import annotations

import signal


class NotFinite(ValueError):
    """A loss, gradient, weight, metric or action that is NaN or infinite; says which, and at which step."""

    exit_code = 3


class NoSpace(ValueError):
    """A disk that is full or cannot be written; says which path, how many bytes it takes and how many are free.

    needed: bytes, 0 where nobody knows. Raised by `provla.core.files.writing` and `check_space`.
    """

    exit_code = 1

    def __init__(self, message: str, needed: int = 0) -> None:
        super().__init__(message)
        self.needed = needed


class NoResult(ValueError):
    """Some of several that were asked for have no result; what each of them lacked has been said."""

    exit_code = 1


class NotRepeated(ValueError):
    """A run that was made again and came out otherwise; says what differs."""

    exit_code = 1


class Interrupted(BaseException):
    """The process was asked to end by a signal, and what was done so far is kept. No `Exception`: nothing may swallow
    it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"ended by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


def exit_code(error: BaseException) -> int:
    """The exit code that a command ends with on this error."""
    return int(getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 1))
