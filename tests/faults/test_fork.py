"""Models that were at work before a fork, as under a server that loads them once and forks its workers."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import multiprocessing, sys
from hybrid_retrieval import Index, Pipeline

Index.build([{"_id": str(i), "text": f"House {i} stands near the river."} for i in range(6)], sys.argv[1])
pipeline = Pipeline.from_config({"encoder": {"threads": 2}, "reranker": {"threads": 2}}, index=sys.argv[1])

def ask(query):
    pipeline.encoder.encode_passages(["a house", "a river", query])
    return [(hit.passage_id, hit.score) for hit in pipeline.query(query, k=3)]

if __name__ == "__main__":
    queries = ["where is house 3?", "what is near house 5?"]
    pipeline.encoder.encode_passages(["a house", "a river"])
    pipeline.query("warm up")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(ask, queries)
    assert found == [ask(query) for query in queries], found
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
def test_a_forked_worker_answers_as_its_parent_does(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(tmp_path / "index")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
