"""`query` and `rerank`: both stages over an index, and stage 2 alone over a list."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from hybrid_retrieval.cli.output import NamedPath, echo_json, table_console
from hybrid_retrieval.config import PipelineConfig
from hybrid_retrieval.corpus.queries import read_queries
from hybrid_retrieval.corpus.readers import read_passage_list
from hybrid_retrieval.corpus.runs import trec_lines
from hybrid_retrieval.errors import QueryError
from hybrid_retrieval.index import Index
from hybrid_retrieval.pipeline import Pipeline, check_request
from hybrid_retrieval.rerankers import Reranker
from hybrid_retrieval.types import Hit, Query, Ranking, check_count, check_probability, check_query


def open_config(index: Index, config: str | None) -> PipelineConfig:
    """The configuration in a file, or else the one that an index was built with."""
    return PipelineConfig.load(config) if config else index.own_config()


def open_pipeline(index: str, config: str | None, *, exact: bool = False, rerank: bool = True) -> Pipeline:
    """The pipeline of a command: the index's own configuration, or that of `config`."""
    opened = Index.open(index)
    settings = open_config(opened, config)
    if exact:
        settings = dataclasses.replace(settings, search=dataclasses.replace(settings.search, exact=True))
    if not rerank:
        settings = dataclasses.replace(settings, reranker=dataclasses.replace(settings.reranker, model="none"))
    return Pipeline.from_config(settings, index=opened)


def check_for_reranker(pipeline: Pipeline, option: str, value: float | None) -> None:
    """Raise a usage error for an option of stage 2 where the configuration has none."""
    if value is not None and pipeline.reranker is None:
        raise click.UsageError(f"{option} is for the reranker, and this configuration has none")


@click.command()
@click.argument("index", type=NamedPath())
@click.argument("text", required=False)
@click.option("--queries", type=NamedPath(), help="Queries: BEIR queries.jsonl, or TSV `id<TAB>text`.")
@click.option("-k", "k", type=int, default=10, show_default=True, help="Passages to return.")
@click.option(
    "--num-candidates",
    type=int,
    help="Passages that the reranker scores. Default: the configuration's, and -k at least.",
)
@click.option("--no-rerank", is_flag=True, help="Stop after stage 1.")
@click.option("--exact", is_flag=True, help="Score every passage by MaxSim instead of pruning.")
@click.option("--deadline-ms", type=float, help="Return the best ranking so far after so many milliseconds.")
@click.option(
    "--min-probability", type=float, help="Only hits at least so probably relevant; needs fusion.method 'fitted'."
)
@click.option("--format", "form", type=click.Choice(["table", "jsonl", "trec"]), default="table", show_default=True)
@click.option("--config", type=NamedPath(), help="Pipeline configuration. Default: the one INDEX was built with.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format jsonl.")
def query(
    index: str,
    text: str | None,
    queries: str | None,
    k: int,
    num_candidates: int | None,
    no_rerank: bool,
    exact: bool,
    deadline_ms: float | None,
    min_probability: float | None,
    form: str,
    config: str | None,
    as_json: bool,
) -> None:
    """Answer TEXT, or each query of a file, from INDEX."""
    if (text is None) == (queries is None):
        raise click.UsageError("give either TEXT or --queries FILE")
    if as_json and form == "trec":
        raise click.UsageError("--json and --format trec exclude each other")
    if no_rerank and num_candidates is not None:
        raise click.UsageError("--num-candidates is for the reranker: it says nothing with --no-rerank")
    if no_rerank and deadline_ms is not None:
        raise click.UsageError("--deadline-ms cuts the reranker short: it says nothing with --no-rerank")
    check_request(k, num_candidates, deadline_ms)
    if min_probability is not None:
        check_probability(min_probability)
    asked = [Query("1", text)] if text is not None else read_queries(Path(queries or ""))
    if text is not None:
        check_query(text)
    pipeline = open_pipeline(index, config, exact=exact, rerank=not no_rerank)
    for option, value in (("--num-candidates", num_candidates), ("--deadline-ms", deadline_ms)):
        check_for_reranker(pipeline, option, value)
    noted: list[str] = []
    for one in asked:
        try:
            start = time.perf_counter()
            ranking = pipeline.query(one.text, k, num_candidates=num_candidates, deadline_ms=deadline_ms)
            seconds = time.perf_counter() - start
            if min_probability is not None:
                ranking = ranking.at_least(min_probability)
        except QueryError as error:
            raise QueryError(f"query '{one.query_id}': {error}") if queries else error from None
        if as_json or form == "jsonl":
            echo_json({"query_id": one.query_id, "query": one.text, **ranking_dict(ranking)})
        elif form == "trec":
            for line in trec_lines(one.query_id, ranking.ids, ranking.scores, tag="hybrid_retrieval"):
                click.echo(line)
            noted += [f"query '{one.query_id}': {note}" for note in ranking.notes]
        else:
            show_ranking(one, ranking, seconds)
        sys.stdout.flush()
    if noted:  # a run has no room for them
        click.echo(f"note: {noted[0]}" + (f" (and {len(noted) - 1:,} more notes)" if noted[1:] else ""), err=True)


@click.command()
@click.argument("text")
@click.option(
    "--passages",
    type=NamedPath(),
    required=True,
    help="A passage a line, plain text or a JSON object; or .csv, .tsv, .parquet.",
)
@click.option("-k", "k", type=int, default=10, show_default=True, help="Passages to return.")
@click.option("--model", default="embedded", show_default=True, help="`embedded`, a folder, or a hub id.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rerank(text: str, passages: str, k: int, model: str, as_json: bool) -> None:
    """Order the passages of a file by the reranker's score for TEXT: stage 2 alone, no index."""
    check_count("k", k, 1)
    check_query(text)
    given = list(read_passage_list(Path(passages)))
    start = time.perf_counter()
    ranking = Reranker.load(model).rank(text, given, k=k)
    seconds = time.perf_counter() - start
    if as_json:
        echo_json({"query": text, **ranking_dict(ranking)})
    else:
        show_ranking(Query("1", text), ranking, seconds)


def ranking_dict(ranking: Ranking) -> dict[str, Any]:
    """A ranking as `--json` prints it: `hits`, how many candidates were `rescored` where stage 2 was asked to, and
    `notes` where there is something to know."""
    rescored = {} if ranking.rescored is None else {"rescored": ranking.rescored}
    notes = {"notes": list(ranking.notes)} if ranking.notes else {}
    return {"hits": [hit_dict(hit) for hit in ranking], **rescored, **notes}


def hit_dict(hit: Hit) -> dict[str, Any]:
    """A hit as `--json` prints it; `probability` where a fitted fusion is in use."""
    values = {
        "passage_id": hit.passage_id,
        "rank": hit.rank,
        "score": hit.score,
        "retrieval_rank": hit.retrieval_rank,
        "retrieval_score": hit.retrieval_score,
        "reranker_score": hit.reranker_score,
        "text": hit.text,
    }
    if hit.probability is not None:
        values["probability"] = hit.probability
    if hit.title:
        values["title"] = hit.title
    if hit.metadata:
        values["metadata"] = dict(hit.metadata)
    return values


def show_ranking(asked: Query, ranking: Ranking, seconds: float) -> None:
    """One ranking as a table, with both stages' ranks and scores."""
    console = table_console()
    table = Table(title=Text(asked.text), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    calibrated, retrieved = ranking.probabilities is not None, ranking.retrieval_scores is not None
    stage_1 = ("MaxSim", "MaxSim rank") if retrieved else ()
    for name in ("rank", "score", *stage_1, "reranker", *(["probability"] if calibrated else [])):
        table.add_column(name, justify="right", no_wrap=True)
    longest_id = max((len(passage_id) for passage_id in ranking.ids), default=0)
    table.add_column("passage", no_wrap=True, max_width=40)
    # The text takes what the others leave of the line: given a share instead, it would shrink them.
    used = 56 + 13 * calibrated + min(40, max(len("passage"), longest_id))
    table.add_column("text", overflow="ellipsis", no_wrap=True, max_width=max(20, console.width - used))
    for hit in ranking:
        table.add_row(
            str(hit.rank),
            f"{hit.score:.3f}",
            *([f"{hit.retrieval_score:.3f}", str(hit.retrieval_rank)] if retrieved else []),
            "" if hit.reranker_score is None else f"{hit.reranker_score:.3f}",
            *(["" if hit.probability is None else f"{hit.probability:.3f}"] if calibrated else []),
            Text(hit.passage_id),
            Text(" ".join(f"{hit.title} {hit.text}".split())),
        )
    console.print(table)
    stages = ", ".join(f"{name} {ms:.0f} ms" for name, ms in ranking.timings_ms.items())
    console.print(f"{seconds * 1e3:.0f} ms ({stages})" if stages else f"{seconds * 1e3:.0f} ms")
    for note in ranking.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
