"""Writing a torch model as an ONNX folder: the graph, its int8 form, the tokenizer, and a check against torch."""

from __future__ import annotations

import gzip
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import InputError, ModelError
from hybrid_retrieval.model_files import Kind
from hybrid_retrieval.onnx_files import FORMAT, OnnxGraph
from hybrid_retrieval.optional import require

DTYPES = ("float32", "int8")
# Graphs larger than this keep their weights in a file beside them (protobuf ends at 2 GB).
INLINE_BYTES = 1_500_000_000


def write_onnx_folder(
    kind: Kind,
    module: Any,
    out: Path,
    *,
    dtype: str,
    description: dict[str, Any],
    tokenizer_bytes: bytes,
    sample: tuple[NDArray[np.int64], ...],
    input_names: list[str],
    output_name: str,
    tolerance: Callable[[NDArray[np.float32], NDArray[np.float32]], tuple[float, bool]],
    write_graph: Callable[[Path], dict[str, Any]] | None = None,
) -> float:
    """Export a torch module and return its largest difference from torch in float32 on `sample`.

    module: maps int64 [B, L] inputs named `input_names` to one float32 output. tolerance: (torch's output, the
    graph's) to (largest difference, whether it is acceptable). write_graph: writes `{kind}.onnx` and its weights to a
    folder, and returns the description's `trunk` section; None has torch export and onnxruntime quantise. Nothing is
    left behind under `out` if the check fails. Raises `InputError` for a folder that holds something already,
    `ModelError` where the graph disagrees with torch.
    """
    if dtype not in DTYPES:
        raise InputError(f"an export is in {' or '.join(DTYPES)}, got {dtype}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is {'not empty' if out.is_dir() else 'a file'}: name a new folder")
    torch = require("torch", "the ONNX export", "export")
    require("onnxscript", "the ONNX export", "export")
    inputs = tuple(torch.from_numpy(array) for array in sample)
    with torch.inference_mode():
        expected = module(*inputs).numpy()
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
        folder = Path(name) / "model"
        folder.mkdir()
        graph = folder / f"{kind}.onnx"
        trunk: dict[str, Any] = {}
        if write_graph is not None:
            trunk = {"trunk": write_graph(folder)}
        else:
            traced = Path(name) / "float32.onnx" if dtype == "int8" else graph
            _export(torch, module, inputs, traced, input_names, output_name)
            if dtype == "int8":
                _quantise(traced, graph)
        found = OnnxGraph(graph).run(sample[0], sample[1], sample[2] if len(sample) > 2 else None)
        difference, acceptable = tolerance(expected, found)
        if not acceptable:
            raise ModelError(f"the exported graph differs from torch by {difference:.3g}: nothing was written")
        (folder / "tokenizer.json.gz").write_bytes(gzip.compress(tokenizer_bytes, mtime=0))
        whole = {"format": FORMAT, "kind": kind, "graph": graph.name, "tokenizer": "tokenizer.json.gz", "dtype": dtype}
        (folder / f"{kind}.json").write_text(
            json.dumps({**whole, **description, **trunk}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        if out.exists():  # empty; the working directory, or a link to a folder, is not to be replaced itself
            for file in sorted(folder.iterdir(), key=lambda file: file.name == f"{kind}.json"):
                os.replace(file, out / file.name)
        else:
            os.replace(folder, out)
    return difference


def _export(torch: Any, module: Any, inputs: tuple[Any, ...], path: Path, names: list[str], output: str) -> None:
    parameters = sum(parameter.numel() * 4 for parameter in module.parameters())
    with _quiet():
        torch.onnx.export(
            module,
            inputs,
            str(path),
            input_names=names,
            output_names=[output],
            dynamic_shapes=tuple({0: "batch", 1: "length"} for _ in inputs),
            dynamo=True,
            external_data=parameters > INLINE_BYTES,
            verbose=False,
        )


def _quantise(source: Path, target: Path) -> None:
    quantization = require("onnxruntime.quantization", "the int8 export", "export")
    onnx = require("onnx", "the int8 export", "export")
    large = source.stat().st_size + sum(f.stat().st_size for f in source.parent.glob("*.data")) > INLINE_BYTES
    # Shapes that the exporter recorded for the sample stand in the way of the quantiser's own inference.
    model = onnx.load(str(source))
    del model.graph.value_info[:]
    onnx.save(model, str(source), save_as_external_data=large, location=f"{source.name}.data")
    with _quiet():
        quantization.quantize_dynamic(
            str(source),
            str(target),
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            # 7-bit weights: processors without VNNI add pairs of products in 16 bits, which 8-bit weights overflow.
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            use_external_data_format=large,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and the quantiser report their progress as warnings; none of them is for the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
