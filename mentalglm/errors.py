"""What can go wrong for a user, and the exit code each case ends with.

A `UserError` is printed as one line without a traceback; any other exception is a defect of ours and keeps its
traceback. Messages name the field, the value and the fix, and never carry post text, prompts, completions or secrets.
"""


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


class InterruptedRunError(UserError):
    """The run was stopped before its end; the same command goes on where it stopped."""

    exit_code = 75
