"""`fit-fusion` from end to end: a pipeline and a judged collection to a fit and its file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hybrid_retrieval.config import FusionConfig, PipelineConfig
from hybrid_retrieval.corpus.dataset import Dataset
from hybrid_retrieval.errors import ConfigError
from hybrid_retrieval.evaluation.fusion_fit import Fit, check_fit, fit_fusion
from hybrid_retrieval.evaluation.kept_lines import models_and_settings
from hybrid_retrieval.evaluation.runner import Progress, sampled
from hybrid_retrieval.evaluation.scored_queries import ScoredQuery, score_queries
from hybrid_retrieval.fusion import FORMAT, FittedOn, FusionFile
from hybrid_retrieval.index import Index
from hybrid_retrieval.pipeline import Pipeline
from hybrid_retrieval.rerankers import Reranker


def open_both_stages(config: PipelineConfig, index: str | Path | Index) -> Pipeline:
    """The pipeline of a configuration without the fusion that is to be fitted, and without early stop: a fit needs
    every candidate's logit. Raises `ConfigError` where it has no reranker."""
    search = dataclasses.replace(config.search, early_stop=False)
    config = dataclasses.replace(config, fusion=FusionConfig("reranker"), search=search)
    pipeline = Pipeline.from_config(config, index=index)
    _reranker_of(pipeline)
    return pipeline


def score_dataset(
    pipeline: Pipeline,
    dataset: Dataset,
    *,
    sample: int | None = None,
    seed: int = 0,
    num_candidates: int | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> list[ScoredQuery]:
    """Both stages' scores of the dataset's judged questions, or of `sample` of them drawn with `seed`.

    num_candidates: how many stage 2 scores; by default the configuration's. store: see `score_queries`.
    """
    used = pipeline.config.search.num_candidates if num_candidates is None else num_candidates
    if used < 2:
        raise ConfigError(f"num_candidates must be at least 2, or there is nothing to order, got {used}")
    _reranker_of(pipeline)
    return score_queries(
        pipeline,
        dataset,
        sampled(dataset.queries, sample, seed),
        num_candidates=used,
        identity=models_and_settings(pipeline),
        store=store,
        progress=progress,
    )


def fit_to_file(fit: Fit, pipeline: Pipeline, on: FittedOn) -> FusionFile:
    """The fusion file of a fit on the scores of `pipeline`."""
    reranker = _reranker_of(pipeline)
    return FusionFile(
        format=FORMAT,
        encoder=pipeline.encoder.name,
        encoder_identity=pipeline.encoder.identity,
        reranker=reranker.name,
        reranker_identity=reranker.identity,
        rerank=fit.rerank,
        weight=fit.weight,
        calibration=fit.calibration,
        fitted_on=on,
        cross_validation=fit.cross_validation,
    )


def fit_dataset(
    pipeline: Pipeline,
    dataset: Dataset,
    *,
    sample: int | None = None,
    seed: int = 0,
    num_candidates: int | None = None,
    folds: int = 5,
    min_gain: float = 0.0,
    significance: float = 0.05,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[Fit, FusionFile]:
    """Score a dataset's judged questions with both stages and fit a fusion. Arguments as for `score_dataset` and
    `fit_fusion`; `pipeline` as from `open_both_stages`."""
    asked = len(dataset.queries) if sample is None else min(sample, len(dataset.queries))
    if asked > 0:  # else `sampled` says what is wrong with it
        check_fit(asked, folds=folds, seed=seed, min_gain=min_gain, significance=significance)
    queries = score_dataset(
        pipeline,
        dataset,
        sample=sample,
        seed=seed,
        num_candidates=num_candidates,
        store=store,
        progress=progress,
    )
    fit = fit_fusion(queries, folds=folds, seed=seed, min_gain=min_gain, significance=significance)
    used = max(len(query.logits) for query in queries)  # fewer than asked for where the index holds fewer
    on = FittedOn(dataset.folder.resolve().name, dataset.split, len(queries), used, seed)
    return fit, fit_to_file(fit, pipeline, on)


def _reranker_of(pipeline: Pipeline) -> Reranker:
    if pipeline.reranker is None:
        raise ConfigError("fitting a fusion needs both stages: reranker.model is 'none'")
    return pipeline.reranker
