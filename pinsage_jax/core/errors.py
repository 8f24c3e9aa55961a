"""UserError, the exception for bad input.

A missing file, a wrong column or a bad flag raises :class:`UserError` with one
sentence that names the file, row or flag and the fix.  ``main`` prints that sentence
and exits with code 2; any other exception is a bug in the program and keeps its
traceback.
"""

_MESSAGE_LENGTH = 200


class UserError(Exception):
    """Bad input: one sentence for the user, printed without a traceback."""


def described(error: BaseException) -> str:
    """An error of other code for a sentence: its type, and the beginning of its message."""
    message = " ".join(str(error).split())[:_MESSAGE_LENGTH].rstrip(".")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def printable_message(error: UserError) -> str:
    """The error's message with every non-printable character escaped.

    Messages quote ids, columns and paths that come from files; a newline or a terminal
    escape sequence in one of them must not reach the terminal.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
