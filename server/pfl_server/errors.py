"""Errors of the aggregator that are not answers to a request (those are in ``problems.py``)."""

from __future__ import annotations

from pfl_mobile.errors import ConfigError, PflError


class DatabaseError(PflError):
    """The database cannot be reached, or does not have the tables that this version needs."""


class SchemaTooNewError(DatabaseError):
    """A newer version of pfl-mobile has changed the tables."""


class BlobError(PflError):
    """The store of tensor files failed."""


class BlobMissingError(BlobError):
    """There is nothing under this key."""


class MergeMemoryError(PflError):
    """A merge does not fit into the memory that is left."""


class SecretError(ConfigError):
    """A secret is missing, too short, or its file cannot be read."""
