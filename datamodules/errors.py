"""The errors that a user is meant to read."""

from __future__ import annotations


class InputError(ValueError):
    """A request that cannot be carried out as it was given.

    The command line prints each fault on one line of stderr and exits with 2. A fault names the
    file, row or key, says what is wrong, and what to do next.

    Args:
        faults: One line each. All faults found together are reported together.

    Raises:
        TypeError: No fault was given.
    """

    def __init__(self, *faults: str) -> None:
        if not faults:
            raise TypeError("an InputError needs at least one fault to report")
        self.faults: tuple[str, ...] = tuple(" ".join(fault.split()) for fault in faults)
        super().__init__("\n".join(self.faults))


class RunFailedError(RuntimeError):
    """The request was right, the work ran, and its result is bad news that a user can act on.

    The command line prints the message as one line and exits with 1; a grid counts the cell as failed.
    """
