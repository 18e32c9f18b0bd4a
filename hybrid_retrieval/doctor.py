"""`doctor`: what this machine can run, which models load, and a self-test of both stages with expected scores."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hybrid_retrieval import model_files
from hybrid_retrieval.encoders import Encoder
from hybrid_retrieval.errors import HybridRetrievalError
from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.kernels.reference import maxsim
from hybrid_retrieval.rerankers import Reranker

Status = Literal["ok", "absent", "failed"]

# Instruction sets that decide which CPU kernels run, as the kernel of the operating system names them.
CPU_FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm"),  # ARM: asimd is NEON
)
REQUIRED = (
    "numpy",
    "pyyaml",
    "faiss-cpu",
    "onnxruntime",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "click",
    "rich",
)
OPTIONAL = {
    "torch": "torch",
    "transformers": "torch",
    "sentence-transformers": "torch",
    "late-interaction-kernels": "gpu",
    "onnx": "export",
    "ir-measures": "evaluate",
    "pyarrow": "parquet",
}
HUB_MODELS = ("colbert-ir/colbertv2.0", "lightonai/mLateOn", "BAAI/bge-reranker-v2-m3")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `absent` is no fault: something optional that is not here, with how to get it."""

    name: str
    status: Status
    detail: str


def examine() -> Iterator[Check]:
    """Every check, in the order in which a reader wants them; the slow ones (models, self-test) last."""
    yield Check("machine", "ok", _machine())
    yield from _packages()
    yield _guarded("native kernels", _kernels)
    yield _guarded("GPU", _gpu)
    for model in HUB_MODELS:
        here = model_files.is_local(model)
        yield Check(
            model,
            "ok" if here else "absent",
            "in the local cache" if here else f"not on this machine: hf download {model}",
        )
    yield _guarded("embedded encoder", _embedded_encoder)
    yield _guarded("embedded reranker", _embedded_reranker)
    yield _guarded("self-test, stage 1", _self_test_retrieval)
    yield _guarded("self-test, stage 2", _self_test_reranker)


def _case() -> dict[str, Any]:
    """The self-test's query, passages and tolerances, and under `retrieval` and `reranker` the scores of the runtime
    that is in use here: onnxruntime has one scale a batch, so its int8 gives others than the native kernels'."""
    path = model_files.resolve("embedded") / "selftest.json"
    case: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    runtime = "onnx" if dispatch.variant() == dispatch.NUMPY else "native"
    return case | {stage: case[stage][runtime] for stage in ("retrieval", "reranker")}


def _guarded(name: str, check: Callable[[], str | Check]) -> Check:
    try:
        found = check()
        return found if isinstance(found, Check) else Check(name, "ok", found)
    except Exception as error:  # whatever is wrong with this machine is what the check is there to report
        return Check(name, "failed", " ".join(f"{type(error).__name__}: {error}".split()))


def _compare(found: np.ndarray[Any, Any], expected: list[float], tolerance: float) -> str:
    worst = float(np.max(np.abs(np.asarray(found) - np.asarray(expected))))
    shown = ", ".join(f"{x:.3f}" for x in found)
    wanted = ", ".join(f"{x:.3f}" for x in expected)
    if not worst <= tolerance:
        raise HybridRetrievalError(f"scores {shown}; expected {wanted} (within {tolerance})")
    return f"scores {shown}; expected {wanted} (within {tolerance})"


def _self_test_retrieval() -> str:
    case, encoder = _case(), Encoder.load("embedded")
    scores = maxsim(encoder.encode_query(case["query"]), encoder.encode_passages(case["passages"]))
    return _compare(scores, case["retrieval"], case["retrieval_tolerance"])


def _self_test_reranker() -> str:
    case = _case()
    logits = Reranker.load("embedded").score([(case["query"], passage) for passage in case["passages"]])
    return _compare(logits, case["reranker"], case["reranker_tolerance"])


def _embedded_encoder() -> str:
    encoder = Encoder.load("embedded")
    return (
        f"{encoder.name}: {encoder.dimensions} dimensions, passages in windows of {encoder.max_passage_tokens} tokens"
    )


def _embedded_reranker() -> str:
    reranker = Reranker.load("embedded")
    return f"{reranker.name}: pairs to {reranker.max_tokens} tokens, longer passages in windows"


def _machine() -> str:
    flags: set[str] = set()
    memory = "memory unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.split(":", 1)[1].split())
                break
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    known = [flag for flag in CPU_FLAGS if flag in flags]
    return (
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{memory}, {' '.join(known) or 'no known vector instructions'}"
    )


def _packages() -> Iterator[Check]:
    for package in REQUIRED:
        try:
            # The GPU build of onnxruntime is another distribution of the same module.
            gpu_build = package == "onnxruntime" and importlib.util.find_spec(package) is not None
            yield Check(package, "ok", _version(package, f"{package}-gpu" if gpu_build else package))
        except metadata.PackageNotFoundError:
            yield Check(package, "failed", f"not installed: pip install {package}")
    for package, extra in OPTIONAL.items():
        try:
            yield Check(package, "ok", metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Check(package, "absent", f"not installed (optional): pip install 'hybrid-retrieval[{extra}]'")


def _version(package: str, alternative: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return metadata.version(alternative)


def _kernels() -> str | Check:
    names = dispatch.variants()
    if names == [dispatch.NUMPY]:
        if dispatch.hidden is not None:
            detail = f"in {dispatch.hidden}, hidden by sources in front: run from elsewhere"
            return Check("native kernels", "absent", detail)
        detail = (
            "not compiled: NumPy and onnxruntime do their work, slower; install again where there is a C++ compiler"
        )
        return Check("native kernels", "absent", detail)
    forced = f" (chosen by {dispatch.VARIABLE})" if os.environ.get(dispatch.VARIABLE) else ""
    return f"{dispatch.variant()} in use{forced}, of {', '.join(names)}"


def _gpu() -> str | Check:
    if importlib.util.find_spec("torch") is None:
        return Check("GPU", "absent", "needs torch: pip install 'hybrid-retrieval[gpu]'")
    cuda = importlib.import_module("torch").cuda
    if not cuda.is_available():
        return Check("GPU", "absent", "torch sees no CUDA device; everything runs on the CPU")
    return ", ".join(cuda.get_device_name(i) for i in range(cuda.device_count()))
