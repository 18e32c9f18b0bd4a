"""The error tree. Every error that this package raises on purpose hangs on it.

HybridRetrievalError
├── InputError (also ValueError)      what the caller passed is wrong; the command line exits with 2
│   ├── CorpusError                   a corpus, queries or qrels file, with its file and line
│   ├── ArrayError                    shape, dtype, norm or NaN of an array
│   ├── QueryError                    an empty or oversized query, k < 1, ...
│   └── ConfigError                   an unknown key or an impossible value
├── StorageError                      an index on disk
│   ├── IndexNotFoundError            no index there (exit 2)
│   ├── IndexExistsError              an index is there already (exit 2)
│   ├── IndexVersionError             written by another format version (exit 2)
│   ├── IndexDamagedError             a checksum, size or structure is wrong
│   ├── IndexLockedError              another process is writing
│   └── ModelMismatchError            the index was built with another encoder (exit 2)
├── ModelError                        a model could not be loaded or gave impossible output
│   ├── ModelNotFoundError            no such model here, and how to get it (exit 2)
│   └── ModelSettingsError            a device, backend, dtype or length that the model cannot run with (exit 2)
├── DeviceMemoryError                 an index or a search needs more memory than the device has
└── OptionalDependencyError           an extra is not installed (also ImportError; exit 2)
"""

from __future__ import annotations


class HybridRetrievalError(Exception):
    """Root of the tree. `exit_code` is what the command line exits with."""

    exit_code = 1


class InputError(HybridRetrievalError, ValueError):
    """The caller's input is wrong."""

    exit_code = 2


class CorpusError(InputError):
    """A corpus, queries, qrels or run file is malformed."""


class ArrayError(InputError):
    """An array has another shape, dtype or content than expected."""


class QueryError(InputError):
    """A query or a search parameter is impossible."""


class ConfigError(InputError):
    """A configuration has an unknown key or an impossible value."""


class StorageError(HybridRetrievalError):
    """An index on disk."""


class IndexNotFoundError(StorageError):
    """There is no index at this path."""

    exit_code = 2


class IndexExistsError(StorageError):
    """There is an index at this path already."""

    exit_code = 2


class IndexVersionError(StorageError):
    """The index was written by a format version that this release does not read."""

    exit_code = 2


class IndexDamagedError(StorageError):
    """A file of the index is missing, truncated or changed."""


class IndexLockedError(StorageError):
    """Another process holds the writer's lock."""


class ModelMismatchError(StorageError):
    """The index was built with another encoder than the one given."""

    exit_code = 2


class ModelError(HybridRetrievalError):
    """A model could not be loaded, or gave output that cannot be right."""


class ModelNotFoundError(ModelError):
    """No model of this name is here."""

    exit_code = 2


class ModelSettingsError(ModelError):
    """The model is here, but not for the device, backend, dtype or length that was asked for."""

    exit_code = 2


class DeviceMemoryError(HybridRetrievalError):
    """An index or a search needs more memory than the device has free."""


class OptionalDependencyError(HybridRetrievalError, ImportError):
    """A package of an extra is missing."""

    exit_code = 2

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: pip install 'hybrid-retrieval[{extra}]'"
        )
        self.package, self.extra, self._purpose = package, extra, purpose

    def __reduce__(self) -> tuple[type[OptionalDependencyError], tuple[str, str, str]]:
        """As made, so that it can be handed to another process: an exception is made of its `args` otherwise."""
        return type(self), (self.package, self.extra, self._purpose)
