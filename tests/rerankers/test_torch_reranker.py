"""The torch backend on sequence classifiers, and their ONNX export."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval import Reranker
from hybrid_retrieval.batching import pad
from hybrid_retrieval.checkpoints import longest_input
from hybrid_retrieval.errors import InputError, ModelError
from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.rerankers.export import export_reranker
from hybrid_retrieval.time_limits import OutOfTime
from tests.parity.checkpoints import bert_tokenizer_json, make_bert_reranker, make_xlmr_reranker, xlmr_tokenizer_json

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hybrid_retrieval.rerankers.torch_backend import TorchRerankerBackend, torch_parts  # noqa: E402

MAKERS = {"xlmr": make_xlmr_reranker, "bert": make_bert_reranker}
PAIRS = [
    ("who wrote it", "the game was played in the city on the river"),
    ("why", "why"),
    ("how many people were there", "they were part of the team " * 20),
    ("когда", "в городе было много людей"),
]


@pytest.fixture(scope="module", params=list(MAKERS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MAKERS[request.param](tmp_path_factory.mktemp("checkpoint"))


def test_the_float32_export_computes_the_same_for_any_batch_and_length(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    checkpoint = make_bert_reranker(tmp_path / "checkpoint")
    worst = export_reranker(checkpoint, tmp_path / "out")
    assert 0 <= worst < 1e-4
    source, export = Reranker.load(str(checkpoint), device="cpu"), Reranker.load(str(tmp_path / "out"))
    for pairs in (PAIRS, PAIRS[:1], PAIRS[2:]):
        np.testing.assert_allclose(export.score(pairs), source.score(pairs), atol=1e-4)
    for name in ("name", "identity", "tokenizer_identity", "max_tokens", "max_query_tokens", "fusion_weight"):
        assert getattr(export, name) == getattr(source, name), name
    description = json.loads((tmp_path / "out" / "reranker.json").read_text("utf-8"))
    assert (description["format"], description["kind"], description["dtype"]) == (1, "reranker", "float32")
    assert description["token_types"] is True
    assert Reranker.load(str(tmp_path / "out"), max_tokens=592).max_tokens == 592


def test_the_int8_export_is_close(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    checkpoint = make_xlmr_reranker(tmp_path / "checkpoint")
    assert export_reranker(checkpoint, tmp_path / "out", dtype="int8") > 0
    expected = Reranker.load(str(checkpoint), device="cpu").score(PAIRS)
    found = Reranker.load(str(tmp_path / "out"), dtype="int8").score(PAIRS)
    assert np.abs(found - expected).max() < 0.25 * (1 + np.abs(expected).max())
    with pytest.raises(InputError, match="not empty"):
        export_reranker(checkpoint, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file: name a new folder"):
        export_reranker(checkpoint, tmp_path / "file", dtype="int8")


def test_alone_and_in_a_batch_the_logit_is_the_same(checkpoint: Path) -> None:
    reranker = Reranker.load(str(checkpoint), device="cpu")
    together = reranker.score(PAIRS)
    np.testing.assert_allclose([reranker.score([pair])[0] for pair in PAIRS], together, atol=1e-5)
    assert np.ptp(together) > 0.01


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_to_float32(checkpoint: Path, dtype: Any) -> None:
    expected = Reranker.load(str(checkpoint), device="cpu").score(PAIRS)
    found = Reranker.load(str(checkpoint), device="cpu", dtype=dtype).score(PAIRS)
    np.testing.assert_allclose(found, expected, atol=0.15)
    assert found.dtype == np.float32 and np.any(found != expected)


def test_float8_is_close_to_float32(checkpoint: Path) -> None:
    expected = Reranker.load(str(checkpoint), device="cpu").score(PAIRS)
    coarse = Reranker.load(str(checkpoint), device="cpu", dtype="float8")
    found = coarse.score(PAIRS)
    np.testing.assert_allclose(found, expected, atol=0.3)
    assert found.dtype == np.float32 and np.isfinite(found).all()
    half = Reranker.load(str(checkpoint), device="cpu", dtype="bfloat16").score(PAIRS)
    assert np.abs(found - half).max() > 1e-4  # it is not bfloat16 under another name
    np.testing.assert_array_equal([coarse.score([pair])[0] for pair in PAIRS], found)


def test_a_float8_product_is_that_of_its_rounded_numbers() -> None:
    from hybrid_retrieval.rerankers.unpadded import Float8Linear

    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48).to(torch.bfloat16)
    x = torch.randn(5, 64).to(torch.bfloat16) * torch.tensor([[1], [100], [0.01], [0], [3]]).to(torch.bfloat16)
    found = Float8Linear(linear)(x)

    def rounded(rows: Any) -> Any:
        scale = rows.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / 448
        return (rows / scale).to(torch.float8_e4m3fn).float() * scale

    with torch.no_grad():
        expected = rounded(x) @ rounded(linear.weight).T + linear.bias.float()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def test_every_device_works_on_a_batch_of_its_own(checkpoint: Path) -> None:
    """Two copies on a processor stand for two cards: they run side by side, and give one copy's logits."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(checkpoint))
    reranker = Reranker.load(str(checkpoint), device="cpu", batch_tokens=64, cached_pairs=0)
    expected = reranker.score(PAIRS * 5)
    twice = TorchRerankerBackend(model, device="cpu", dtype="float32", threads=0, devices=[torch.device("cpu")] * 2)
    assert (twice.devices, reranker.scorer.backend.devices) == (2, 1)
    both, run = threading.Barrier(2, timeout=30), twice._unpadded

    def met(*arguments: Any) -> Any:
        nonlocal first
        if first:
            both.wait()  # for the other copy, which must be under way too
            first = False
        return run(*arguments)

    first = True
    twice._unpadded = met
    reranker.scorer.backend = twice
    np.testing.assert_allclose(reranker.score(PAIRS * 5), expected, atol=1e-6)
    assert not first


@pytest.mark.parametrize("padded", [False, True])
def test_a_batch_is_stopped_between_layers_or_while_it_waits(checkpoint: Path, padded: bool) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(checkpoint))
    backend = TorchRerankerBackend(model, device="cpu", dtype="float32", threads=0, padded=padded)
    ids = np.full((2, 9), 5, np.int64)
    batch = ids, np.ones_like(ids), None
    expected = backend.forward(*batch)
    with pytest.raises(OutOfTime):
        backend.forward(*batch, time.perf_counter() - 1)
    np.testing.assert_array_equal(backend.forward(*batch, time.perf_counter() + 600), expected)
    with backend._copies.taken(), pytest.raises(OutOfTime):
        backend.forward(*batch, time.perf_counter() + 0.01)
    np.testing.assert_array_equal(backend.forward(*batch), expected)


def test_limits_follow_flag_reranker_and_the_models_positions(checkpoint: Path) -> None:
    reranker = Reranker.load(str(checkpoint), device="cpu")
    assert (reranker.max_tokens, reranker.max_query_tokens) == (512, 384)
    shorter = Reranker.load(str(checkpoint), device="cpu", max_tokens=100)
    assert (shorter.max_tokens, shorter.max_query_tokens) == (100, 75)
    longest = 600 - (2 if "xlm" in (checkpoint / "config.json").read_text() else 0)
    full = Reranker.load(str(checkpoint), device="cpu", max_tokens=longest)
    assert np.isfinite(full.score([("why", "they were part of the team " * 300)])).all()
    with pytest.raises(ModelError, match=f"at most {longest}"):
        Reranker.load(str(checkpoint), device="cpu", max_tokens=longest + 1)


@pytest.mark.parametrize(
    ("kind", "longest"), [("Mpnet", 60), ("XLMRoberta", 60), ("Bert", 62), ("Electra", 62), ("Nystromformer", 62)]
)
def test_the_rows_of_padding_are_no_positions(kind: str, longest: int) -> None:
    """As many tokens run as are said to, and one more is too many."""
    names = {"Mpnet": "MPNet"}
    config = getattr(transformers, f"{names.get(kind, kind)}Config")(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        embedding_size=16, max_position_embeddings=62, pad_token_id=1, num_labels=1, segment_means_seq_length=62,
        num_landmarks=62,
    )  # fmt: skip
    model = getattr(transformers, f"{names.get(kind, kind)}ForSequenceClassification")(config).eval()
    assert longest_input(model) == longest
    model(torch.full((1, longest), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, longest + 1), 7))


def test_an_id_beyond_the_words_is_named() -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    model = transformers.BertForSequenceClassification(config)
    backend = TorchRerankerBackend(model, device="cpu", dtype="float32", threads=0)
    ids = np.array([[2, 50]])
    with pytest.raises(ModelError, match=r"gave the id 50, the model \(bert\) has 50 words"):
        backend.forward(ids, np.ones_like(ids), None)


def test_classifiers_of_other_kinds_are_refused(tmp_path: Path) -> None:
    folder = make_bert_reranker(tmp_path)
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, num_labels=1)
    transformers.T5ForSequenceClassification(config).save_pretrained(str(folder))
    with pytest.raises(ModelError, match="kind 't5' is not known"):
        Reranker.load(str(folder))


def test_a_prompt_that_would_be_missed_is_refused(tmp_path: Path) -> None:
    folder = make_bert_reranker(tmp_path)
    settings = folder / "config_sentence_transformers.json"
    settings.write_text('{"prompts": {"query": "find: "}, "default_prompt_name": null}')
    Reranker.load(str(folder))
    settings.write_text('{"prompts": {"query": "find: "}, "default_prompt_name": "query"}')
    with pytest.raises(ModelError, match="the default prompt 'query' is not known"):
        Reranker.load(str(folder))


def test_impossible_placements_are_named(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="int8"):
        Reranker.load(str(checkpoint), dtype="int8")
    with pytest.raises(ModelError, match="export-onnx"):
        Reranker.load(str(checkpoint), backend="onnx")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no CUDA device"):
            Reranker.load(str(checkpoint), device="cuda")


def test_a_model_with_several_outputs_is_refused(tmp_path: Path) -> None:
    folder = make_bert_reranker(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "no", "1": "yes"}
    config["label2id"] = {"no": 0, "yes": 1}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        Reranker.load(str(folder), device="cpu")


def test_weights_that_are_missing_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """transformers draws them at random, other ones at every load."""
    from safetensors.torch import load_file, save_file

    folder = make_xlmr_reranker(tmp_path)
    kept = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("classifier.out_proj")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"2 weights are missing, first classifier\.out_proj\.bias"):
        Reranker.load(str(folder))
    assert "".join(capfd.readouterr()) == ""


def test_layers_that_the_config_does_not_count_are_named(tmp_path: Path) -> None:
    """transformers leaves them out: another score than the checkpoint's."""
    folder = make_bert_reranker(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": config["num_hidden_layers"] - 1}))
    with pytest.raises(ModelError, match=r"weights of layers that its config\.json does not count"):
        Reranker.load(str(folder))


def test_code_beside_the_weights_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask on the terminal whether it may."""
    folder = make_bert_reranker(tmp_path)
    ran = tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "its-own", "auto_map": classes}))
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ModelError, match="not a sequence classifier"):
        Reranker.load(str(folder))
    assert not ran.exists()


def test_a_checkpoint_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    """transformers would make one up to which every word is unknown."""
    folder = make_bert_reranker(tmp_path)
    for path in folder.glob("*token*.json"):
        path.unlink()
    with pytest.raises(ModelError, match="no tokenizer here"):
        Reranker.load(str(folder))


def test_token_types_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    """A trunk with two of them behind XLM-R's tokenizer, whose pairs have one, as multilingual-e5's."""
    folder = make_bert_reranker(tmp_path)
    assert torch_parts(folder, device="cpu", dtype="auto", threads=0, max_tokens=0)["convention"].token_types
    template = json.loads((folder / "tokenizer.json").read_text())
    for part in template["post_processor"]["pair"]:
        (value,) = part.values()
        value["type_id"] = 0
    (folder / "tokenizer.json").write_text(json.dumps(template))
    assert not torch_parts(folder, device="cpu", dtype="auto", threads=0, max_tokens=0)["convention"].token_types


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    folder = make_bert_reranker(tmp_path)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=str(folder)):
        Reranker.load(str(folder), device="cpu")


def test_without_padding_the_logits_are_those_of_transformers(checkpoint: Path) -> None:
    """Rows of every length in one batch, a text that holds a padding token among them."""
    unpadded, padded = (
        torch_parts(checkpoint, device="cpu", dtype="float32", threads=0, max_tokens=0, padded=padded)
        for padded in (False, True)
    )
    assert (unpadded["backend"].padded, padded["backend"].padded) == (False, True)
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 200, length) for length in (1, 2, 7, 7, 40, 300)]
    rows[4][20:22] = unpadded["convention"].pad_id
    ids, mask = pad(rows, unpadded["convention"].pad_id)
    types = (np.arange(ids.shape[1]) >= 3).astype(np.int64) * mask if unpadded["convention"].token_types else None
    found, expected = (parts["backend"].forward(ids, mask, types) for parts in (unpadded, padded))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize("float8", [False, True])
@pytest.mark.parametrize("kind", list(MAKERS))
def test_what_runs_on_cuda_fits_together(kind: str, float8: bool) -> None:
    """On torch's meta device, which computes shapes alone but takes the way that CUDA takes, with its attention."""
    unpadded = pytest.importorskip("hybrid_retrieval.rerankers.unpadded")
    if unpadded._varlen() is None:
        pytest.skip("this torch has no attention over rows of different lengths")
    architecture = {"xlmr": "XLMRoberta", "bert": "Bert"}[kind]
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=50, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96,
        max_position_embeddings=80, num_labels=1, type_vocab_size=1 if kind == "xlmr" else 2,
    )  # fmt: skip
    with torch.device("meta"):
        model = getattr(transformers, f"{architecture}ForSequenceClassification")(config)
        ids, starts = torch.zeros(30, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
        runnable = unpadded.UnpaddedClassifier(model).to(torch.bfloat16)
    if float8:
        runnable.to_float8()
    with torch.inference_mode():
        logits = runnable(ids, ids, None if kind == "xlmr" else ids, starts, 12)
    assert (logits.shape, logits.dtype, logits.device.type) == ((4,), torch.float32, "meta")


def test_other_classifiers_run_as_transformers_runs_them(tmp_path: Path) -> None:
    config = transformers.ElectraConfig(
        vocab_size=100, embedding_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=1,
    )  # fmt: skip
    backend = TorchRerankerBackend(
        transformers.ElectraForSequenceClassification(config), device="cpu", dtype="float32", threads=0
    )
    assert backend.padded
    ids, mask = pad([[5, 6, 7], [8]], 0)
    assert np.isfinite(backend.forward(ids, mask, None)).all()


def test_float8_is_refused_where_rows_are_padded(tmp_path: Path) -> None:
    config = transformers.ElectraConfig(
        vocab_size=100, embedding_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=1,
    )  # fmt: skip
    model = transformers.ElectraForSequenceClassification(config)
    with pytest.raises(ModelError, match="float8 is for XLM-R and BERT"):
        TorchRerankerBackend(model, device="cpu", dtype="float8", threads=0)


def wide_checkpoint(folder: Path, kind: str) -> Path:
    """A checkpoint whose heads are wide enough for the native kernels."""
    tokenizer = {"xlmr": xlmr_tokenizer_json, "bert": bert_tokenizer_json}[kind]()
    architecture = {"xlmr": "XLMRoberta", "bert": "Bert"}[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=len(json.loads(tokenizer)["model"]["vocab"]) + 1, hidden_size=64, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=96, max_position_embeddings=600, num_labels=1,
        type_vocab_size=1 if kind == "xlmr" else 2, initializer_range=0.3, pad_token_id=1 if kind == "xlmr" else 0,
    )  # fmt: skip
    model = getattr(transformers, f"{architecture}ForSequenceClassification")(config)
    torch.nn.init.normal_(model.base_model.embeddings.token_type_embeddings.weight)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", list(MAKERS))
def test_an_int8_export_runs_on_the_native_kernels_and_on_onnxruntime(tmp_path: Path, kind: str) -> None:
    checkpoint = wide_checkpoint(tmp_path / "checkpoint", kind)
    export_reranker(checkpoint, tmp_path / "out", dtype="int8")
    pairs = [(query, passage) for query, _ in PAIRS for _, passage in PAIRS]
    expected = Reranker.load(str(checkpoint), device="cpu").score(pairs)
    assert np.ptp(expected) > 0.5
    backends = ["onnx", *(["native"] if dispatch.variant() != dispatch.NUMPY else [])]
    for backend in backends:
        reranker = Reranker.load(str(tmp_path / "out"), backend=backend, cached_pairs=0)
        found = reranker.score(pairs)
        allowed = {"onnx": 0.05, "native": 0.03}[backend]  # onnxruntime has one scale for a whole batch
        assert np.abs(found - expected).mean() < allowed * np.abs(expected).max()
        if backend == "native":
            np.testing.assert_array_equal([reranker.score([pair])[0] for pair in pairs], found)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"embeddings.bin", "reranker.json", "reranker.onnx", "reranker.safetensors", "tokenizer.json.gz"}
