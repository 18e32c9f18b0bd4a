"""From a model's folder to the parts of an `Encoder`: which backend reads it, and with which convention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybrid_retrieval.encoders.backend import EncoderBackend, OnnxEncoderBackend
from hybrid_retrieval.encoders.convention import EncodingConvention
from hybrid_retrieval.encoders.native_backend import NativeEncoderBackend
from hybrid_retrieval.errors import ModelError, ModelSettingsError
from hybrid_retrieval.model_files import fingerprint, load_tokenizer
from hybrid_retrieval.native_trunk import native_trunk
from hybrid_retrieval.onnx_files import is_onnx_folder, read_description, weight_files


def load_parts(folder: Path, *, backend: str, device: str, dtype: str, threads: int) -> dict[str, Any]:
    """The keyword arguments of `Encoder` that come from the model's files."""
    if is_onnx_folder(folder, "encoder", backend):
        return _onnx_parts(folder, backend=backend, device=device, dtype=dtype, threads=threads)
    from hybrid_retrieval.encoders.torch_backend import torch_parts

    return torch_parts(folder, device=device, dtype=dtype, threads=threads)


def _onnx_parts(folder: Path, *, backend: str, device: str, dtype: str, threads: int) -> dict[str, Any]:
    description = read_description(folder, "encoder")
    own = description.get("dtype", "int8")
    if dtype not in ("auto", own):
        raise ModelSettingsError(
            f"{folder} was exported in {own} and cannot run in {dtype}: use dtype 'auto' or export it again"
        )
    graph, tokenizer = folder / description["graph"], folder / description["tokenizer"]
    convention = EncodingConvention.from_dict(description, str(folder / "encoder.json"))
    dimensions = int(description["dimensions"])
    weighing = convention.query.weights
    if weighing is not None and len(weighing.direction) != dimensions:
        raise ModelError(
            f"{folder / 'encoder.json'}: the weights of query tokens read {len(weighing.direction)} dimensions, the "
            f"encoder gives {dimensions}"
        )
    weights = weight_files(folder, description)
    runner: EncoderBackend
    native = native_trunk(folder, description, "encoder", backend=backend, device=device)
    if native is None:
        runner = OnnxEncoderBackend(graph, threads=threads, device="cpu" if device == "auto" else device)
    elif convention.query.expansion is not None:
        raise ModelSettingsError(f"{folder}: native kernels cannot expand queries: use backend 'onnx'")
    else:
        runner = NativeEncoderBackend(folder, native.facts, variant=native.variant, threads=threads)
    identity = description.get("identity") or fingerprint([*weights, tokenizer], convention.to_dict(), dimensions)
    return {
        "name": description["name"],
        "identity": identity,
        "dimensions": dimensions,
        "convention": convention,
        "tokenizer": load_tokenizer(tokenizer),
        "backend": runner,
    }
