"""The demonstration: an index over real paragraphs, questions in five languages, figures, a small
comparison."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from hybrid_retrieval.config import PipelineConfig
from hybrid_retrieval.errors import ConfigError
from hybrid_retrieval.evaluation.demo_data import demo_corpus
from hybrid_retrieval.evaluation.demo_sections import ask_examples, compare_tomato, measure_languages
from hybrid_retrieval.evaluation.demo_tables import show_build, show_examples, show_languages, show_tomato
from hybrid_retrieval.index import Index, load_encoder, load_reranker
from hybrid_retrieval.optional import require
from hybrid_retrieval.pipeline import Pipeline

Progress = Callable[[str, int, int], None]


def run_demo(
    folder: str | Path,
    *,
    config: PipelineConfig | None = None,
    sample: int = 16,
    wide_sample: int = 100,
    console: Console | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build the index in `folder` (where none may be) and return everything as one JSON-ready
    value.

    sample: questions a language that go through both stages; wide_sample: through stage 1 alone. console:
    where each part is printed as soon as it is there, None prints nothing. progress: called with (step, done,
    total). Returns {"index", "examples", "figures", "comparison", "seconds"}. Raises `ConfigError` for a
    configuration without a reranker or a sample < 1, and what `Index.build` and the models raise.
    """
    settings = config or PipelineConfig()
    if sample < 1 or wide_sample < 1:
        raise ConfigError(f"the demonstration's samples must be at least 1, got {sample} and {wide_sample}")
    require("ir_measures", "measuring a run", "evaluate")  # or its lack would show when most is done
    start = time.perf_counter()
    encoder, reranker = load_encoder(settings), load_reranker(settings)
    if reranker is None:
        raise ConfigError("the demonstration shows both stages: reranker.model must not be 'none'")
    built_from = time.perf_counter()
    index = Index.build(
        demo_corpus(),
        folder,
        encoder=encoder,
        reranker=reranker,
        config=settings,
        overwrite=False,
        progress=progress,
    )
    seconds = time.perf_counter() - built_from
    built = {**index.info(), "seconds": seconds, "passages_per_s": index.passages / seconds}
    pipeline = Pipeline(index, encoder, reranker, settings)
    if console is not None:
        show_build(console, built)
    examples = ask_examples(pipeline)
    if console is not None:
        show_examples(console, examples)
    figures = measure_languages(pipeline, sample, wide_sample, progress)
    if console is not None:
        show_languages(console, figures)
    comparison = compare_tomato(encoder, reranker)
    total = time.perf_counter() - start
    if console is not None:
        show_tomato(console, comparison)
        console.print(f"\nAll of it took {total:.0f} s.")
    return {
        "index": built,
        "examples": examples,
        "figures": figures,
        "comparison": comparison,
        "seconds": total,
    }
