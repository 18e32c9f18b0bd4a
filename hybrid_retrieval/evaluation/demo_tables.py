"""The demonstration's values as tables for people, readable in a terminal and in a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybrid_retrieval.evaluation.demo_data import LANGUAGES


def show_build(console: Console, built: Mapping[str, Any]) -> None:
    """What was indexed, in how long."""
    console.print(
        f"Indexed {built['passages']:,} English paragraphs (SQuAD, from Wikipedia; CC BY-SA 4.0) in "
        f"{built['seconds']:.1f} s, {built['passages_per_s']:.0f} passages/s: {built['tokens']:,} token "
        f"vectors, {built['bytes'] / 1e6:.1f} MB on disk at {built['nbits']} bits a dimension."
    )


def show_examples(console: Console, examples: Sequence[Mapping[str, Any]]) -> None:
    """Each question with its best passages: both stages' ranks and scores side by side."""
    console.print("\nThe same English paragraphs, asked in five languages (questions drawn by seed, not chosen).")
    console.print("* marks the paragraph that the question was written for.")
    for example in examples:
        console.print()
        console.print(Text(f"{LANGUAGES[example['language']]}: {example['query']}", style="bold"))
        if example["language"] != "en":
            console.print(Text(f"In English: {example['english']}"))
        table = _table(("", "left"), ("rank", "right"), ("reranker", "right"), ("rank 1", "right"), ("MaxSim", "right"))
        table.add_column("passage", no_wrap=True)
        _add_text_column(table, console, 52)
        for hit in example["hits"]:
            table.add_row(
                "*" if hit["relevant"] else "",
                str(hit["rank"]),
                _number(hit["reranker_score"], 2),
                "" if hit["retrieval_rank"] is None else str(hit["retrieval_rank"]),
                _number(hit["retrieval_score"], 2),
                Text(hit["passage_id"]),
                Text(" ".join(hit["text"].split())),
            )
        console.print(table)
    console.print("\nrank: after both stages. reranker: stage 2's raw score. rank 1, MaxSim: those of stage 1 alone.")


def show_languages(console: Console, figures: Mapping[str, Any]) -> None:
    """The table of measures and times by query language."""
    console.print(
        f"\nQuality by query language: {figures['queries']} XQuAD questions, the same in every language, "
        f"drawn with seed {figures['seed']}; the paragraphs are English."
    )
    table = _table(("queries", "left"))
    for measure in ("nDCG@10", "R@100"):
        for system in ("BM25", "stage 1", "both"):
            table.add_column(f"{measure}\n{system}", justify="right", no_wrap=True)
    for name in ("stage 1", "stage 2"):
        table.add_column(f"ms a query\n{name}", justify="right", no_wrap=True)
    for language, row in figures["languages"].items():
        systems = (row["bm25"], row["stage1"], row["both"])
        latency = row["latency_ms"]
        first = sum(latency[stage]["p50"] for stage in ("encode", "search") if stage in latency)
        table.add_row(
            LANGUAGES[language],
            *(_number(values and values[name], 3) or "-" for name in ("nDCG@10", "R@100") for values in systems),
            f"{first:.0f}",
            f"{latency['rerank']['p50']:.0f}" if "rerank" in latency else "-",
        )
    console.print(table)
    wide = ", ".join(
        f"{LANGUAGES[language]} {row['stage1_wide']['nDCG@10']:.3f}" for language, row in figures["languages"].items()
    )
    bm25 = figures["languages"]["en"]["bm25_wide"]["nDCG@10"]
    candidates = figures["num_candidates"] or "passages"
    console.print(
        f"On {figures['wide_queries']} questions, nDCG@10 of stage 1: {wide}; BM25 (English) {bm25:.3f}.\n"
        "BM25 matches words, so it has no figure across languages. Stage 2 reorders stage 1's best "
        f"{candidates}, so R@100 stays.\nTimes are medians. With {figures['queries']} questions a difference "
        "of .05 can be chance: `hybrid-retrieval evaluate` measures whole collections."
    )


def show_tomato(console: Console, comparison: Mapping[str, Any]) -> None:
    """The three-passage comparison."""
    console.print()
    console.print(Text(f"Each stage alone, without an index: {comparison['query']}", style="bold"))
    table = _table(("reranker", "right"), ("rank", "right"), ("MaxSim", "right"), ("rank", "right"))
    table.add_column("passage", no_wrap=True)
    _add_text_column(table, console, 48)
    for passage in comparison["passages"]:
        table.add_row(
            _number(passage["reranker_score"], 2),
            str(passage["reranker_rank"]),
            _number(passage["maxsim"], 2),
            str(passage["maxsim_rank"]),
            Text(passage["passage_id"]),
            Text(passage["text"]),
        )
    console.print(table)


def _table(*columns: tuple[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=True)
    return table


def _add_text_column(table: Table, console: Console, used: int) -> None:
    """A column that takes what the others, `used` cells wide, leave of the line. Rich would shrink the
    others."""
    table.add_column("text", overflow="ellipsis", no_wrap=True, max_width=max(20, console.width - used))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
