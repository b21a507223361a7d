"""The one error that a user is meant to read."""


class EqaError(Exception):
    """A fault that the user can mend: one line naming file or key, value, limit and way out.

    `scripts.lib.cli.entry` prints it without a traceback and exits with 2.
    """
