"""Whether a check fails, as a value."""


def fails(check, *arguments):
    """The assertion that a check raises, or None. Other exceptions are mistakes of the tests and get out."""
    try:
        check(*arguments)
    except AssertionError as error:
        return error
    return None
