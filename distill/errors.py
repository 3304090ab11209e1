"""The errors that a user can meet, and the hints that go with them."""

import difflib
from collections.abc import Iterable


class DistillError(Exception):
    """Base of all errors that are explained to the user without a traceback."""

    exit_status = 1
    leave_at_once = False  # whether the process cannot end in an orderly way, because a thread of it hangs


class UserError(DistillError):
    """The input is wrong (a recipe, a file, an option): exit status 2."""

    exit_status = 2


class RunError(DistillError):
    """The input was fine, the run failed (a non-finite loss, a full disk): exit status 1."""

    exit_status = 1


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?", or "" where nothing valid is near `name`."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
