"""A bounded memory of results, the least recently used thrown out first."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from hybrid_retrieval.errors import ConfigError

Value = TypeVar("Value")


class CacheInfo(NamedTuple):
    """hits, misses: look-ups that found something, and those that did not. entries: held now. capacity: the most held;
    0 means that the cache is off."""

    hits: int
    misses: int
    entries: int
    capacity: int


class Cache(Generic[Value]):
    """Safe to share between threads. Keys are digests (see `digest`): an entry costs the same however long its text."""

    def __init__(self, capacity: int) -> None:
        """Raises `ConfigError` for a capacity that is no whole number of 0 (off) or more."""
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 0:
            raise ConfigError(f"entries of a cache must be 0 (off) or more, got {capacity!r}")
        self._capacity, self._hits, self._misses = capacity, 0, 0
        self._entries: OrderedDict[bytes, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Value | None:
        """What was put under `key`, or None. Counts as a hit or a miss, and as a use."""
        if not self._capacity:
            return None
        with self._lock:
            value = self._entries.get(key)
            if value is None:
                self._misses += 1
            else:
                self._hits += 1
                self._entries.move_to_end(key)
            return value

    def put(self, key: bytes, value: Value) -> None:
        """Keep a value, in place of the least recently used one where the cache is full."""
        if not self._capacity:
            return
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            while len(self._entries) > self._capacity:
                self._entries.popitem(last=False)

    def __contains__(self, key: bytes) -> bool:
        """Whether `get` would find something; counts as nothing."""
        return key in self._entries

    def info(self) -> CacheInfo:
        """The counts so far."""
        with self._lock:
            return CacheInfo(self._hits, self._misses, len(self._entries), self._capacity)


def digest(identity: str) -> Callable[[bytes], bytes]:
    """A function from content to a key of 16 bytes under a model's identity: no two models share a key.

    BLAKE2b, keyed by the identity.
    """
    key = hashlib.blake2b(identity.encode(), digest_size=32).digest()
    return lambda content: hashlib.blake2b(content, digest_size=16, key=key).digest()
