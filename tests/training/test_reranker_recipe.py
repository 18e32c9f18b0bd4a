"""The cross-encoder's training: how negatives are mined, what learns, and what its export shares with the encoder's."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from tokenizers import Tokenizer  # noqa: E402

from hybrid_retrieval import Reranker  # noqa: E402
from hybrid_retrieval.corpus.readers import read_corpus  # noqa: E402
from hybrid_retrieval.encoders.convention import TokenWeights  # noqa: E402
from hybrid_retrieval.errors import ModelError  # noqa: E402
from hybrid_retrieval.evaluation.demo_data import demo_corpus  # noqa: E402
from hybrid_retrieval.kernels import dispatch  # noqa: E402
from hybrid_retrieval.model_files import EMBEDDED_FOLDER  # noqa: E402
from hybrid_retrieval.rerankers.loading import load_parts  # noqa: E402
from hybrid_retrieval.rerankers.pairs import PairConvention  # noqa: E402
from hybrid_retrieval.training import data, run  # noqa: E402
from hybrid_retrieval.training import reranker_recipe as recipe  # noqa: E402
from hybrid_retrieval.training.base_weights import BaseModel  # noqa: E402
from hybrid_retrieval.training.data import END, PASSAGE_PREFIX, QUERY_PREFIX, Pair, wrap  # noqa: E402
from hybrid_retrieval.training.export import write_encoder, write_reranker  # noqa: E402
from hybrid_retrieval.training.exported import ExportedEncoder, exported_state  # noqa: E402
from hybrid_retrieval.training.modules import STIFFNESS, CrossEncoder, Encoder, Trunk  # noqa: E402
from hybrid_retrieval.training.run import ENCODER, RERANKER, arrays  # noqa: E402

LAYERS, HIDDEN, INNER, VOCABULARY = 3, 64, 96, 50
DIMENSIONS = 32
native = pytest.mark.skipif(dispatch.variant() == dispatch.NUMPY, reason="needs the compiled kernels")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    tensors = {"emb.pos": normal(80, HIDDEN), "emb.type": normal(HIDDEN)}
    norms = ["emb.ln", *(f"l{i}.{name}" for i in range(LAYERS) for name in ("aln", "oln"))]
    for name in norms:
        tensors |= {f"{name}.w": np.ones(HIDDEN, np.float32), f"{name}.b": np.zeros(HIDDEN, np.float32)}
    for i in range(LAYERS):
        for name in ("q", "k", "v", "ao", "fi", "fo"):
            rows, columns = {"fi": (INNER, HIDDEN), "fo": (HIDDEN, INNER)}.get(name, (HIDDEN, HIDDEN))
            tensors |= {f"l{i}.{name}.w": normal(rows, columns), f"l{i}.{name}.b": normal(rows)}
    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")] + [(chr(97 + i), -1.0) for i in range(26)]
    return BaseModel(
        hidden=HIDDEN, layers=LAYERS, heads=2, inner=INNER, epsilon=1e-12,
        embedding_codes=random.integers(0, 16, (VOCABULARY, HIDDEN)).astype(np.uint8),
        embedding_scales=np.full((VOCABULARY, HIDDEN // 32), 0.1, np.float16), pieces=pieces,
        special_ids={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}, tensors=tensors,
    )  # fmt: skip


def cross_encoder(base: BaseModel) -> CrossEncoder:
    random = np.random.default_rng(3)
    return CrossEncoder(Encoder(Trunk(base), DIMENSIONS), random.standard_normal(DIMENSIONS).tolist(), 0.5)


def test_pairs_are_taken_in_blocks_of_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "POOL", 4)
    pairs = [Pair([5], [6], key) for key in (0, 1, 1, 2, 3, 3, 4, 5, 6, 7, 8)]
    assert [[p.passage_key for p in block] for block in recipe.blocks(pairs)] == [[0, 1, 1, 2, 3, 3], [4, 5, 6, 7, 8]]


@pytest.fixture(scope="module")
def asked() -> list[Pair]:
    """The demo's first passages, each with its own beginning as a question."""
    tokenizer = Tokenizer.from_str(gzip.decompress((EMBEDDED_FOLDER / "tokenizer.json.gz").read_bytes()).decode())
    texts = [passage.text for passage in itertools.islice(read_corpus(demo_corpus()), 24)]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    return [Pair(row[:12], row, key) for key, row in enumerate(ids)]


@native
def test_negatives_are_other_passages_near_the_question(asked: list[Pair]) -> None:
    mined = recipe.mine(ExportedEncoder(EMBEDDED_FOLDER, threads=1), asked, recipe.answers(asked))
    assert [found.pair.passage_key for found in mined] == list(range(24))
    for found in mined:
        own, *keys = (passage.passage_key for passage in found.passages)
        assert own == found.pair.passage_key not in keys
        assert len(set(keys)) == len(keys) == recipe.DEPTH
        assert found.scores[1:] == sorted(found.scores[1:], reverse=True)


@native
def test_no_other_answer_is_a_negative(asked: list[Pair]) -> None:
    """Nor one that reads the same once it is cut."""
    question = asked[0].query
    longer = [*asked[0].passage * 9]
    pairs = [
        Pair(question, longer, 0),
        Pair(question, asked[1].passage, 1),
        Pair([9, 9], [*longer, 5], 50),
        *asked[2:],
    ]
    mined = recipe.mine(ExportedEncoder(EMBEDDED_FOLDER, threads=1), pairs, recipe.answers(pairs))
    for found in mined[:2]:
        own, *keys = (passage.passage_key for passage in found.passages)
        assert not {0, 1} & set(keys)
        assert (50 in keys) == (own != 0)


@native
def test_lists_hold_what_the_encoder_was_given_and_less_of_what_is_easy(
    asked: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = recipe.gather(EMBEDDED_FOLDER, {"jaquad": asked[:20], "medquad": []}, seed=0, threads=1)
    assert 0 < len(lists.files) < 20  # a passage's beginning finds it easily
    monkeypatch.setattr(recipe, "EASY", np.inf)
    lists = recipe.gather(EMBEDDED_FOLDER, {"jaquad": asked[:20]}, seed=0, threads=1)
    assert lists.files == ["jaquad"] * 20 and len(lists.passages) == 20
    for pair, query, ranked, scores in zip(asked, lists.queries, lists.ranked, lists.scores, strict=False):
        assert query == [*QUERY_PREFIX, *pair.query, END]
        assert lists.passages[ranked[0]] == wrap(PASSAGE_PREFIX, pair.passage, recipe.PASSAGE_TOKENS)
        assert len(ranked) == len(scores) == 1 + recipe.DEPTH


def test_the_cross_encoder_begins_as_the_encoder_s_weighted_maxsim(base: BaseModel) -> None:
    direction = np.random.default_rng(3).standard_normal(DIMENSIONS).tolist()
    model = CrossEncoder(Encoder(Trunk(base), DIMENSIONS), direction, 0.5)
    ids = torch.tensor([[*QUERY_PREFIX[:1], 5, 6, 7, END, *PASSAGE_PREFIX[:1], 8, 9, 10, 11, END]])
    states = torch.randn(1, ids.shape[1], HIDDEN)
    vectors = torch.nn.functional.normalize(model.projection(states), dim=-1)[0].detach().numpy()
    weights = TokenWeights(tuple(direction), 0.5)
    expected = 30 * (weights.scaled(vectors[:4]) @ vectors[5:10].T).max(axis=1).mean()
    assert model.logits(states, ids).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("backend", ["onnx", pytest.param("native", marks=native)])
def test_exported_it_gives_the_logits_of_the_module(backend: str, base: BaseModel, tmp_path: Path) -> None:
    """Without layers, which int8 would change; with an end within the query or the passage too."""
    torch.manual_seed(1)
    model = cross_encoder(bare := dataclasses.replace(base, layers=0))
    for parameter in (model.out.weight, model.out.bias, model.dense.bias):
        torch.nn.init.normal_(parameter)
    write_reranker(bare, arrays(model), tmp_path, {**RERANKER, "prefix_ids": [0, 4], "middle_ids": [END, 0, 5]})
    parts = load_parts(tmp_path, backend=backend, device="cpu", dtype="auto", threads=2, max_tokens=0)
    texts = [([6, 7, 8], [9, 10, 11, 12]), ([6], []), ([6, END, 7], [9, 10]), ([7, 8, 9, 10, 11], [12, END, 6, 13])]
    ids, mask = data.pad([[0, 4, *query, END, 0, 5, *passage, END] for query, passage in texts])
    with torch.no_grad():
        expected = model(ids, mask).numpy()
    assert expected.std() > 0.5
    np.testing.assert_allclose(parts["backend"].forward(ids.numpy(), mask.numpy(), None), expected, rtol=1e-4)


@native
def test_a_head_that_does_not_fit_is_refused(base: BaseModel, tmp_path: Path) -> None:
    state = arrays(cross_encoder(base))
    description = {**RERANKER, "prefix_ids": [0], "middle_ids": [END, 0]}
    write_reranker(base, {**state, "gate.weight": np.zeros((1, HIDDEN), np.float32)}, tmp_path, description)
    with pytest.raises(ModelError, match=r"gate.weight must be \[1, 32\].*got \[1, 64\]"):
        Reranker.load(str(tmp_path), backend="native")
    path = tmp_path / "reranker.json"
    told = json.loads(path.read_text(encoding="utf-8")) | {"middle_ids": []}
    path.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ModelError, match="middle_ids"):
        Reranker.load(str(tmp_path), backend="native")


def test_pairs_are_joined_as_the_two_texts_were_wrapped(base: BaseModel, tmp_path: Path) -> None:
    write_reranker(base, arrays(cross_encoder(base)), tmp_path, RERANKER)
    told = json.loads((tmp_path / "reranker.json").read_text(encoding="utf-8"))
    joined = PairConvention.from_dict(told, "reranker.json").join([7, 8], [9])
    assert joined.tolist() == wrap(QUERY_PREFIX, [7, 8], 99) + wrap(PASSAGE_PREFIX, [9], 99)


@pytest.mark.parametrize("half", [False, True])
def test_only_the_upper_layers_and_the_head_learn(
    half: bool, base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "FROZEN", 2)
    random = np.random.default_rng(1)
    questions, depth = 6, 2 + recipe.NEGATIVES
    lists = recipe.Lists(
        ["jaquad"] * 4 + ["medquad"] * 2,
        [[0, *random.integers(4, 50, 3).tolist(), END] for _ in range(questions)],
        [[0, *random.integers(4, 50, 9).tolist(), END] for _ in range(questions * depth)],
        [list(range(i * depth, (i + 1) * depth)) for i in range(questions)],
        [random.random(depth).tolist() for _ in range(questions)],
    )
    torch.manual_seed(0)
    model = cross_encoder(base)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert recipe.train_reranker(model, lists, steps=3, checkpoint=tmp_path / "ckpt", resume=False, half=half)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(n.startswith(("trunk.layers.2.", "dense.", "out.", "gate.", "scale", "projection.")) for n in changed)
    assert {"scale", "trunk.layers.2.fo.weight", "out.weight", "gate.weight", "projection.weight"} <= changed


def test_layers_that_both_models_have_in_common_are_stored_once(base: BaseModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder, model = Encoder(Trunk(base), DIMENSIONS), cross_encoder(base)
    torch.nn.init.normal_(model.out.weight)
    with torch.no_grad():
        model.trunk.layers[2].fi.weight += 0.1
        encoder.trunk.layers[2].fi.weight -= 0.1
    description = {**RERANKER, "prefix_ids": [0], "middle_ids": [END, 0]}  # the small vocabulary has no others
    write_reranker(base, arrays(model), tmp_path / "alone", description)
    write_encoder(base, arrays(encoder), tmp_path / "both", ENCODER)
    write_reranker(base, arrays(model), tmp_path / "both", description)
    sizes = [(tmp_path / name / "reranker.safetensors").stat().st_size for name in ("alone", "both")]
    assert sizes[1] < 0.6 * sizes[0]
    trunk = json.loads((tmp_path / "both" / "reranker.json").read_text(encoding="utf-8"))["trunk"]
    assert trunk["shared"] == "encoder.safetensors"
    backends = ["onnx", *(["native"] if dispatch.variant() != dispatch.NUMPY else [])]
    for backend in backends:
        alone, both = (Reranker.load(str(tmp_path / name), backend=backend) for name in ("alone", "both"))
        pairs = [("abc", "abd xyz"), ("hello", "hello there")]
        np.testing.assert_array_equal(alone.score(pairs), both.score(pairs))


def test_mined_lists_are_kept_for_the_same_encoder_and_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = recipe.Lists(["jaquad"], [[0, 5, END]], [[0, 6, END]], [[0]], [[0.5]])
    mined: list[int] = []

    def gather(encoder: Path, sources: object, *, seed: int, threads: int) -> recipe.Lists:
        mined.append(seed)
        return found

    monkeypatch.setattr(recipe, "gather", gather)
    (tmp_path / "encoder.safetensors").write_bytes(b"weights")
    told = {"dimensions": 2, "query": {"weights": {"direction": [1.0, 2.0], "bias": 0.0}}}
    (tmp_path / "encoder.json").write_text(json.dumps(told), encoding="utf-8")
    sources = {"jaquad": [Pair([5], [6], 0)]}
    path = tmp_path / "lists.json"
    digests: set[str] = set()
    for seed, count in ((0, 1), (0, 1), (1, 2), (1, 2)):
        lists, made_of = run._lists(path, tmp_path, sources, seed=seed, threads=1)
        digests.add(made_of)
        assert lists == found and len(mined) == len(digests) == count
    (tmp_path / "encoder.safetensors").write_bytes(b"others")
    digests.add(run._lists(path, tmp_path, sources, seed=1, threads=1)[1])
    told["query"]["weights"]["bias"] = 1.0
    (tmp_path / "encoder.json").write_text(json.dumps(told), encoding="utf-8")
    digests.add(run._lists(path, tmp_path, sources, seed=1, threads=1)[1])
    assert len(mined) == len(digests) == 4


def test_an_exported_encoder_exported_again_gives_the_same_file(base: BaseModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = {"direction": np.linspace(-2, 2, DIMENSIONS).tolist(), "bias": 0.5}
    description = {**ENCODER, "query": {**ENCODER["query"], "weights": weights}}
    write_encoder(base, arrays(Encoder(Trunk(base), DIMENSIONS)), tmp_path / "first", description)
    model = run._started_as(tmp_path / "first", base)
    again = exported_state(tmp_path / "first")
    write_encoder(base, again, tmp_path / "second", description)
    first, second = ((tmp_path / name / "encoder.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    np.testing.assert_array_equal(model.projection.weight.detach(), again["projection.weight"])
    np.testing.assert_allclose(STIFFNESS * model.gate.weight.detach()[0], weights["direction"], rtol=1e-6)
    assert STIFFNESS * model.gate.bias.item() == weights["bias"]
