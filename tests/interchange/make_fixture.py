"""Record a small index of colbert-ai 0.2.22 and the rankings that its Searcher gives, for the tests beside this file.

    python -m tests.interchange.make_fixture     in an environment with colbert-ai 0.2.22, transformers 4.57.6
                                                 and faiss-cpu (see tests/parity/make_fixtures.sh), on a CPU

The checkpoint is a small one made from a seed; texts are those of the parity tests. The index has three chunks.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import tests.parity.checkpoints as checkpoints

HERE = Path(__file__).parent
DIMENSIONS, NBITS, CHUNK_PASSAGES, NUM_PASSAGES = 128, 2, 16, 42


def record() -> None:
    """Write `colbert_index/`, `collection.tsv` and `rankings.npz`."""
    import torch
    from colbert import Indexer, Searcher
    from colbert.data import Collection
    from colbert.infra import ColBERTConfig, Run, RunConfig

    checkpoints.DIMENSIONS = DIMENSIONS
    checkpoints.METADATA["dim"] = DIMENSIONS
    torch.manual_seed(0)
    random.seed(0)
    Collection.get_chunksize = lambda self: CHUNK_PASSAGES
    content = checkpoints.texts()
    paragraphs = dict.fromkeys(passage for _, passage in content["pairs"])
    sentences = [f"{sentence}." for text in paragraphs for sentence in text[:1500].split(". ") if len(sentence) > 60]
    texts = (" ".join(text.split()) for text in [*content["colbert_passages"], *sentences])
    passages = list(dict.fromkeys(texts))[:NUM_PASSAGES]  # equal passages tie, in no certain order
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        checkpoint = checkpoints.make_colbert(work / "checkpoint")
        (work / "collection.tsv").write_text(
            "".join(f"{pid}\t{text}\n" for pid, text in enumerate(passages)), encoding="utf-8"
        )
        with Run().context(RunConfig(nranks=1, experiment="x", root=folder, avoid_fork_if_possible=True)):
            config = ColBERTConfig(nbits=NBITS, doc_maxlen=64, query_maxlen=32, checkpoint=str(checkpoint))
            indexer = Indexer(checkpoint=str(checkpoint), config=config, verbose=0)
            indexer.index(name="index", collection=str(work / "collection.tsv"), overwrite=True)
            searcher = Searcher(index="index", verbose=0)
            queries = searcher.encode(content["colbert_queries"][:6]).half().float()
            # Every passage a candidate: what is recorded is colbert-ai's scoring, not its pruning.
            num_centroids = searcher.ranker.codec.centroids.shape[0]
            searcher.configure(ncells=num_centroids, centroid_score_threshold=-1.0, ndocs=10**4)
            found = [searcher.dense_search(query[None], k=len(passages)) for query in queries]
        made = work / "x" / "indexes" / "index"
        shutil.rmtree(HERE / "colbert_index", ignore_errors=True)
        shutil.copytree(made, HERE / "colbert_index")
        shutil.copy(work / "collection.tsv", HERE / "collection.tsv")
    for name in ("plan.json", "metadata.json"):
        _forget_machine(HERE / "colbert_index" / name, folder)
    np.savez_compressed(
        HERE / "rankings.npz",
        queries=queries.numpy().astype(np.float16),
        pids=np.array([pids for pids, _, _ in found], np.int16),
        scores=np.array([scores for _, _, scores in found], np.float32),
    )


def _forget_machine(path: Path, folder: str) -> None:
    """Leave out where and by whom the index was built."""
    value = json.loads(path.read_text(encoding="utf-8"))
    config: dict[str, Any] = value["config"]
    value["config"] = {
        key: "." + entry.removeprefix(folder) if isinstance(entry, str) and entry.startswith(os.sep) else entry
        for key, entry in config.items()
        if key not in ("gpus", "name")
    }
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
