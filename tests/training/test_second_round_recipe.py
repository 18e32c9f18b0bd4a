"""The cross-encoder's second round: what its lists hold, how passages are read in windows, what learns."""

from __future__ import annotations

import gzip
import itertools
import random
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tokenizers import Tokenizer  # noqa: E402

from hybrid_retrieval.corpus.readers import read_corpus  # noqa: E402
from hybrid_retrieval.encoders.convention import TokenWeights  # noqa: E402
from hybrid_retrieval.evaluation.demo_data import demo_corpus  # noqa: E402
from hybrid_retrieval.kernels import dispatch  # noqa: E402
from hybrid_retrieval.model_files import EMBEDDED_FOLDER  # noqa: E402
from hybrid_retrieval.training import code_switching, reranker_recipe, run, upper_recipe  # noqa: E402
from hybrid_retrieval.training import second_round_recipe as recipe  # noqa: E402
from hybrid_retrieval.training.base_weights import BaseModel  # noqa: E402
from hybrid_retrieval.training.data import END, Pair  # noqa: E402
from hybrid_retrieval.training.loop import Course  # noqa: E402
from hybrid_retrieval.training.modules import CrossEncoder, Trunk  # noqa: E402

native = pytest.mark.skipif(dispatch.variant() == dispatch.NUMPY, reason="needs the compiled kernels")


def test_every_file_is_one_that_the_encoder_left_questions_of() -> None:
    assert set(recipe.FILES) <= set(upper_recipe.SHARES)
    stated = upper_recipe.STATED_OTHERS[1] + sum(limit for _, limit in upper_recipe.STATED.values())
    learned = {name: limit for name, (_, limit) in upper_recipe.FILES.items()} | {"stated": stated}
    for name, use in recipe.FILES.items():
        assert use.unseen + use.seen > 0 and use.seen <= learned.get(name, 0)
        assert (use.versions > 0) == (use.switched_share > 0)


@pytest.mark.parametrize("length", [1, 180, 181, 330, 381])
def test_a_passage_is_read_in_windows_of_a_pair(length: int) -> None:
    query, passage = list(range(10, 42)), list(range(100, 100 + length))
    rows = recipe.windows(query, passage)
    assert len(rows) <= recipe.WINDOWS and all(len(row) <= recipe.ROOM for row in rows)
    start = [0, *query, END, END]
    assert all(row[: len(start)] == start and row[-1] == END for row in rows)
    read = {token for row in rows for token in row[len(start) : -1]}
    assert read == set(passage[: len(read)]) and (len(read) == length or len(rows) == recipe.WINDOWS)
    assert len(rows) == 1 or len(set(rows[0][len(start) : -1]) & set(rows[1][len(start) : -1])) >= recipe.OVERLAP


@native
def test_lists_hold_the_own_passage_and_the_best_that_do_not_answer() -> None:
    tokenizer = Tokenizer.from_str(gzip.decompress((EMBEDDED_FOLDER / "tokenizer.json.gz").read_bytes()).decode())
    texts = [passage.text for passage in itertools.islice(read_corpus(demo_corpus()), 30)]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    pairs = [Pair(row[:14], row, key) for key, row in enumerate(ids)]
    pairs.append(Pair(ids[0][:14], ids[1], 1))  # the first question has two passages
    lexicon: code_switching.Lexicon = {"the": [("der", 1.0)], "of": [("von", 1.0)], "in": [("bei", 1.0)]}
    lexicons = dict.fromkeys(code_switching.LANGUAGES, lexicon)
    weights = TokenWeights((0.0,) * 256, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_switching, "SWITCHED", 0.1)
        lists = recipe.gather(
            EMBEDDED_FOLDER,
            weights,
            {"tydiqa-en": (pairs, pairs[:12]), "jaquad": ([], [])},
            lexicons,
            tokenizer,
            seed=0,
            threads=1,
        )
    assert sum(name == "tydiqa-en" for name in lists.files) == len(pairs) + 12
    switched = [i for i, name in enumerate(lists.files) if name == recipe.switched_file("tydiqa-en")]
    assert switched and all("der" in tokenizer.decode(lists.questions[i]).split() for i in switched[:3])
    assert 0 < sum(lists.unseen) < len(lists.unseen)
    for question, name in enumerate(lists.files):
        ranked, scores = lists.ranked[question], lists.maxsim[question]
        assert len(set(ranked)) == len(ranked) == len(scores)
        assert len(ranked) == 1 + recipe.DEPTH if lists.unseen[question] else recipe.FEWEST < len(ranked) <= 12
        assert scores[1:] == sorted(scores[1:], reverse=True)
        if name == "tydiqa-en":
            own = lists.passages[ranked[0]]
            if lists.questions[question] == ids[0][:14]:
                others = [lists.passages[j] for j in ranked[1:]]
                assert own in (ids[0][: recipe.PASSAGE_TOKENS], ids[1][: recipe.PASSAGE_TOKENS])
                assert not {tuple(ids[0][: recipe.PASSAGE_TOKENS])} & {tuple(other) for other in others}
            else:
                assert own[: len(lists.questions[question])] == lists.questions[question]


def _lists() -> recipe.Lists:
    draw = random.Random(1)
    passages = [[draw.randrange(4, 50) for _ in range(draw.randrange(5, 30))] for _ in range(40)]
    count = 8
    return recipe.Lists(
        files=["squad_train", recipe.switched_file("squad_train")] * (count // 2),
        questions=[[draw.randrange(4, 50) for _ in range(4)] for _ in range(count)],
        ranked=[draw.sample(range(40), 8) for _ in range(count)],
        maxsim=[[0.5, *sorted((draw.random() for _ in range(7)), reverse=True)] for _ in range(count)],
        unseen=[False, True] * (count // 2),
        passages=passages,
    )


def test_the_best_window_of_a_passage_counts(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "ROOM", 20)
    monkeypatch.setattr(recipe, "OVERLAP", 4)
    torch.manual_seed(0)
    model = CrossEncoder(Trunk(base)).eval()
    query, passage = [5, 6, 7], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25]
    rows = recipe.windows(query, passage)
    assert len(rows) == 2
    with torch.no_grad():
        alone = [model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)).item() for row in rows]
        found = recipe.logits(model, [(query, passage), (query, passage[:9])], half=False)
    assert found[0].item() == pytest.approx(max(alone), abs=1e-4) and alone[0] != alone[1]


@pytest.mark.parametrize("half", [False, True])
def test_only_the_upper_layers_and_the_head_learn(
    half: bool, base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reranker_recipe, "FROZEN", 2)
    torch.manual_seed(0)
    model = CrossEncoder(Trunk(base))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoint = tmp_path / "ckpt"
    assert recipe.train_second_round(model, _lists(), Course(3, checkpoint, resume=False, half=half))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("trunk.layers.2.", "dense.", "out.", "gate.", "scale")) for name in changed)
    assert {"scale", "trunk.layers.2.fo.weight", "out.weight", "gate.weight"} <= changed


def test_half_of_the_questions_that_the_encoder_answers_easily_are_kept() -> None:
    lists = _lists()
    easy = recipe.Lists(
        ["squad_train"] * 400, [[5]] * 400, [list(range(8))] * 400, [[0.9, *np.linspace(0.5, 0.4, 7)]] * 400,
        [True] * 400, lists.passages,
    )  # fmt: skip
    assert 160 <= len(recipe._by_file(easy, random.Random(0))["squad_train"]) <= 240
    hard = recipe.Lists(
        ["squad_train"] * 9, [[5]] * 9, [list(range(8))] * 9, [[0.4, *np.linspace(0.5, 0.4, 7)]] * 9,
        [True] * 9, lists.passages,
    )  # fmt: skip
    assert len(recipe._by_file(hard, random.Random(0))["squad_train"]) == 9


def test_a_second_round_of_another_first_is_not_gone_on_from(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is drawn or mined here: the lists are made up."""
    monkeypatch.setattr(reranker_recipe, "FROZEN", 2)
    monkeypatch.setattr(run, "_second_round_sources", lambda setting: {})
    monkeypatch.setattr(code_switching, "learn", lambda *args, **more: {})
    monkeypatch.setattr(recipe, "gather", lambda *args, **more: _lists())
    (tmp_path / "encoder.safetensors").write_bytes(b"weights")
    (tmp_path / "encoder.json").write_text('{"query": {"weights": {"direction": [0.0], "bias": 0.0}}}')
    tokenizer = Tokenizer.from_str(gzip.decompress((EMBEDDED_FOLDER / "tokenizer.json.gz").read_bytes()).decode())

    def trained(bias: float) -> dict[str, torch.Tensor]:
        setting = run.Setting(
            base, tokenizer, tmp_path, tmp_path, tmp_path, work=tmp_path, out=tmp_path, half=False, seed=0, threads=1,
            resume=True,
        )  # fmt: skip
        torch.manual_seed(0)
        model = CrossEncoder(Trunk(base))
        with torch.no_grad():
            model.dense.bias.fill_(bias)
        assert run._second_round(setting, model, 2)
        return model.state_dict()

    one, other, again = trained(0.0), trained(1.0), trained(1.0)
    assert not torch.allclose(one["dense.bias"], other["dense.bias"], atol=0.5)
    assert all(torch.equal(other[name], again[name]) for name in other)
