"""The native kernels against NumPy, on every variant that this machine can run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_retrieval.errors import InputError
from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.kernels.reference import PackedTokens, bucket_table, pack_buckets, weight_table
from tests.kernels.cases import HEADS, HIDDEN, SIZE, Tokens, layer_arrays, quantised_product, reference_layer, unit

VARIANTS = [name for name in dispatch.variants() if name != dispatch.NUMPY]
pytestmark = pytest.mark.skipif(
    not VARIANTS, reason="installed without a compiler: there are no native kernels to test"
)

every_variant = pytest.mark.parametrize("variant", VARIANTS)


@every_variant
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(0, 40), min_size=0, max_size=12),
    query_tokens=st.integers(1, 70),
    dimensions=st.sampled_from([8, 64, 96, 128, 256]),
    nbits=st.sampled_from([1, 2, 4, 8]),
    centroids=st.integers(1, 20),
)
def test_maxsim_from_packed_residuals_is_the_reference_s(
    variant: str, seed: int, lengths: list[int], query_tokens: int, dimensions: int, nbits: int, centroids: int
) -> None:
    tokens = Tokens(seed, lengths, dimensions=dimensions, nbits=nbits, centroids=centroids)
    query = unit(np.random.default_rng(seed).standard_normal((query_tokens, dimensions)))
    found, expected = tokens.native(variant, query), tokens.reference(query)
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
    real = np.isfinite(expected)
    np.testing.assert_allclose(found[real], expected[real], atol=5e-5 * query_tokens)


@every_variant
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(0, 40) | st.sampled_from([127, 128, 129, 300]), min_size=0, max_size=12),
    query_tokens=st.integers(1, 70),
    dimensions=st.sampled_from([64, 72, 96, 128, 256, 1024]),
    nbits=st.sampled_from([1, 2, 4]),
    size=st.sampled_from([1e-35, 1e-3, 1.0, 1e6]),
)
def test_estimates_are_as_wrong_as_they_say_at_most(
    variant: str, seed: int, lengths: list[int], query_tokens: int, dimensions: int, nbits: int, size: float
) -> None:
    tokens = Tokens(seed, lengths, dimensions=dimensions, nbits=nbits, centroids=9)
    codec = tokens.codec(variant)
    query = unit(np.random.default_rng(seed).standard_normal((query_tokens, dimensions))) * np.float32(size)
    scores, _, _ = codec.centroid_scores(query)
    arrays = (query, scores, tokens.codes, tokens.residuals, tokens.no_norms(), tokens.starts, tokens.lengths)
    if not codec.estimates:
        assert variant not in ("amx", "avx512vnni")
        with pytest.raises(ValueError, match="no estimates"):
            codec.estimate(*arrays)
        return
    found, errors = codec.estimate(*arrays)
    exact, expected = codec.maxsim(*arrays), tokens.reference(query)
    empty = tokens.lengths == 0
    assert np.all(found[empty] == -np.inf) and np.all(errors[empty] == 0)
    for truth in (exact[~empty], expected[~empty]):
        assert np.all(np.abs(found[~empty] - truth) <= errors[~empty])
    # Bounds are worth having: far below what scores differ by. (Tiny vectors count as zeros.)
    assert size < 1e-30 or np.all(errors[~empty] <= 0.03 * size * query_tokens)


@every_variant
@pytest.mark.parametrize("dimensions", [64, 128, 1024])
@pytest.mark.parametrize("size", [0.5, 1.0])
def test_bounds_of_estimates_know_what_the_tables_round(variant: str, dimensions: int, size: float) -> None:
    """A query on its levels, so that the estimate is right, and residuals of which the tables round every half byte
    the same way."""
    weight = np.float32(size / np.sqrt(dimensions))
    centroid = np.zeros((1, dimensions), np.float32)
    centroid[0, 0] = 1
    codec = dispatch.module().Codec(variant, centroid, np.array([-weight, weight]), bucket_table(1))
    if not codec.estimates:
        assert variant not in ("amx", "avx512vnni")
        return
    start, length = np.zeros(1, np.int64), np.ones(1, np.int64)
    for level in range(1, 127):
        one = np.full(dimensions, float(level))
        one[:32] = 127
        one = (one / np.linalg.norm(one)).astype(np.float32)
        step = 32 * 2 * weight * one[0] / 65519
        query = np.tile(one, (32, 1))
        scores, _, _ = codec.centroid_scores(query)
        for up in (1, -1):
            halves = []
            for value in (one[0], one[-1]):  # how many of a half byte's bits are set
                exact = np.arange(5) * 2 * weight * value / step
                halves.append((1 << int(np.argmax(up * (np.floor(exact + 0.5) - exact)))) - 1)
            residual = np.full((1, dimensions // 8), halves[1] * 17, np.uint8)
            residual[0, :4] = halves[0] * 17
            arrays = (query, scores, np.zeros(1, np.uint32), residual, np.zeros(1, np.float32), start, length)
            (found,), (error,) = codec.estimate(*arrays)
            assert abs(found - codec.maxsim(*arrays)[0]) <= error


@every_variant
@pytest.mark.parametrize("dimensions", [256, 1024])
@pytest.mark.parametrize("nbits", [2, 4])
def test_bounds_hold_where_all_numbers_are_rounded_alike(variant: str, dimensions: int, nbits: int) -> None:
    """Equal weights, far larger than a trained codec's, and a query of equal numbers: what float32 rounds adds up."""
    value = np.float32(1 / np.sqrt(dimensions))
    weights = np.full(2**nbits, 2.7198248, np.float32)
    codec = dispatch.module().Codec(variant, np.full((1, dimensions), value), weights, bucket_table(nbits))
    if not codec.estimates:
        assert variant not in ("amx", "avx512vnni")
        return
    query = np.full((32, dimensions), value)
    scores, _, _ = codec.centroid_scores(query)
    residual, zero = np.zeros((1, dimensions * nbits // 8), np.uint8), np.zeros(1, np.float32)
    arrays = (query, scores, np.zeros(1, np.uint32), residual, zero, np.zeros(1, np.int64), np.ones(1, np.int64))
    (found,), (error,) = codec.estimate(*arrays)
    exact = codec.maxsim(*arrays)[0]
    assert abs(found - exact) <= error
    assert abs(exact - 32) < 1e-3  # query and token are the same direction


@every_variant
@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("left", [0.0, 1e-6, 1e-3, 0.05])
def test_a_token_whose_residual_cancels_its_centroid_counts_as_zero(variant: str, nbits: int, left: float) -> None:
    dimensions = 64
    random = np.random.default_rng(nbits)
    centroid = np.where(random.random(dimensions) < 0.5, -1, 1) / np.sqrt(dimensions)
    weights = np.linspace(-1, 1, 2**nbits).astype(np.float32) * np.float32((1 + left) / np.sqrt(dimensions))
    buckets = np.where(centroid > 0, 0, 2**nbits - 1)[None]
    packed = np.stack([pack_buckets(buckets, nbits)[0], pack_buckets(2**nbits - 1 - buckets, nbits)[0]])
    tokens = Tokens(0, [1, 1], dimensions=dimensions, nbits=nbits, centroids=1)
    tokens.centroids, tokens.weights, tokens.residuals = centroid[None].astype(np.float32), weights, packed
    query = unit(random.standard_normal((5, dimensions)))
    cancelled, other = tokens.native(variant, query)
    assert abs(cancelled) < 1e-20 and tokens.reference(query)[0] == 0
    np.testing.assert_allclose(other, tokens.reference(query)[1], atol=1e-3)


@every_variant
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    query_tokens=st.integers(1, 70),
    dimensions=st.sampled_from([8, 64, 72, 128, 1024]),
    centroids=st.integers(1, 40) | st.integers(100, 200),
)
def test_rough_levels_are_those_of_the_scores_give_or_take_one(
    variant: str, seed: int, query_tokens: int, dimensions: int, centroids: int
) -> None:
    tokens = Tokens(seed, [5, 0, 150], dimensions=dimensions, nbits=2, centroids=centroids)
    codec = tokens.codec(variant)
    query = unit(np.random.default_rng(seed).standard_normal((query_tokens, dimensions)))
    scores, least, most = codec.centroid_scores(query)
    filled, known = np.full_like(scores, np.nan), np.zeros(centroids, np.uint8)
    arrays = (query, filled, known, tokens.codes, tokens.starts, tokens.lengths)
    if not codec.rough_levels:
        assert variant not in ("amx", "avx512vnni")
        for refused in (lambda: codec.level_table(query), lambda: codec.fill_scores(*arrays)):
            with pytest.raises(ValueError, match="no rough levels"):
                refused()
        return
    table, low, high = codec.level_table(query)
    wrong = 0.02  # of a score at most, by Cauchy and Schwarz
    assert abs(low - least) <= wrong and abs(high - most) <= wrong
    assert not table[:, query_tokens:].any()
    found = table[:, :query_tokens] * ((high - low) / 255) + low
    np.testing.assert_allclose(found, scores[:, :query_tokens], atol=wrong + (high - low) / 255)
    codec.fill_scores(*arrays)
    used = np.unique(tokens.codes)
    assert np.flatnonzero(known).tolist() == used.tolist()
    np.testing.assert_array_equal(filled[used], scores[used])
    assert np.isnan(np.delete(filled, used, axis=0)).all()
    with pytest.raises(ValueError, match="not below the number"):
        codec.fill_scores(query, filled, np.zeros_like(known), tokens.codes + np.uint32(centroids), *arrays[4:])


@every_variant
@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-20, 1e15])
def test_numbers_of_any_size_give_finite_scores(variant: str, size: float) -> None:
    tokens = Tokens(5, [20, 3], dimensions=64, nbits=2, centroids=7)
    tokens.weights = (tokens.weights * np.float32(min(size, 1))).astype(np.float32)
    query = (unit(np.random.default_rng(5).standard_normal((9, 64))) * np.float32(size)).astype(np.float32)
    found, expected = tokens.native(variant, query), tokens.reference(query)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=max(2e-4 * size, 1e-30))


@every_variant
def test_equal_windows_tie_wherever_they_stand(variant: str) -> None:
    tokens = Tokens(3, [7, 20, 1, 33], dimensions=128, nbits=2, centroids=9)
    order = np.array([1, 0, 3, 1, 2, 1])
    query = unit(np.random.default_rng(5).standard_normal((19, 128)))
    codec = tokens.codec(variant)
    scores, _, _ = codec.centroid_scores(query)
    arrays = (query, scores, tokens.codes, tokens.residuals)
    once = codec.maxsim(*arrays, tokens.no_norms(), tokens.starts, tokens.lengths)
    mixed = codec.maxsim(*arrays, tokens.no_norms(), tokens.starts[order].copy(), tokens.lengths[order].copy())
    np.testing.assert_array_equal(mixed, once[order])


@every_variant
@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_norms_are_remembered_and_change_nothing(variant: str, nbits: int) -> None:
    tokens = Tokens(8, [7, 0, 300, 33], dimensions=64, nbits=nbits, centroids=9)
    query = unit(np.random.default_rng(5).standard_normal((40, 64)))
    codec = tokens.codec(variant)
    norms = tokens.no_norms()
    arrays = (query, codec.centroid_scores(query)[0], tokens.codes, tokens.residuals, norms)
    part = codec.maxsim(*arrays, tokens.starts[3:].copy(), tokens.lengths[3:].copy())
    vectors = PackedTokens(tokens.codes, tokens.residuals, tokens.centroids, weight_table(tokens.weights))
    expected = 1 / np.linalg.norm(vectors.raw(slice(None)), axis=1)
    assert not norms[:307].any()
    np.testing.assert_allclose(norms[307:], expected[307:], rtol=1e-4)
    first, second = (codec.maxsim(*arrays, tokens.starts, tokens.lengths) for _ in range(2))
    np.testing.assert_allclose(norms, expected, rtol=1e-4)
    np.testing.assert_array_equal(first, second)
    assert first[3] == part[0]


@every_variant
@pytest.mark.parametrize("query_tokens", [4, 31, 32, 33, 512])
@pytest.mark.parametrize("dimensions", [64, 72, 1024])
def test_any_number_of_query_tokens_and_width(variant: str, query_tokens: int, dimensions: int) -> None:
    for nbits in (1, 2, 4, 8):
        tokens = Tokens(dimensions, [130, 1, 40], dimensions=dimensions, nbits=nbits, centroids=5)
        query = unit(np.random.default_rng(query_tokens).standard_normal((query_tokens, dimensions)))
        found, expected = tokens.native(variant, query), tokens.reference(query)
        np.testing.assert_allclose(found, expected, atol=5e-5 * query_tokens)


def test_variants_agree() -> None:
    tokens = Tokens(11, [5, 90, 17], dimensions=128, nbits=2, centroids=30)
    query = unit(np.random.default_rng(1).standard_normal((32, 128)))
    found = {variant: tokens.native(variant, query) for variant in VARIANTS}
    # Tiles round query tokens and residuals, where the others round their products: about as exact, but not the same.
    for variant, scores in found.items():
        exact = {"atol": 5e-6 * len(query)} if variant == "amx" else {"rtol": 1e-6}
        np.testing.assert_allclose(scores, found["portable"], **exact)


@every_variant
@given(seed=st.integers(0, 2**31), lengths=st.lists(st.integers(0, 30), max_size=9), query_tokens=st.integers(1, 70))
@settings(max_examples=40, deadline=None)
def test_approximate_scores_sum_the_best_levels(variant: str, seed: int, lengths: list[int], query_tokens: int) -> None:
    tokens = Tokens(seed, lengths, dimensions=8, nbits=2, centroids=6)
    table = np.zeros((6, -(-query_tokens // 32) * 32), np.uint8)
    table[:, :query_tokens] = np.random.default_rng(seed).integers(0, 256, (6, query_tokens))
    found = tokens.codec(variant).approximate(table, tokens.codes, tokens.starts, tokens.lengths)
    for window, (start, length) in enumerate(zip(tokens.starts, tokens.lengths, strict=True)):
        rows = table[tokens.codes[start : start + length]].astype(np.int64)
        assert found[window] == (rows.max(axis=0).sum() if length else -1)


@every_variant
@pytest.mark.parametrize("query_tokens", [1, 20, 32, 45])
def test_levels_are_the_scores_on_one_scale(variant: str, query_tokens: int) -> None:
    tokens = Tokens(3, [], dimensions=64, nbits=2, centroids=70)
    codec = tokens.codec(variant)
    query = unit(np.random.default_rng(query_tokens).standard_normal((query_tokens, 64)))
    scores, least, most = codec.centroid_scores(query)
    table, used = codec.levels(scores, query_tokens, least, most), scores[:, :query_tokens]
    assert (least, most) == (used.min(), used.max())
    exact = (used - used.min()) * (255 / (used.max() - used.min()))
    assert np.abs(table[:, :query_tokens] - exact).max() <= 0.5001
    assert table.shape == scores.shape and not table[:, query_tokens:].any()
    assert (table[:, :query_tokens].min(), table[:, :query_tokens].max()) == (0, 255)


@every_variant
def test_candidates_are_the_windows_of_the_best_centroids_with_what_the_lists_say(variant: str) -> None:
    random = np.random.default_rng(2)
    tokens = Tokens(2, [], dimensions=8, nbits=2, centroids=40)
    table = np.zeros((40, 32), np.uint8)
    table[:, :5] = np.array([random.permutation(40) for _ in range(5)]).T  # no ties
    lists = [np.sort(random.choice(60, random.integers(0, 6), replace=False)) for _ in range(40)]
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    flat = np.concatenate(lists).astype(np.uint32)
    allowed = random.random(60) < 0.7
    for nprobe in (1, 3, 40, 100):
        best = {c for q in range(5) for c in np.argsort(-table[:, q].astype(int))[:nprobe]}
        expected = {}
        for window in sorted({int(w) for c in best for w in lists[c]}):
            expected[window] = 0
            for q in range(5):
                probed = np.argsort(-table[:, q].astype(int))[:nprobe]
                own = [int(table[c, q]) for c in probed if window in lists[c]]
                expected[window] += max(own) - int(table[probed[-1], q]) if own else 0
        arguments = (table, 5, nprobe, flat, offsets, 60)
        windows, levels, named = tokens.codec(variant).candidates(*arguments, 60)
        assert dict(zip(windows.tolist(), levels.tolist(), strict=True)) == expected
        assert named == len(expected) and windows.tolist() == sorted(expected)
        few = {w: level for w, level in expected.items() if allowed[w]}
        for most in (1, 4, len(few)):
            windows, levels, named = tokens.codec(variant).candidates(*arguments, most, allowed.view(np.uint8))
            kept = sorted(sorted(few, key=lambda w: (-few[w], w))[:most])
            assert windows.tolist() == kept and named == len(few)
            assert levels.tolist() == [few[w] for w in kept]


@every_variant
@pytest.mark.parametrize("centroids", [63, 64, 1000])
def test_probes_are_found_however_many_centroids_there_are(variant: str, centroids: int) -> None:
    """Windows one to a centroid: those that come back are the centroids that were probed."""
    random = np.random.default_rng(centroids)
    tokens = Tokens(2, [], dimensions=8, nbits=2, centroids=centroids)
    table = np.zeros((centroids, 32), np.uint8)
    table[:, :3] = random.integers(0, 256, (centroids, 3)) // random.integers(1, 60, (1, 3))
    lists, offsets = np.arange(centroids, dtype=np.uint32), np.arange(centroids + 1, dtype=np.int64)
    for nprobe in (1, 7, 20, 64, centroids, centroids + 9):
        limits = np.sort(table[:, :3], axis=0)[::-1][min(nprobe, centroids) - 1]
        expected = np.flatnonzero((table[:, :3] >= limits).any(axis=1))
        windows, _, _ = tokens.codec(variant).candidates(table, 3, nprobe, lists, offsets, centroids, centroids)
        np.testing.assert_array_equal(windows, expected)


@every_variant
def test_arrays_that_contradict_each_other_are_refused(variant: str) -> None:
    tokens = Tokens(0, [4, 4], dimensions=16, nbits=2, centroids=3)
    query = unit(np.random.default_rng(0).standard_normal((2, 16)))
    codec = tokens.codec(variant)
    scores, _, _ = codec.centroid_scores(query)
    norms, rest = tokens.no_norms(), (tokens.starts, tokens.lengths)
    with pytest.raises(ValueError, match="not below the number of centroids"):
        codec.maxsim(query, scores, tokens.codes + np.uint32(3), tokens.residuals, norms, *rest)
    with pytest.raises(ValueError, match="outside the tokens"):
        codec.maxsim(query, scores, tokens.codes, tokens.residuals, norms, tokens.starts + 1, tokens.lengths)
    with pytest.raises(ValueError, match="outside the tokens"):
        codec.maxsim(query, scores, tokens.codes, tokens.residuals, norms, tokens.starts, np.array([-1, 4]))
    with pytest.raises(ValueError, match="residuals must be"):
        codec.maxsim(query, scores, tokens.codes, tokens.residuals[:, :2].copy(), norms, *rest)
    with pytest.raises(ValueError, match="inverse_norms"):
        codec.maxsim(query, scores, tokens.codes, tokens.residuals, norms[:3].copy(), *rest)
    with pytest.raises(ValueError, match="centroid_scores"):
        codec.maxsim(query, scores[:2].copy(), tokens.codes, tokens.residuals, norms, *rest)
    with pytest.raises(ValueError, match="does not exist"):
        codec.candidates(
            np.zeros((3, 32), np.uint8), 1, 1, np.array([9], np.uint32), np.array([0, 1, 1, 1], np.int64), 5, 5
        )
    with pytest.raises(ValueError, match="multiple of 8"):
        dispatch.module().Codec(variant, np.ones((2, 12), np.float32), np.zeros(4, np.float32), bucket_table(2))


def test_a_variant_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cannot run"):
        dispatch.module().Codec("sse9", np.ones((2, 8), np.float32), np.zeros(4, np.float32), bucket_table(2))
    monkeypatch.setenv(dispatch.VARIABLE, "sse9")
    with pytest.raises(InputError, match="HYBRID_RETRIEVAL_KERNELS must be auto or one of"):
        dispatch.variant()
    monkeypatch.setenv(dispatch.VARIABLE, "portable")
    assert dispatch.variant() == "portable"


@every_variant
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    m=st.integers(0, 11) | st.sampled_from([31, 33, 130]),
    k=st.sampled_from([4, 28, 64, 384, 576, 1536]),
    n=st.integers(1, 70),
)
def test_dense_is_exact_on_its_levels(variant: str, seed: int, m: int, k: int, n: int) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((m, k)).astype(np.float32)
    if m > 2:
        x[1] = 0
    weight = random.integers(-127, 128, (k, n)).astype(np.int8)
    scale, bias = random.random(n).astype(np.float32), random.standard_normal(n).astype(np.float32)
    found = dispatch.module().dense(variant, x, weight, scale, bias)
    expected = quantised_product(x, weight, scale, bias)
    # The sums and what the least levels add can be much larger than what they come to together.
    added = np.abs(x.min(axis=1, keepdims=True, initial=np.inf) * (weight.sum(axis=0, dtype=np.int64) * scale))
    assert np.all(np.abs(found - expected) <= 2e-6 * np.abs(expected) + 4e-7 * added + 1e-6)


@every_variant
@pytest.mark.parametrize("heads", [HEADS, 1])
def test_trunk_is_a_transformer_whatever_runs_beside_a_sequence(variant: str, heads: int) -> None:
    random = np.random.default_rng(4)
    layers = [layer_arrays(random) for _ in range(2)]
    trunk = dispatch.module().Trunk(variant, HIDDEN, heads, HEADS * SIZE // heads, 1e-12)
    for arrays in layers:
        trunk.add_layer(*arrays)
    lengths = [1, 37, 0, 5, 200, 2]
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    x = random.standard_normal((int(offsets[-1]), HIDDEN)).astype(np.float32)
    found = trunk.run(x, offsets)
    for i, length in enumerate(lengths):
        rows = slice(offsets[i], offsets[i + 1])
        if length:
            expected = x[rows]
            for arrays in layers:
                expected = reference_layer(expected, arrays, heads)
            # A level more or less where a value lies between two: one part in 255 of a row's range.
            np.testing.assert_allclose(found[rows], expected, atol=6e-2)
            assert np.abs(found[rows] - expected).mean() < 4e-3
        alone = trunk.run(x[rows].copy(), np.array([0, length], np.int64))
        np.testing.assert_array_equal(alone, found[rows])


@every_variant
def test_a_trunk_ends_when_time_is_up(variant: str) -> None:
    random = np.random.default_rng(4)
    trunk = dispatch.module().Trunk(variant, HIDDEN, HEADS, SIZE, 1e-12)
    trunk.add_layer(*layer_arrays(random))
    x, offsets = random.standard_normal((9, HIDDEN)).astype(np.float32), np.array([0, 2, 9], np.int64)
    for seconds in (-1.0, -np.inf):
        assert trunk.run(x, offsets, seconds) is None
    np.testing.assert_array_equal(trunk.run(x, offsets, 600.0), trunk.run(x, offsets))
    assert trunk.run(x[:0], np.array([0, 0], np.int64), -1.0).shape == (0, HIDDEN)


@every_variant
def test_product_is_that_of_all_rows(variant: str) -> None:
    random = np.random.default_rng(6)
    for m, n in ((0, 8), (1, 384), (9, 100), (6, 1)):
        x = random.standard_normal((m, 64)).astype(np.float32)
        weight = random.standard_normal((n, 64)).astype(np.float32)
        found = dispatch.module().Projection(variant, weight).product(x)
        np.testing.assert_allclose(found, x @ weight.T, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="x must be"):
        dispatch.module().Projection(variant, weight).product(np.zeros((2, 63), np.float32))


@every_variant
def test_project_gives_unit_rows(variant: str) -> None:
    random = np.random.default_rng(6)
    for m, n in ((0, 8), (1, 8), (9, 100), (6, 128)):
        x = random.standard_normal((m, 64)).astype(np.float32)
        weight = random.standard_normal((n, 64)).astype(np.float32)
        np.testing.assert_allclose(
            dispatch.module().Projection(variant, weight).run(x),
            unit(x @ weight.T) if m else np.empty((0, n)),
            atol=1e-6,
        )
    with pytest.raises(ValueError, match="x must be"):
        dispatch.module().Projection(variant, weight).run(np.zeros((2, 63), np.float32))


@every_variant
def test_trunk_refuses_what_does_not_fit(variant: str) -> None:
    native = dispatch.module()
    arrays = layer_arrays(np.random.default_rng(0))
    trunk = native.Trunk(variant, HIDDEN, HEADS, SIZE, 1e-12)
    with pytest.raises(ValueError, match="qkv must be"):
        trunk.add_layer(*arrays[3:6], *arrays[3:])
    with pytest.raises(ValueError, match="multiple of 32"):
        native.Trunk(variant, HIDDEN, HEADS, 20, 1e-12)
    for heads, size in ((2**59 + 1, SIZE), (HEADS, 2**59 + 32)):  # a product of 64 bits that wraps around
        with pytest.raises(ValueError, match="65,536"):
            native.Trunk(variant, HIDDEN, heads, size, 1e-12)
    trunk.add_layer(*arrays)
    x = np.zeros((3, HIDDEN), np.float32)
    for offsets, message in (([0, 2], "end at"), ([1, 3], "start at 0"), ([0, 3, 2, 3], "never fall")):
        with pytest.raises(ValueError, match=message):
            trunk.run(x, np.array(offsets, np.int64))
    with pytest.raises(ValueError, match="hidden"):
        trunk.run(np.zeros((3, 5), np.float32), np.array([0, 3], np.int64))
