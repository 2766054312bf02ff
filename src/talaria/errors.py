"""Errors that a user can mend. The command line prints their one line and no traceback."""


class UserError(ValueError):
    """Something outside the code is wrong; the message names it, its place and the next step. Exit code 1."""


class UsageError(UserError):
    """A recipe, key or argument is wrong. Exit code 2."""
