"""The cross-encoder's second round: what it starts from, what it asks, and what learns."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from tokenizers import Tokenizer  # noqa: E402

from hybrid_retrieval import Encoder  # noqa: E402
from hybrid_retrieval.kernels import dispatch  # noqa: E402
from hybrid_retrieval.model_files import EMBEDDED_FOLDER  # noqa: E402
from hybrid_retrieval.training import modules, reranker_recipe  # noqa: E402
from hybrid_retrieval.training import second_round_recipe as recipe  # noqa: E402
from hybrid_retrieval.training.base_weights import BaseModel  # noqa: E402
from hybrid_retrieval.training.data import Pair  # noqa: E402
from hybrid_retrieval.training.export import write_encoder, write_reranker  # noqa: E402
from hybrid_retrieval.training.exported import ExportedEncoder, exported_reranker  # noqa: E402
from hybrid_retrieval.training.modules import CrossEncoder, Trunk  # noqa: E402
from hybrid_retrieval.training.reranker_recipe import Found  # noqa: E402
from hybrid_retrieval.training.run import ENCODER, RERANKER, arrays  # noqa: E402


@pytest.mark.parametrize("shared", [False, True])
def test_an_exported_model_is_read_back(shared: bool, base: BaseModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CrossEncoder(Trunk(base))
    torch.nn.init.normal_(model.out.weight)
    if shared:
        write_encoder(base, arrays(modules.Encoder(Trunk(base), 32)), tmp_path, ENCODER)
    write_reranker(base, arrays(model), tmp_path, RERANKER)
    state = exported_reranker(tmp_path)
    assert state.keys() == arrays(model).keys()
    for name, value in arrays(model).items():
        assert state[name].shape == value.shape
        spread = np.abs(value).max(axis=-1, keepdims=True) / 127 if name.endswith("weight") and value.ndim == 2 else 0
        assert (np.abs(state[name] - value) <= 0.51 * spread + 1e-7).all(), name
    again = tmp_path / "again"
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    if shared:
        write_encoder(base, arrays(modules.Encoder(Trunk(base), 32)), again, ENCODER)
    write_reranker(base, arrays(model), again, RERANKER)
    for name, value in exported_reranker(again).items():
        np.testing.assert_allclose(value, state[name], rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(dispatch.variant() == dispatch.NUMPY, reason="token vectors come from the native kernels")
def test_queries_are_weighed_as_in_search() -> None:
    encoder = Encoder.load("embedded")
    texts = ["Who wrote the first dictionary of the language?", "如何种植番茄?"]
    tokenizer = Tokenizer.from_str(gzip.decompress((EMBEDDED_FOLDER / "tokenizer.json.gz").read_bytes()).decode())
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    found = ExportedEncoder(EMBEDDED_FOLDER, threads=1).queries(ids, 64)
    for vectors, expected in zip(found, encoder.encode_queries(texts), strict=True):
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_blocks_hold_so_many_passages_and_every_pair_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "POOL", 4)
    pairs = [Pair([5, i], [6, i // 2], i // 2) for i in range(21)]
    blocks = recipe.blocks(pairs)
    assert [pair for block in blocks for pair in block] == pairs
    assert [len({pair.passage_key for pair in block}) for block in blocks] == [4, 4, 3]
    assert [len({pair.passage_key for pair in block}) for block in recipe.blocks(pairs[:17])] == [4, 5]


def test_easy_questions_are_thinned_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(encoder: object, pairs: list[Pair], *, questions: int) -> list[Found]:
        return [Found(pair, pairs[:4], [3.0 if pair.query[1] % 2 else 1.2, 1.0, 1.1, 0.9]) for pair in pairs]

    monkeypatch.setattr(recipe, "mine", mine)
    monkeypatch.setattr(recipe, "ExportedEncoder", lambda folder, threads: None)
    pairs = [Pair([5, i], [6, i], i) for i in range(200)]
    lists = recipe.gather(tmp_path, {"squad_train": (pairs, 200)}, seed=0, threads=1)
    easy = [query for query in lists.queries if query[1] % 2]
    assert 0.2 < len(easy) / 100 < 0.5 and len(lists.queries) - len(easy) == 100
    assert len(lists.passages) == 4 and lists.ranked == [[0, 1, 2, 3]] * len(lists.queries)
    np.testing.assert_allclose(np.mean(lists.scores, axis=1), 0, atol=1e-3)
    np.testing.assert_allclose(np.std(lists.scores, axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("half", [False, True])
def test_it_learns_what_the_first_stage_gets_wrong(
    half: bool, base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own passages repeat their question's tokens, and stage 1 ranks them last."""
    monkeypatch.setattr(reranker_recipe, "FROZEN", 2)
    random = np.random.default_rng(1)
    queries = [random.integers(6, 50, 4).tolist() for _ in range(12)]
    own = [query * 2 for query in queries]
    others = [random.integers(6, 50, 8).tolist() for _ in range(12)]
    ranked = [[i, *(12 + (i + j) % 12 for j in range(5))] for i in range(12)]
    lists = recipe.Lists(
        ["squad_train"] * 8 + ["medquad"] * 4, queries, own + others, ranked, [[-1.5, *[0.3] * 5]] * 12
    )
    torch.manual_seed(0)
    model = CrossEncoder(Trunk(base))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lines: list[dict[str, float]] = []
    train = recipe.train

    def watched(model: object, step, **settings):  # type: ignore[no-untyped-def]
        def told(i: int):  # type: ignore[no-untyped-def]
            loss, figures = step(i)
            lines.append(figures)
            return loss, figures

        return train(model, told, **settings)

    monkeypatch.setattr(recipe, "train", watched)
    told = {"checkpoint": tmp_path / "ckpt", "resume": False, "half": half}
    assert recipe.train_second_round(model, lists, steps=60, **told)
    fused = [line["fused"] for line in lines]
    assert lines[-1]["prior_hit"] == 0 and np.mean(fused[-5:]) < np.mean(fused[:5]) - 0.05
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.startswith(("trunk.layers.2.", "dense.", "out.", "gate.", "scale")) for name in changed)
    assert {"scale", "trunk.layers.2.fo.weight", "out.weight", "gate.weight"} <= changed
