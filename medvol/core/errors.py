"""The errors of medvol: each one's text is the single line that a user sees."""

from __future__ import annotations

import re

# An error raised in a data loader's worker arrives as text inside another error.
_QUOTED_ERROR = re.compile(r"^medvol\.core\.errors\.\w+: (.+)$", re.MULTILINE)


class MedvolError(Exception):
    """Root of all errors; ``str(error)`` is one line that names the file and the fault."""

    def __init__(self, message: str) -> None:
        line = " ".join(str(message).split())  # neither a line nor an escape of a name survives
        super().__init__("".join(c if c.isprintable() else "?" for c in line))


class InputError(MedvolError, ValueError):
    """A file or folder given by the user cannot be used."""


class MissingInputError(InputError, FileNotFoundError):
    """A file or folder given by the user does not exist or holds nothing usable."""


class GeometryError(InputError):
    """Orientation, spacing or position of an image is missing, contradictory or unsupported."""


class GridMismatchError(InputError):
    """Two arrays that must share one grid do not."""


class LabelError(InputError):
    """A label map holds values outside the class list, or values that are not integers."""


class NonFiniteError(InputError):
    """An image, a loss or a set of weights holds NaN or infinity."""


class TooLargeError(InputError, MemoryError):
    """What a file claims would not fit under the stated ceiling."""


class UnsafeFileError(InputError):
    """An archive or checkpoint that could run code or leave its folder."""


class ConfigError(MedvolError, ValueError):
    """A bundle, values file, option or override is wrong."""


class WeightsError(MedvolError, ValueError):
    """Weights are unsafe, incomplete, or do not fit the network."""


class PolicyError(ConfigError):
    """An augmentation that the anatomy or the labels do not allow."""


class OutputError(MedvolError, OSError):
    """A result could not be written whole; nothing was changed."""


class MissingPackageError(MedvolError, ImportError):
    """An optional package is needed; the text states how to install it."""


def error_line(error: BaseException | None) -> str | None:
    """The line of the medvol error behind ``error``, through any wrapping; None without one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MedvolError):
            return str(error)
        if quoted := _QUOTED_ERROR.search(str(error)):
            return quoted.group(1)
        error = error.__cause__ or error.__context__
    return None
