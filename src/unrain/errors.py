"""The one exception that a user is meant to read."""


class UnrainError(Exception):
    """Something a user can mend: the message is one line that names the file or setting and the remedy."""
