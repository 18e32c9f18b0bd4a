"""Make the demonstration's collection (hybrid_retrieval/demo_data) from SQuAD and XQuAD in BEIR layout.

    python scripts/make_demo_data.py SQUAD_DEV XQUAD [--passages 1000] [--out hybrid_retrieval/demo_data]

SQUAD_DEV: a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv of SQuAD v1.1's development set.
XQUAD: a folder with corpus.en.jsonl, queries.<language>.jsonl and qrels.tsv. XQuAD's English paragraphs are
among SQuAD's, so its questions in every language are judged against SQuAD's paragraphs. The same input gives
the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hybrid_retrieval.corpus.queries import read_qrels, read_queries
from hybrid_retrieval.corpus.readers import read_corpus
from hybrid_retrieval.errors import CorpusError
from hybrid_retrieval.evaluation.demo_data import LANGUAGES


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demonstration's collection.")
    parser.add_argument("squad_dev", type=Path)
    parser.add_argument("xquad", type=Path)
    parser.add_argument("--passages", type=int, default=1000, help="XQuAD's paragraphs and others, drawn with seed 0")
    parser.add_argument("--out", type=Path, default=Path("hybrid_retrieval/demo_data"))
    arguments = parser.parse_args()
    try:
        make(arguments.squad_dev, arguments.xquad, arguments.passages, arguments.out)
    except (CorpusError, OSError) as error:
        parser.error(str(error))


def make(squad_dev: Path, xquad: Path, count: int, out: Path) -> None:
    passages = list(read_corpus(squad_dev / "corpus.jsonl"))
    ids_by_text = {passage.text: passage.passage_id for passage in passages}
    squad_ids: dict[str, str] = {}
    for passage in read_corpus(xquad / "corpus.en.jsonl"):
        if passage.text not in ids_by_text:
            raise CorpusError(f"XQuAD's paragraph '{passage.passage_id}' is not among SQuAD's")
        squad_ids[passage.passage_id] = ids_by_text[passage.text]

    others = [passage.passage_id for passage in passages if passage.passage_id not in set(squad_ids.values())]
    drawn = random.Random(0).sample(others, max(0, min(len(others), count - len(squad_ids))))
    kept = {*squad_ids.values(), *drawn}
    passages = [passage for passage in passages if passage.passage_id in kept]
    out.mkdir(parents=True, exist_ok=True)
    # The article's name is kept aside: with it in the text the task would be easier than passage retrieval
    # is.
    write_lines(
        out / "corpus.jsonl.gz",
        ({"_id": passage.passage_id, "text": passage.text, "article": passage.title} for passage in passages),
    )

    judged = read_qrels(xquad / "qrels.tsv")
    squad_judged = read_qrels(squad_dev / "qrels" / "test.tsv")
    rows = ["query-id\tcorpus-id\tscore\n"]
    for query_id, relevant in judged.items():
        found = {squad_ids[passage_id] for passage_id in relevant} | (set(squad_judged.get(query_id, {})) & kept)
        rows += [f"{query_id}\t{passage_id}\t1\n" for passage_id in sorted(found)]
    (out / "qrels.tsv").write_text("".join(rows), encoding="utf-8")

    for language in LANGUAGES:
        queries = read_queries(xquad / f"queries.{language}.jsonl")
        write_lines(
            out / f"queries.{language}.jsonl.gz",
            ({"_id": query.query_id, "text": query.text} for query in queries if query.query_id in judged),
        )
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {len(passages)} passages, {len(judged)} queries in {len(LANGUAGES)} languages, {size} bytes")


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    # No time stamp and no file name in the header, so that the bytes depend on the content alone.
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()
