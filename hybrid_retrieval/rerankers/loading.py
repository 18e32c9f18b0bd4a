"""From a model's folder to the parts of a `Reranker`: which backend reads it, and with which convention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybrid_retrieval.errors import ModelError, ModelSettingsError
from hybrid_retrieval.model_files import fingerprint, load_tokenizer
from hybrid_retrieval.native_trunk import native_trunk
from hybrid_retrieval.onnx_files import is_onnx_folder, read_description, weight_files
from hybrid_retrieval.rerankers.backend import OnnxRerankerBackend, RerankerBackend
from hybrid_retrieval.rerankers.native_backend import NativeRerankerBackend
from hybrid_retrieval.rerankers.pairs import PairConvention
from hybrid_retrieval.types import is_number

# FlagReranker's default, whatever the model could read.
FLAG_MAX_TOKENS = 512


def load_parts(folder: Path, *, backend: str, device: str, dtype: str, threads: int, max_tokens: int) -> dict[str, Any]:
    """The keyword arguments of `Reranker` that come from the model's files."""
    if is_onnx_folder(folder, "reranker", backend):
        return _onnx_parts(folder, backend=backend, device=device, dtype=dtype, threads=threads, max_tokens=max_tokens)
    from hybrid_retrieval.rerankers.torch_backend import torch_parts

    return torch_parts(folder, device=device, dtype=dtype, threads=threads, max_tokens=max_tokens)


def limits(own: int, own_query: int, wanted: int, longest: int, source: Path) -> dict[str, int]:
    """max_tokens, max_query_tokens and longest_tokens of a `Reranker`.

    The first two are the model's own, or, where the caller wants another length, that and three quarters of it.
    """
    if wanted > longest:
        raise ModelSettingsError(f"{source} reads pairs of at most {longest} tokens, got max_tokens {wanted}")
    if wanted in (0, own):
        return {"max_tokens": own, "max_query_tokens": own_query, "longest_tokens": longest}
    return {"max_tokens": wanted, "max_query_tokens": wanted * 3 // 4, "longest_tokens": longest}


def _of_the_scores(description: dict[str, Any]) -> dict[str, Any]:
    """What of a description decides the logits; a recommended fusion, and what pairs might be at most, do not."""
    return {key: value for key, value in description.items() if key not in ("fusion", "longest_tokens")}


def _onnx_parts(
    folder: Path, *, backend: str, device: str, dtype: str, threads: int, max_tokens: int
) -> dict[str, Any]:
    description = read_description(folder, "reranker")
    own_dtype = description.get("dtype", "int8")
    if dtype not in ("auto", own_dtype):
        raise ModelSettingsError(
            f"{folder} was exported in {own_dtype} and cannot run in {dtype}: use dtype 'auto' or export it again"
        )
    graph, tokenizer = folder / description["graph"], folder / description["tokenizer"]
    convention = PairConvention.from_dict(description, str(folder / "reranker.json"))
    own = int(description.get("max_tokens", FLAG_MAX_TOKENS))
    own_query = int(description.get("max_query_tokens", own * 3 // 4))
    longest = int(description.get("longest_tokens", own))
    weights = weight_files(folder, description)
    runner: RerankerBackend
    native = native_trunk(folder, description, "reranker", backend=backend, device=device)
    if native is None:
        runner = OnnxRerankerBackend(graph, threads=threads, device="cpu" if device == "auto" else device)
    else:
        runner = NativeRerankerBackend(folder, native.facts, convention, variant=native.variant, threads=threads)
    tokenizer_identity = description.get("tokenizer_identity") or fingerprint([tokenizer])
    weight = (description.get("fusion") or {}).get("weight")
    if weight is not None and not (is_number(weight) and 0 <= weight <= 1):
        raise ModelError(f"{folder / 'reranker.json'}: fusion.weight must be a number from 0 to 1, got {weight!r:.80}")
    room = own - convention.num_specials
    if own > longest or room < 2 or not 1 <= own_query < room:
        raise ModelError(
            f"{folder / 'reranker.json'}: max_tokens {own} (at most {longest}) and max_query_tokens {own_query} leave "
            f"no room for query and passage beside {convention.num_specials} marker tokens"
        )
    return {
        "name": description["name"],
        "identity": description.get("identity") or fingerprint([*weights, tokenizer], _of_the_scores(description)),
        "tokenizer_identity": tokenizer_identity,
        "convention": convention,
        "tokenizer": load_tokenizer(tokenizer),
        "backend": runner,
        "fusion_weight": None if weight is None else float(weight),
        **limits(own, own_query, max_tokens, longest, folder),
    }
