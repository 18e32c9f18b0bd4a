"""One cross-encoder behind a pipe: loads a model, then scores one question's pairs a line.

    python cross_worker.py SYSTEM MODEL PAIRS.json [THREADS [DEVICE]]

SYSTEM: hybrid-retrieval (native kernels), hybrid-retrieval-onnx, openvino; hybrid-retrieval-torch, transformers,
sentence-transformers, flag-embedding, in float32 or with -fp16, -bf16 or (ours) -fp8. MODEL: the folder that the system
reads. PAIRS: set name -> list of [question, [passage, ...]]. DEVICE: cpu or cuda. The first line on standard output
reports {"load_s", "version"}. Then each line {"set", "question"} on standard input is answered by {"s", "logits",
"rss_mb", "device_mb"}: seconds from texts to logits, tokenising included, and the peak memory so far of the process and
of the CUDA device. Needs nothing of this project but for its own systems.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

THREADS = sys.argv[4] if len(sys.argv) > 4 else "1"
DEVICE = sys.argv[5] if len(sys.argv) > 5 else "cpu"
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[variable] = THREADS
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

BATCH = 16
SORTED = BATCH if DEVICE == "cuda" else 4
"""Pairs in a batch of the loops written here. On a CPU small ones are as quick a pair, and pairs sorted by length need
less padding in them: of a question's fourteen, one batch would pad all to the longest."""
MAX_TOKENS = 512
Score = Callable[[str, list[str]], Any]


def hybrid_retrieval(folder: str, backend: str, dtype: str = "auto") -> Score:
    """With its own defaults (batches under a token budget, longest with longest), but no memory of earlier pairs, and
    long passages cut as the peers cut them, and where: by default it would read all of them, in windows."""
    from hybrid_retrieval import Reranker

    options = {"backend": backend, "device": DEVICE, "dtype": dtype, "threads": int(THREADS), "cached_pairs": 0}
    options |= {"long_passages": "cut", "max_tokens": MAX_TOKENS}
    reranker = Reranker.load(folder, **options)
    return lambda query, passages: reranker.score([(query, passage) for passage in passages])


def transformers(folder: str, dtype: str = "float32") -> Score:
    """A careful plain loop: pairs sorted by length, batches padded to their own longest."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(int(THREADS))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).to(DEVICE, getattr(torch, dtype)).eval()

    def run(query: str, passages: list[str]) -> Any:
        options = {"truncation": "only_second", "max_length": MAX_TOKENS}
        encoded = tokenizer([query] * len(passages), passages, **options)["input_ids"]
        order = sorted(range(len(passages)), key=lambda i: -len(encoded[i]))
        logits = torch.empty(len(passages))
        with torch.inference_mode():
            for start in range(0, len(order), SORTED):
                rows = order[start : start + SORTED]
                batch = tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, return_tensors="pt").to(DEVICE)
                logits[rows] = model(**batch).logits[:, 0].float().cpu()
        return logits.numpy()

    return run


def sentence_transformers(folder: str, dtype: str = "float32") -> Score:
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(int(THREADS))
    model = CrossEncoder(folder, device=DEVICE, max_length=MAX_TOKENS, model_kwargs={"dtype": dtype})
    options = {"batch_size": BATCH, "show_progress_bar": False, "activation_fn": torch.nn.Identity()}
    return lambda query, passages: model.predict([(query, passage) for passage in passages], **options)


def flag_embedding(folder: str, dtype: str = "float32") -> Score:
    import torch
    from FlagEmbedding import FlagReranker

    torch.set_num_threads(int(THREADS))
    half = {"use_fp16": dtype == "float16", "use_bf16": dtype == "bfloat16"}
    options = {**half, "devices": [DEVICE], "batch_size": BATCH, "max_length": MAX_TOKENS}
    model = FlagReranker(folder, **options)
    return lambda query, passages: model.compute_score([(query, passage) for passage in passages], normalize=False)


def openvino(folder: str) -> Score:
    """The float32 ONNX export with weights compressed to int8; OpenVINO quantises activations where it sees fit."""
    import nncf
    import numpy as np
    import openvino
    from tokenizers import Tokenizer

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": int(THREADS), "PERFORMANCE_HINT": "LATENCY"})
    model = nncf.compress_weights(core.read_model(f"{folder}/reranker.onnx"))
    compiled = core.compile_model(model, "CPU")
    names = {name for port in compiled.inputs for name in port.get_names()}
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(MAX_TOKENS, strategy="only_second")

    def run(query: str, passages: list[str]) -> Any:
        encoded = [pair.ids for pair in tokenizer.encode_batch([(query, passage) for passage in passages])]
        order = sorted(range(len(passages)), key=lambda i: -len(encoded[i]))
        logits = np.empty(len(passages), np.float32)
        for start in range(0, len(order), SORTED):
            rows = order[start : start + SORTED]
            ids = np.ones((len(rows), len(encoded[rows[0]])), np.int64)
            mask = np.zeros_like(ids)
            for place, i in enumerate(rows):
                ids[place, : len(encoded[i])], mask[place, : len(encoded[i])] = encoded[i], 1
            feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            found = compiled({name: feeds[name] for name in names})
            logits[rows] = found[compiled.output(0)].reshape(-1)
        return logits

    return run


SYSTEMS: dict[str, tuple[Callable[..., Score], str]] = {
    "hybrid-retrieval": (lambda folder: hybrid_retrieval(folder, "native"), "hybrid-retrieval"),
    "hybrid-retrieval-onnx": (lambda folder: hybrid_retrieval(folder, "onnx"), "hybrid-retrieval"),
    "hybrid-retrieval-torch": (
        lambda folder, dtype="float32": hybrid_retrieval(folder, "torch", dtype),
        "hybrid-retrieval",
    ),
    "transformers": (transformers, "transformers"),
    "sentence-transformers": (sentence_transformers, "sentence-transformers"),
    "flag-embedding": (flag_embedding, "FlagEmbedding"),
    "openvino": (openvino, "openvino"),
}
DTYPES = {"-fp16": "float16", "-bf16": "bfloat16", "-fp8": "float8"}


def loader(system: str) -> tuple[Callable[[str], Score], str]:
    """What loads a system's model, in the type of numbers that its name ends in; and its package."""
    for ending, dtype in DTYPES.items():
        if system.endswith(ending):
            load, package = SYSTEMS[system.removesuffix(ending)]
            return functools.partial(load, dtype=dtype), package
    return SYSTEMS[system]


def device_memory() -> float | None:
    """Peak megabytes that torch held on the CUDA device."""
    if DEVICE != "cuda":
        return None
    import torch

    return torch.cuda.max_memory_allocated() / 2**20


def peak_megabytes() -> float:
    """Of this process's memory. (What getrusage says begins with the memory of the process that started this one.)"""
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    system, folder = sys.argv[1], sys.argv[2]
    with open(sys.argv[3], encoding="utf-8") as stream:
        pairs = json.load(stream)
    # Libraries print as they please: answers go to the real standard output, all else to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    load, package = loader(system)
    start = time.perf_counter()
    score = load(folder)
    facts = {"load_s": time.perf_counter() - start, "version": importlib.metadata.version(package)}
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        query, passages = pairs[asked["set"]][asked["question"]]
        start = time.perf_counter()
        logits = score(query, passages)
        elapsed = time.perf_counter() - start
        rss = peak_megabytes()
        answer = {"s": elapsed, "logits": [float(x) for x in logits], "rss_mb": rss, "device_mb": device_memory()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
