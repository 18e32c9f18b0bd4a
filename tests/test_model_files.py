"""Names of models, kinds of folders, and files that cannot be read."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from hybrid_retrieval import model_files
from hybrid_retrieval.checkpoints import placement
from hybrid_retrieval.errors import (
    InputError,
    ModelError,
    ModelNotFoundError,
    ModelSettingsError,
    OptionalDependencyError,
)
from hybrid_retrieval.optional import require
from tests.parity.checkpoints import bert_tokenizer_json


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """No network: the hub's client fails, and every call to it is recorded."""
    calls: list[tuple[Any, ...]] = []

    def snapshot(model: str, revision: str | None, *, local: bool) -> Path:
        calls.append((model, revision, local))
        raise OSError("offline")

    monkeypatch.setattr(model_files, "_snapshot", snapshot)
    return calls


def test_embedded_and_folders_resolve_without_the_hub(tmp_path: Path, no_hub: list[Any]) -> None:
    assert model_files.resolve("embedded").name == "embedded"
    assert model_files.resolve(str(tmp_path)) == tmp_path
    assert model_files.is_local("embedded") and model_files.is_local(str(tmp_path))
    assert no_hub == []


def test_a_hub_id_is_looked_up_in_the_cache_and_then_on_the_hub(no_hub: list[Any]) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        model_files.resolve("BAAI/bge-reranker-v2-m3", "abc")
    assert no_hub == [("BAAI/bge-reranker-v2-m3", "abc", True), ("BAAI/bge-reranker-v2-m3", "abc", False)]
    message = str(caught.value)
    assert "hf download BAAI/bge-reranker-v2-m3 --revision abc --local-dir" in message and "\n" not in message
    no_hub.clear()
    assert not model_files.is_local("BAAI/bge-reranker-v2-m3")
    assert no_hub == [("BAAI/bge-reranker-v2-m3", None, True)]


@pytest.mark.parametrize("model", ["embedded", "."])
def test_a_revision_of_what_has_none_is_refused(model: str, no_hub: list[Any]) -> None:
    with pytest.raises(ModelSettingsError, match="a revision is of a hub id"):
        model_files.resolve(model, "main")
    assert no_hub == []


def test_of_a_repository_only_what_is_read_is_downloaded() -> None:
    from huggingface_hub.utils import filter_repo_objects

    read = ["config.json", "artifact.metadata", "model.safetensors", "1_Dense/model.safetensors", "encoder.onnx"]
    unread = ["onnx/model_quantized.onnx", "openvino/openvino_model.bin", "tf_model.h5", "model.gguf"]
    wanted = {"allow_patterns": model_files.HUB_PATTERNS, "ignore_patterns": model_files.HUB_UNREAD}
    assert list(filter_repo_objects([*read, *unread], **wanted)) == read


def test_whatever_the_hubs_client_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class ProxyError(Exception):
        """As HTTP libraries have it: of no class that others share."""

    def snapshot(model: str, revision: str | None, *, local: bool) -> Path:
        raise OSError("not cached") if local else ProxyError("403 Forbidden")

    monkeypatch.setattr(model_files, "_snapshot", snapshot)
    with pytest.raises(ModelNotFoundError, match="did not give it \\(ProxyError\\)"):
        model_files.resolve("owner/name")


def test_a_cached_model_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"")
    shards = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))

    def snapshot(model: str, revision: str | None, *, local: bool) -> Path:
        assert local
        return tmp_path

    monkeypatch.setattr(model_files, "_snapshot", snapshot)
    assert model_files.resolve("owner/name") == tmp_path and model_files.is_local("owner/name")


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": "{}"},
        {"model.safetensors": "", "config.json": "{}"},
        {
            "tokenizer.json": "{}",
            "model-1-of-2.safetensors": "",
            "model.safetensors.index.json": '{"weight_map": {"a": "model-2-of-2.safetensors"}}',
        },
    ],
    ids=["no weights", "no tokenizer", "a shard missing"],
)
def test_a_part_of_a_model_in_the_cache_is_no_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    asked = []

    def snapshot(model: str, revision: str | None, *, local: bool) -> Path:
        asked.append(local)
        return tmp_path

    monkeypatch.setattr(model_files, "_snapshot", snapshot)
    assert not model_files.is_local("owner/name")
    assert model_files.resolve("owner/name") == tmp_path
    assert asked == [True, True, False], "the hub is asked for the rest"


@pytest.mark.parametrize("name", ["embeded", "a/b/c", "/no/such/folder", "", "with space/x"])
def test_other_names_are_refused_without_asking_the_hub(name: str, no_hub: list[Any]) -> None:
    with pytest.raises(ModelNotFoundError, match="expected 'embedded'"):
        model_files.resolve(name)
    assert no_hub == []


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"artifact.metadata": {}, "config.json": {"architectures": ["HF_ColBERT"]}}, "encoder"),
        ({"config.json": {"architectures": ["HF_ColBERT"]}}, "encoder"),
        ({"modules.json": {}, "config.json": {"architectures": ["BertModel"]}}, "encoder"),
        ({"config.json": {"architectures": ["XLMRobertaForSequenceClassification"]}}, "reranker"),
    ],
)
def test_the_kind_of_a_folder(tmp_path: Path, files: dict[str, Any], kind: str) -> None:
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    assert model_files.kind_to_export(tmp_path) == kind


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "neither a ColBERT encoder"),
        (("config.json",), "neither a ColBERT encoder"),
        (("encoder.json",), "an ONNX export already"),
        (("reranker.json",), "an ONNX export already"),
        (("encoder.json", "reranker.json"), "an ONNX export already"),
    ],
)
def test_a_folder_with_nothing_to_export_is_refused(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=message):
        model_files.kind_to_export(tmp_path)
    for kind in ("encoder", "reranker"):
        if f"{kind}.json" in files:
            with pytest.raises(InputError, match=message):
                model_files.kind_to_export(tmp_path, kind)
        else:
            assert model_files.kind_to_export(tmp_path, kind) == kind


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff\xfe", b'"x"'])
def test_a_json_file_that_is_no_object_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.json"):
        model_files.read_json(path)


def test_tokenizers_load_compressed_or_plain_without_padding_or_cutting(tmp_path: Path) -> None:
    text = bert_tokenizer_json()
    assert json.loads(text)["truncation"] and json.loads(text)["padding"], "the published file pads and cuts"
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    (tmp_path / "tokenizer.json.gz").write_bytes(gzip.compress(text.encode("utf-8")))
    for name in ("tokenizer.json", "tokenizer.json.gz"):
        tokenizer = model_files.load_tokenizer(tmp_path / name)
        assert tokenizer.encode("the house").tokens == ["[CLS]", "the", "house", "[SEP]"]
        assert len(tokenizer.encode("house " * 1000).ids) == 1002


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x1f\x8b broken"])
def test_a_broken_tokenizer_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json\.gz"):
        model_files.load_tokenizer(path)


def test_a_fingerprint_follows_contents_names_order_and_facts(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    a.write_bytes(b"1"), b.write_bytes(b"2"), c.write_bytes(b"1")
    found = [
        model_files.fingerprint([a, b]),
        model_files.fingerprint([b, a]),
        model_files.fingerprint([a]),
        model_files.fingerprint([c]),
        model_files.fingerprint([a, b], {"x": 1}),
    ]
    assert len(set(found)) == len(found)
    assert model_files.fingerprint([a, b]) == found[0]


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionalDependencyError, match=r"reading x needs .*'safetensors'.*hybrid-retrieval\[torch\]"):
        require("safetensors.torch", "reading x")


class _Torch:
    """As much of torch as placement asks for."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = self
        self._cuda = cuda
        self.float32, self.float16, self.bfloat16 = "f32", "f16", "bf16"

    def is_available(self) -> bool:
        return self._cuda

    def device(self, name: str) -> str:
        return name


@pytest.mark.parametrize(
    ("cuda", "device", "dtype", "expected"),
    [
        (True, "auto", "auto", ("cuda", "f16")),
        (True, "cuda", "bfloat16", ("cuda", "bf16")),
        (True, "cpu", "auto", ("cpu", "f32")),
        (False, "auto", "auto", ("cpu", "f32")),
        (False, "cpu", "float16", ("cpu", "f16")),
    ],
)
def test_devices_and_dtypes_are_chosen(cuda: bool, device: str, dtype: str, expected: tuple[str, str]) -> None:
    assert placement(_Torch(cuda), device, dtype) == expected


@pytest.mark.parametrize(
    ("device", "dtype", "message"), [("cuda", "auto", "no CUDA device"), ("cpu", "int8", "float32, float16")]
)
def test_an_impossible_placement_is_an_error(device: str, dtype: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        placement(_Torch(False), device, dtype)


def test_white_space_at_the_end_is_text_to_a_byte_level_tokenizer() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate([*pre_tokenizers.ByteLevel.alphabet(), "▁"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert model_files.reader(tokenizer)("flows \n") == "flows \n"
    embedded = model_files.load_tokenizer(model_files.EMBEDDED_FOLDER / "tokenizer.json.gz")
    assert model_files.reader(embedded)("flows \n") == "flows"
