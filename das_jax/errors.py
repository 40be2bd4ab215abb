"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence that says what, where, and what to do.

    The command line prints the sentence and exits with status 2; it never shows a traceback.
    """


def shown(text: str, longest: int = 60) -> str:
    """What somebody wrote, as a sentence can hold it: one line, and not too long."""
    text = text if len(text) <= longest else text[: longest - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
