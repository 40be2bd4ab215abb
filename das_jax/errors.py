"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence that says what, where, and what to do.

    The command line prints the sentence and exits with status 2; it never shows a traceback.
    """
