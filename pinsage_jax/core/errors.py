"""The one exception that a person can cause.

Everything a user can get wrong (a missing file, a wrong column, a bad flag) is
raised as :class:`UserError` with one sentence that names the file, row or flag
and the fix.  ``main`` prints that sentence and exits with code 2; any other
exception is a bug of ours and keeps its traceback.
"""


class UserError(Exception):
    """One sentence for the person at the keyboard; never wraps a traceback."""


def on_one_line(error: UserError) -> str:
    """The sentence as a terminal may have it.

    Ids, columns and paths come from files: a newline or an escape sequence in one of them
    is spelled out.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
