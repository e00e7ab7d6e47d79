"""The exceptions that a user is meant to read."""


class UnrainError(Exception):
    """Something a user can mend: the message is one line that names the file or setting and the remedy."""


class UsageError(UnrainError):
    """The command or the call itself is wrong, whatever the files hold: the command line exits with 2."""
