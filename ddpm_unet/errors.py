"""Errors that a user can mend."""


class UserError(Exception):
    """Bad input. The message is one line that names the thing at fault and the cure.

    The scripts print it and exit with status 2.
    """
