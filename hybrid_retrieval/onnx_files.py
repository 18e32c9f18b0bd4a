"""Models as ONNX folders: a JSON description, a graph, a tokenizer; read without torch.

encoder.json | reranker.json      what the graph is and how text becomes token ids
encoder.onnx | reranker.onnx      inputs input_ids, attention_mask (and token_type_ids) int64 [B, L]
tokenizer.json[.gz]               for the tokenizers library
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import ModelError, ModelNotFoundError, ModelSettingsError
from hybrid_retrieval.model_files import Kind, read_json
from hybrid_retrieval.time_limits import OutOfTime, seconds_left

FORMAT = 1


def read_description(folder: Path, kind: Kind) -> dict[str, Any]:
    """The JSON description of an ONNX folder. Raises `ModelError` for another kind or format, or a missing key."""
    path = folder / f"{kind}.json"
    description = read_json(path)
    if description.get("format") != FORMAT:
        raise ModelError(f"{path}: format {description.get('format')!r}; this release reads format {FORMAT}")
    if description.get("kind") != kind:
        raise ModelError(f"{path}: expected kind '{kind}', got {description.get('kind')!r}")
    numbers = ("pad_id", "dimensions") if kind == "encoder" else ("pad_id",)
    for key in ("name", "graph", "tokenizer", *numbers):
        if key not in description:
            raise ModelError(f"{path}: the key '{key}' is missing")
    for key in ("name", "graph", "tokenizer", "identity", "tokenizer_identity"):
        optional = key.endswith("identity")
        if not isinstance(description.get(key), (str, NoneType) if optional else str):
            raise ModelError(f"{path}: '{key}' must be a string, got {description[key]!r:.80}")
    for key in ("trunk", "fusion"):
        if not isinstance(description.get(key, {}), (dict, NoneType)):
            raise ModelError(f"{path}: '{key}' must be an object, got {description[key]!r:.80}")
    for key in (*numbers, "max_tokens", "max_query_tokens", "longest_tokens"):
        if not isinstance(description.get(key, 0), int):
            raise ModelError(f"{path}: '{key}' must be a whole number, got {description[key]!r}")
    return description


def weight_files(folder: Path, description: dict[str, Any]) -> list[Path]:
    """The graph and the files with its weights, for a fingerprint."""
    graph = folder / description["graph"]
    trunk = description.get("trunk")
    if trunk is not None:
        names = ("weights", "embeddings", *(["shared"] if "shared" in trunk else []))
        files = [folder / str(trunk.get(name)) for name in names]
        missing = [str(path) for path in files if not path.is_file()]
        if missing:
            raise ModelError(f"{', '.join(missing)}: no such file, though the model's description names it")
        return [graph, *files]
    return [graph, *sorted(folder.glob("*.bin")), *sorted(folder.glob("*.onnx.data"))]


def is_onnx_folder(folder: Path, kind: Kind, backend: str) -> bool:
    """Whether a folder is an ONNX export, hence for onnxruntime, and not a checkpoint.

    Raises `ModelSettingsError` where `backend` cannot read it, `ModelNotFoundError` where it is neither."""
    is_onnx = (folder / f"{kind}.json").exists()
    if backend in ("onnx", "native") and not is_onnx:
        raise ModelSettingsError(
            f"{folder} has no {kind}.json, so the {backend} backend cannot read it: run "
            f"'hybrid-retrieval export-onnx {folder} FOLDER' once and name FOLDER, or use backend 'torch'"
        )
    if backend == "torch" and is_onnx:
        raise ModelSettingsError(f"{folder} is an ONNX export, which backend 'torch' cannot read: use backend 'onnx'")
    if not is_onnx and not any((folder / name).exists() for name in ("config.json", "modules.json")):
        raise ModelNotFoundError(f"{folder}: no {kind} in it (expected {kind}.json, or a checkpoint with config.json)")
    return is_onnx


def available_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxGraph:
    """A session over one graph: token ids in, one float32 array out. Safe to share between threads."""

    def __init__(self, path: Path, *, threads: int = 0, device: str = "cpu") -> None:
        """threads: inside one run, 0 takes every core. device: `cpu` or `cuda`."""
        import onnxruntime

        available = onnxruntime.get_available_providers()
        providers = ["CPUExecutionProvider"]
        if device == "cuda":
            if "CUDAExecutionProvider" not in available:
                raise ModelSettingsError(
                    f"device 'cuda' was asked for, but this onnxruntime runs on {', '.join(available)}: "
                    f"install onnxruntime-gpu, or use device 'cpu'"
                )
            providers.insert(0, "CUDAExecutionProvider")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads take the cores that the other stage needs between two runs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's own errors share no public base
            raise ModelError(f"{path}: onnxruntime cannot load this graph ({' '.join(str(error).split())})") from None
        self._inputs = [item.name for item in self._session.get_inputs()]

    def run(
        self,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        types: NDArray[np.int64] | None = None,
        ends: float = math.inf,
    ) -> Any:
        """ids, mask, types: int64 [B, L]; types are left out where the graph has no input for them. ends: on
        `time.perf_counter`; raises `OutOfTime` between two nodes once it has passed."""
        feeds = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feeds["token_type_ids"] = np.zeros_like(ids) if types is None else types
        try:
            with _until(ends) as options:
                return self._session.run(None, feeds, options)[0]
        except Exception as error:  # onnxruntime's own errors share no public base
            if time.perf_counter() >= ends:
                raise OutOfTime from None
            raise ModelError(f"onnxruntime failed on {ids.shape} tokens ({' '.join(str(error).split())})") from None


@contextmanager
def _until(ends: float) -> Iterator[Any]:
    """onnxruntime's options for a run that ends at a moment of `time.perf_counter`; None for one without an end."""
    seconds = seconds_left(ends)
    if seconds is None:
        yield None
        return
    import onnxruntime

    options = onnxruntime.RunOptions()
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.start()
    try:
        yield options
    finally:
        timer.cancel()
