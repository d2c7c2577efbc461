"""The errors this package raises on purpose: a caller can catch `DistilError` and print its message as it is."""


class DistilError(ValueError):
    """Something the user asked for cannot be done; the message says what is wrong and how to mend it."""


class DataError(DistilError):
    """Input data is not what it should be; the message names file, article, paragraph and question id."""


class WriteError(DistilError):
    """A file or directory cannot be written; the message names it and gives the system's reason."""
