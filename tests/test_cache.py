"""The cache of results: bounded, least recently used first out, counted, safe between threads."""

from __future__ import annotations

import threading
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_retrieval.cache import Cache, digest
from hybrid_retrieval.errors import ConfigError


@given(st.integers(1, 6), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=80))
def test_it_holds_what_was_used_last(capacity: int, steps: list[tuple[bool, int]]) -> None:
    cache: Cache[int] = Cache(capacity)
    model: OrderedDict[int, int] = OrderedDict()
    hits = misses = 0
    for write, number in steps:
        key = bytes([number])
        if write:
            cache.put(key, number)
            model[number] = number
            model.move_to_end(number)
            if len(model) > capacity:
                model.popitem(last=False)
        else:
            assert cache.get(key) == model.get(number)
            hits, misses = hits + (number in model), misses + (number not in model)
            if number in model:
                model.move_to_end(number)
        assert (key in cache) == (number in model)
    assert cache.info() == (hits, misses, len(model), capacity)


def test_a_capacity_of_0_holds_and_counts_nothing() -> None:
    cache: Cache[int] = Cache(0)
    cache.put(b"a", 1)
    assert cache.get(b"a") is None and cache.info() == (0, 0, 0, 0)


@pytest.mark.parametrize("capacity", [-1, 1.5, True, "3"])
def test_an_impossible_capacity_is_refused(capacity: object) -> None:
    with pytest.raises(ConfigError, match="0 \\(off\\) or more"):
        Cache(capacity)  # type: ignore[arg-type]


def test_models_share_no_keys() -> None:
    assert digest("a" * 64)(b"text") == digest("a" * 64)(b"text") != digest("b" * 64)(b"text")
    assert digest("a" * 64)(b"text") != digest("a" * 64)(b"texts")


def test_threads_share_a_cache() -> None:
    cache: Cache[int] = Cache(50)
    problems: list[object] = []

    def work(seed: int) -> None:
        try:
            for i in range(2000):
                number = (i * 7 + seed) % 120
                key = number.to_bytes(2, "little")
                assert cache.get(key) in (None, number)
                cache.put(key, number)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    info = cache.info()
    assert info.entries == 50 and info.hits + info.misses == 12_000
