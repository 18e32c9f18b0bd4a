"""The torch backend on Stanford checkpoints, and their ONNX export."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval import Encoder
from hybrid_retrieval.encoders import torch_backend
from hybrid_retrieval.encoders.export import export_encoder
from hybrid_retrieval.errors import InputError, ModelError
from tests.parity.checkpoints import make_colbert

torch = pytest.importorskip("torch")

# One text a batch and several, of lengths that the export's own sample does not have.
TEXTS = ["why", "the old men walk by the river; they see a house", "vaccines train the immune system " * 6]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_colbert(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def exports(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, float]]:
    pytest.importorskip("onnxscript")
    root = tmp_path_factory.mktemp("exports")
    return {
        dtype: (root / dtype, export_encoder(checkpoint, root / dtype, dtype=dtype)) for dtype in ("float32", "int8")
    }


def cosines(a: Any, b: Any) -> np.ndarray[Any, Any]:
    return np.einsum("td,td->t", a.data, b.data)


def test_the_float32_export_computes_the_same_for_any_batch_and_length(
    checkpoint: Path, exports: dict[str, tuple[Path, float]]
) -> None:
    folder, worst = exports["float32"]
    assert 0 <= worst < 1e-4
    source, export = Encoder.load(str(checkpoint), device="cpu"), Encoder.load(str(folder))
    for texts in (TEXTS, TEXTS[:1], TEXTS[1:]):
        np.testing.assert_allclose(export.encode_passages(texts).data, source.encode_passages(texts).data, atol=1e-4)
        np.testing.assert_allclose(export.encode_queries(texts).data, source.encode_queries(texts).data, atol=1e-4)
    assert export.identity == source.identity and export.name == source.name
    assert export.convention == source.convention


def test_the_int8_export_is_small_and_close(checkpoint: Path, exports: dict[str, tuple[Path, float]]) -> None:
    folder, worst = exports["int8"]
    source, export = Encoder.load(str(checkpoint), device="cpu"), Encoder.load(str(folder), dtype="int8")
    assert worst > 0
    assert cosines(export.encode_passages(TEXTS), source.encode_passages(TEXTS)).min() > 0.9
    size = {dtype: (path / "encoder.onnx").stat().st_size for dtype, (path, _) in exports.items()}
    assert size["int8"] < size["float32"] / 2


def test_an_export_is_described_and_runs_without_the_checkpoint(exports: dict[str, tuple[Path, float]]) -> None:
    for dtype, (folder, _) in exports.items():
        description = json.loads((folder / "encoder.json").read_text("utf-8"))
        assert (description["format"], description["kind"], description["dtype"]) == (1, "encoder", dtype)
        assert not list(folder.parent.glob(f".{dtype}*")), "no working files stay behind"


def test_an_export_overwrites_nothing(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        export_encoder(checkpoint, tmp_path)
    with pytest.raises(InputError, match="float16"):
        export_encoder(checkpoint, tmp_path / "new", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_to_float32(checkpoint: Path, dtype: Any) -> None:
    expected = Encoder.load(str(checkpoint), device="cpu").encode_passages(TEXTS)
    found = Encoder.load(str(checkpoint), device="cpu", dtype=dtype).encode_passages(TEXTS)
    assert found.data.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.data, axis=1), 1, atol=1e-5)
    assert cosines(found, expected).mean() > 0.98


def test_every_device_encodes_batches_of_its_own(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies on a processor stand for two cards: they run side by side, and give one copy's vectors."""
    expected = Encoder.load(str(checkpoint), device="cpu").encode_passages(TEXTS * 5)
    monkeypatch.setattr(torch_backend, "all_devices", lambda torch, placed: [placed, placed])
    encoder = Encoder.load(str(checkpoint), device="cpu", batch_tokens=64)
    copies = encoder._backend._copies  # type: ignore[attr-defined]
    both, taken = threading.Barrier(2, timeout=30), copies.taken
    met: list[Any] = []

    @contextmanager
    def meet() -> Iterator[Any]:
        with taken() as lent:
            if len(met) < 2:
                met.append(lent)
                both.wait()  # for the other copy, which must be under way too
            yield lent

    monkeypatch.setattr(copies, "taken", meet)
    found = encoder.encode_passages(TEXTS * 5)
    np.testing.assert_allclose(found.data, expected.data, atol=1e-6)
    assert met[0][0] is not met[1][0]


def test_impossible_placements_are_named(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="int8"):
        Encoder.load(str(checkpoint), dtype="int8")
    with pytest.raises(ModelError, match="export-onnx"):
        Encoder.load(str(checkpoint), backend="onnx")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no CUDA device"):
            Encoder.load(str(checkpoint), device="cuda")


def test_pickled_weights_load_as_tensors_only(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = make_colbert(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    expected = Encoder.load(str(checkpoint), device="cpu").encode_query("why").copy()
    np.testing.assert_array_equal(Encoder.load(str(folder), device="cpu").encode_query("why"), expected)
    torch.save({"linear.weight": Path("x")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        Encoder.load(str(folder))


def test_a_checkpoint_without_metadata_takes_colberts_defaults(tmp_path: Path) -> None:
    folder = make_colbert(tmp_path)
    (folder / "artifact.metadata").unlink()
    encoder = Encoder.load(str(folder), device="cpu")
    assert encoder.max_passage_tokens == 220
    assert len(encoder.convention.passage.skip_ids) == 32
    expansion = encoder.convention.query.expansion
    assert expansion is not None and (expansion.token_id, expansion.length, expansion.attend) == (103, 32, False)


@pytest.mark.parametrize("value", [None, "abc", 2.5, True])
def test_a_limit_that_is_no_number_is_named(tmp_path: Path, value: Any) -> None:
    folder = make_colbert(tmp_path)
    metadata = json.loads((folder / "artifact.metadata").read_text())
    (folder / "artifact.metadata").write_text(json.dumps({**metadata, "doc_maxlen": value}))
    with pytest.raises(ModelError, match=r"artifact\.metadata: doc_maxlen must be a whole number"):
        Encoder.load(str(folder))


@pytest.mark.parametrize("key", ["mask_punctuation", "attend_to_mask_tokens"])
def test_a_flag_that_is_none_is_named(tmp_path: Path, key: str) -> None:
    folder = make_colbert(tmp_path)
    metadata = json.loads((folder / "artifact.metadata").read_text())
    (folder / "artifact.metadata").write_text(json.dumps({**metadata, key: "false"}))
    with pytest.raises(ModelError, match=rf"artifact\.metadata: {key} must be true or false, got 'false'"):
        Encoder.load(str(folder))


@pytest.mark.parametrize(("key", "side"), [("doc_maxlen", "passage"), ("query_maxlen", "query")])
def test_a_limit_beyond_the_positions_is_named(tmp_path: Path, key: str, side: str) -> None:
    folder = make_colbert(tmp_path)
    metadata = json.loads((folder / "artifact.metadata").read_text())
    (folder / "artifact.metadata").write_text(json.dumps({**metadata, key: 600}))
    Encoder.load(str(folder))
    (folder / "artifact.metadata").write_text(json.dumps({**metadata, key: 601}))
    with pytest.raises(ModelError, match=f"a {side} is to have up to 601 tokens, its trunk has positions for 600"):
        Encoder.load(str(folder))


def test_an_odd_config_is_named(tmp_path: Path) -> None:
    folder = make_colbert(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "abc"}))
    with pytest.raises(ModelError, match=r"config\.json is not usable"):
        Encoder.load(str(folder))


def test_an_export_goes_into_an_empty_folder_as_it_is(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real")
    export_encoder(checkpoint, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and Path.cwd().samefile(tmp_path / "real")
    assert Encoder.load(".").dimensions == 16


def test_a_projection_of_another_width_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_colbert(tmp_path)
    state = load_file(folder / "model.safetensors")
    narrow = state["linear.weight"][:, :-8].clone()
    save_file({**state, "linear.weight": narrow}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"linear\.weight must be \[D, \d+\]"):
        Encoder.load(str(folder))


def test_the_first_names_of_layer_norms_are_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_colbert(tmp_path)
    expected = Encoder.load(str(folder), device="cpu").encode_query("why")
    first = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    state = load_file(folder / "model.safetensors")
    for now, before in first.items():
        state = {name.replace(now, before): tensor for name, tensor in state.items()}
    save_file(state, folder / "model.safetensors")
    np.testing.assert_array_equal(Encoder.load(str(folder), device="cpu").encode_query("why"), expected)


def test_layers_that_the_config_does_not_count_are_named(tmp_path: Path) -> None:
    """transformers leaves them out: other vectors than the checkpoint's."""
    folder = make_colbert(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(ModelError, match=r"weights of layers that its config\.json does not count, first .*layer\.1\."):
        Encoder.load(str(folder))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_colbert(tmp_path)
    state = load_file(folder / "model.safetensors")
    lost = "bert.encoder.layer.1.output.dense.weight"
    save_file({key: value for key, value in state.items() if key != lost}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        Encoder.load(str(folder))
    save_file({key: value for key, value in state.items() if key != "linear.weight"}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"linear\.weight"):
        Encoder.load(str(folder))
    other = {key: value[:-1] if key.endswith("word_embeddings.weight") else value for key, value in state.items()}
    save_file({key: value.contiguous() for key, value in other.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="do not fit its config"):
        Encoder.load(str(folder))
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="not readable as weights"):
        Encoder.load(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        Encoder.load(str(folder))
