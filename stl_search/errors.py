"""The errors that a user of stl-search can meet: one base class, one line of text each, one exit code each."""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "CatalogError",
    "FormatError",
    "NotFoundError",
    "SchemeError",
    "StlError",
    "StlWarning",
    "UsageError",
    "VerificationError",
]


class StlError(Exception):
    """Base of every error that stl-search raises on purpose; the command line prints it as one line.

    ``exit_code`` is what the command line returns for it.
    """

    exit_code = 2


class UsageError(StlError):
    """An argument, option or selector that means nothing here."""


class SchemeError(StlError, ValueError):
    """Arrays that do not form a scheme: wrong shape, NaN or infinity, a coefficient outside its ring."""


class FormatError(StlError, ValueError):
    """A file that is not a well-formed scheme file; says where and what."""


class VerificationError(StlError):
    """A well-formed scheme whose claim does not hold; names the coefficient or figure that fails."""

    exit_code = 1


class CatalogError(StlError):
    """A catalog that cannot be read or written, or an entry that is not there."""


class NotFoundError(StlError):
    """A search that ended without what was asked for."""

    exit_code = 3


class BudgetError(StlError):
    """A job that would need more memory or size than the stated limits."""


class StlWarning(UserWarning):
    """What a user should know of a result that is still right: a fallback that cost time, a layer left as it was."""
