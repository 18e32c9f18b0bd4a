"""`evaluate`: a collection's queries through the pipeline, and what its judgements say of the result."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from hybrid_retrieval.cli.output import NamedPath, check_output, echo_json, progress_bar, table_console
from hybrid_retrieval.cli.query import check_for_reranker, open_pipeline
from hybrid_retrieval.corpus.dataset import Dataset
from hybrid_retrieval.corpus.runs import check_word, write_run
from hybrid_retrieval.types import check_count

if TYPE_CHECKING:
    from hybrid_retrieval.evaluation.runner import Evaluation

MEASURES = "nDCG@10 R@100 RR@10"


@click.command()
@click.argument("index", type=NamedPath())
@click.argument("dataset", type=NamedPath())
@click.option("--run", "run_file", type=NamedPath(), help="Write the ranking to FILE as a TREC run.")
@click.option("--answers", type=NamedPath(), help="Keep answers in FILE; an interrupted run goes on from there.")
@click.option("--measures", default=MEASURES, show_default=True, help="Names as in ir-measures.")
@click.option("--split", default="test", show_default=True, help="Which qrels: qrels/<split>.tsv.")
@click.option("--sample", type=int, help="Only so many queries, drawn with a fixed seed.")
@click.option("--num-candidates", type=int, help="Passages that the reranker scores. Default: the configuration's.")
@click.option("--no-rerank", is_flag=True, help="Stop after stage 1.")
@click.option("--exact", is_flag=True, help="Score every passage by MaxSim instead of pruning.")
@click.option("--config", type=NamedPath(), help="Pipeline configuration. Default: the one INDEX was built with.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    index: str,
    dataset: str,
    run_file: str | None,
    answers: str | None,
    measures: str,
    split: str,
    sample: int | None,
    num_candidates: int | None,
    no_rerank: bool,
    exact: bool,
    config: str | None,
    as_json: bool,
) -> None:
    """Run the queries of DATASET (a BEIR folder) against INDEX and measure the rankings."""
    from hybrid_retrieval.evaluation.kept_lines import models_and_settings, ordering
    from hybrid_retrieval.evaluation.measures import named_measures
    from hybrid_retrieval.evaluation.runner import check_collection, missing_passages, run_dataset

    if no_rerank and num_candidates is not None:
        raise click.UsageError("--num-candidates is for the reranker: it says nothing with --no-rerank")
    check_output("--run", run_file)
    check_output("--answers", answers, in_place=True)
    if run_file is not None and answers is not None and Path(run_file).resolve() == Path(answers).resolve():
        raise click.UsageError("--run and --answers name the same file")
    if num_candidates is not None:
        check_count("num_candidates", num_candidates, 1)
    wanted = named_measures(measures)
    collection = Dataset.open(dataset, split=split)
    if run_file:  # what its columns cannot hold would else be found when all is done
        for query_id, judged in collection.qrels.items():
            check_word(query_id, "query id")
            for passage_id in judged:
                check_word(passage_id, "passage id")
    pipeline = open_pipeline(index, config, exact=exact, rerank=not no_rerank)
    check_for_reranker(pipeline, "--num-candidates", num_candidates)
    check_collection(pipeline.index, collection)
    with progress_bar(quiet=as_json) as progress:
        result = run_dataset(
            pipeline,
            collection,
            [measure for measure, _ in wanted],
            sample=sample,
            num_candidates=num_candidates,
            identity=models_and_settings(pipeline) | ordering(pipeline),
            store=answers,
            progress=progress,
        )
    result = dataclasses.replace(result, measures={name: result.measures[str(measure)] for measure, name in wanted})
    notes = [] if pipeline.reranker is None or pipeline.fusion.rerank else list(pipeline.fusion.notes(0))
    if missing := missing_passages(pipeline.index, collection, result.run):
        are = "passages that are judged relevant are" if missing > 1 else "passage that is judged relevant is"
        notes.append(f"{missing:,} {are} not in the index")
    try:  # figures and run: either is worth having where the other cannot be written
        if as_json:
            told = {"notes": notes} if notes else {}
            echo_json({"measures": result.measures, "queries": result.queries, "latency_ms": result.latency_ms, **told})
        else:
            show(result, notes)
        sys.stdout.flush()
    finally:
        if run_file:
            write_run(Path(run_file), result.run, tag="hybrid_retrieval")


def show(result: Evaluation, notes: Sequence[str]) -> None:
    """The figures as a table."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in result.measures.items():
        table.add_row(name, f"{value:.4f}")
    table.add_row("queries", f"{result.queries:,}")
    for stage, figures in result.latency_ms.items():
        table.add_row(f"{stage} p50 / p95", f"{figures['p50']:.1f} / {figures['p95']:.1f} ms")
    console = table_console()
    console.print(table)
    for note in notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
