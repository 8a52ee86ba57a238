"""The errors a user can cause and mend. The command line prints them as one sentence and ends with exit code 2."""


class InputError(ValueError):
    """Something given from outside (argument, file, configuration, network) is wrong.

    The message names the argument or file, what was found, and what is allowed.
    """


class SpecError(InputError):
    """A network that cannot exist: shapes that do not meet, a gate on nothing, an unknown convention."""


class DataError(InputError):
    """A data file that is missing, truncated, corrupt, or not what its name says."""
