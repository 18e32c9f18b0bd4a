"""A fusion file for tests, for any models."""

from __future__ import annotations

import dataclasses
from typing import Any

from hybrid_retrieval.fusion import Calibration, CrossValidation, FittedOn, FusionFile


def fusion_file(**changes: Any) -> FusionFile:
    """`changes` replace fields."""
    figures = CrossValidation(5, 0.8, 0.85, 0.7, 0.05, 0.01, 0.09, 0.002, 0.3, 0.5, 0.1, 0.02)
    value = FusionFile(
        format=1,
        encoder="encoder",
        encoder_identity="e" * 64,
        reranker="reranker",
        reranker_identity="r" * 64,
        rerank=True,
        weight=0.4,
        calibration=Calibration(-3.0, 2.0, 0.5),
        fitted_on=FittedOn("set", "train", 200, 4, 0),
        cross_validation=figures,
    )
    return dataclasses.replace(value, **changes)
