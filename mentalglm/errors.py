"""What can go wrong for a user, and the exit code each case ends with.

A `UserError` is printed as one line without a traceback; any other exception is a defect of ours and keeps its
traceback. Messages name the field, the value and the fix, and never carry post text, prompts, completions or secrets.
"""

import traceback
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. The message is one line: what, where, how to fix."""

    exit_code = 1


class ConfigError(UserError):
    """A config, task file or command-line argument is wrong."""

    exit_code = 2


class InputError(UserError):
    """The input cannot be scored as it is: missing, empty, of a wrong type, or unreadable as a whole."""

    exit_code = 3


class ErrorBudgetExceededError(UserError):
    """More rows failed than `max_error_rate` allows."""

    exit_code = 4


class LabelsDifferError(UserError):
    """More labels than allowed differ from those of the plain engine."""

    exit_code = 4


class InterruptedRunError(UserError):
    """The run was stopped before its end; the same command goes on where it stopped."""

    exit_code = 75


class StorageError(InterruptedRunError):
    """A disk or an object store failed and further attempts did not help; the message says what to see to."""


class UnusableStorageError(StorageError, OSError):
    """The place itself cannot be used: no such bucket, no permission, not a folder.

    Also an OSError, so that the start of a run, where the address is a setting that can be wrong, tells it from a
    storage that fails for now; in the middle of a run both interrupt it.
    """


class InternalError(UserError):
    """A defect of ours, or a run's folder that something else has changed. Exit code 1."""

    @classmethod
    def withholding(cls, error: BaseException) -> "InternalError":
        """Class and place of `error`, without its message, which may quote a post."""
        frames = [
            f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)[-4:]
        ]
        return cls(f"internal error: {type(error).__name__} at {' > '.join(frames)}; please report it with this line")


def told(kind: str, message: str) -> UserError:
    """The error that another process has told of as data, by the name of its class and its message."""
    error: UserError = globals().get(kind, InterruptedRunError)(message)
    return error
