"""What the steps of the upper layers' training see, and the turn of the projection, on made-up states."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hybrid_retrieval.training.states import States  # noqa: E402
from hybrid_retrieval.training.upper_recipe import GROUP, PAIRS, Draws, Material, rotated  # noqa: E402

FILES = ["squad_train"] * 60 + ["medquad"] * 7
LANGUAGES = ["ara", "cmn", "spa"] * 4


@pytest.fixture(scope="module")
def material() -> Material:
    """67 pairs over 40 passages, of which two answer the first question; twelve sentences; texts of one to five
    tokens."""
    random = np.random.default_rng(0)
    passage_of = np.arange(len(FILES)) % 40
    lengths = random.integers(1, 6, len(FILES) + 40 + 4 * len(LANGUAGES))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    data = random.standard_normal((int(offsets[-1]), 8)).astype(np.float16)
    answers = [{passage} for passage in passage_of.tolist()]
    answers[0] = {0, 1}
    return Material(States(data, data, offsets), FILES, passage_of, answers, 40, LANGUAGES)


def test_texts_are_numbered_without_gap_or_overlap(material: Material) -> None:
    numbers = {material.query(i) for i in range(len(FILES))}
    numbers |= {material.passage(i) for i in range(len(FILES))}
    numbers |= {material.sentence(i, side) for i in range(len(LANGUAGES)) for side in range(4)}
    assert numbers == set(range(len(material.states.offsets) - 1))


def test_a_step_has_distinct_passages_of_one_file_and_depends_on_its_number(material: Material) -> None:
    draws = Draws(material, seed=3)
    seen = set()
    for i in range(30):
        name, pairs, sentences = draws.step(i)
        assert (name, pairs, sentences) == Draws(material, seed=3).step(i)
        assert {FILES[pair] for pair in pairs} == {name}
        passages = material.passage_of[pairs]
        assert len(set(passages)) == len(passages)
        assert not (0 in pairs and 1 in passages)
        assert len(pairs) == (PAIRS if name == "squad_train" else 7)
        assert len(pairs) >= min(GROUP, 7)
        assert sentences == sorted(set(sentences)) and set(sentences) <= set(range(len(LANGUAGES)))
        seen.add((name, *pairs))
    assert len(seen) > 20
    assert [Draws(material, seed=4).step(i) for i in range(5)] != [draws.step(i) for i in range(5)]


def test_a_turned_projection_keeps_every_similarity() -> None:
    states = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    encoder = SimpleNamespace(projection=torch.nn.Linear(12, 8, bias=False))
    with torch.no_grad():
        before = encoder.projection(states)
        after = rotated(encoder, seed=1).projection(states)  # type: ignore[arg-type]
        torch.testing.assert_close(after @ after.T, before @ before.T, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(after, before, atol=0.1)
