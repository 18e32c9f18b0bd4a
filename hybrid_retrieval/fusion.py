"""Two scores make one order: the raw logit alone, a weighted sum, or a weight and a calibration fitted from judgements.

A fusion file (JSON) is what `hybrid-retrieval fit-fusion` writes: the weight, whether re-ranking pays at all, the
calibration of the final score into a probability, and the evidence for each. It holds for one encoder and one reranker.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.config import FusionConfig, from_mapping
from hybrid_retrieval.errors import ConfigError, ModelMismatchError
from hybrid_retrieval.whole_files import write_whole

FORMAT = 1


def standardise(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero mean and unit deviation over one query's candidates; all zeros where they are all equal."""
    centred = (scores - scores.mean(dtype=np.float64)).astype(np.float32) if len(scores) else scores
    deviation = float(np.sqrt(np.mean(np.square(centred, dtype=np.float64)))) if len(scores) else 0.0
    return centred / np.float32(deviation) if deviation > 1e-6 else np.zeros_like(centred)


def fuse(
    weight: float | None,
    logits: NDArray[np.float32],
    retrieval_scores: NDArray[np.float32],
    rows: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Final scores of all candidates, and their order.

    weight: of the standardised logit beside the standardised MaxSim; None orders by the raw logit. logits: float32 [M],
    raw, of the first M candidates. retrieval_scores: float32 [N], MaxSim, best first, N >= M. Candidates M to N were
    not rescored: they follow in stage 1's order, each as far below the lowest rescored score as its MaxSim lies below
    that of the last rescored candidate. rows: int64 [N], where candidates of one score are ordered by them, not by
    their place, rescored ones first. Returns float32 [N] and int64 [N].
    """
    head = logits.astype(np.float32)
    if weight is not None:
        share = np.float32(weight)
        head = share * standardise(head) + (1 - share) * standardise(retrieval_scores[: len(head)])
    scores = np.empty(len(retrieval_scores), np.float32)
    scores[: len(head)] = head
    if 0 < len(head) < len(scores):
        scores[len(head) :] = head.min() - (retrieval_scores[len(head) - 1] - retrieval_scores[len(head) :])
    if rows is None:
        rows = np.arange(len(scores))
    # The tail never rises above the head's lowest, so that one order serves both; where its scores are rounded to one
    # number, MaxSim still tells them apart.
    maxsim = retrieval_scores.copy()
    maxsim[: len(head)] = maxsim[len(head) - 1] if len(head) else 0
    order = np.lexsort((rows, np.arange(len(scores)) >= len(head), -maxsim, -scores))
    return scores, order


def evidence(logits: NDArray[np.float32] | None, retrieval_scores: NDArray[np.float32]) -> float:
    """How much speaks for a query having an answer at all, whichever candidate it is.

    After re-ranking, the best raw logit. After stage 1 alone, by how much of their mean the best MaxSim leads the
    candidates: MaxSim itself grows with the query's length. 0 for no candidates.
    """
    if not len(retrieval_scores):
        return 0.0
    if logits is not None:
        return float(logits.max())
    mean = float(retrieval_scores.mean(dtype=np.float64))
    return float(retrieval_scores[0]) / mean - 1 if mean > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """P(relevant) = sigmoid(intercept + score * s + evidence * e), after Platt (1999) with one more term.

    s: a candidate's final score, standardised as the fusion leaves it. e: its query's `evidence`, which lifts or lowers
    all of a query's candidates together, so probabilities never contradict the order.
    """

    intercept: float
    score: float
    evidence: float

    def __post_init__(self) -> None:
        for name in ("intercept", "score", "evidence"):
            _check_finite(f"calibration.{name}", getattr(self, name))
        for name in ("score", "evidence"):
            if getattr(self, name) < 0:
                raise ConfigError(f"calibration.{name} must be 0 or more, got {getattr(self, name)}")

    def probabilities(self, scores: NDArray[np.float32], evidence: float) -> NDArray[np.float32]:
        """float32 [N] for one query's N scores."""
        x = self.intercept + self.score * scores.astype(np.float64) + self.evidence * evidence
        return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)


@dataclass(frozen=True, slots=True)
class FittedOn:
    """The judged questions behind a fusion file. num_candidates: how many of each were rescored."""

    dataset: str
    split: str
    queries: int
    num_candidates: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("queries", "num_candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"fitted_on.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """What fusion gains on questions that did not choose its weight: means of nDCG@10, and fused minus stage 1.

    low and high: 95 % interval of the difference (paired bootstrap). p_value: of the paired randomisation test.
    weight_lowest, weight_highest: what the folds chose. brier: mean squared error of the probabilities;
    calibration_error: their expected calibration error.
    """

    folds: int
    stage_1: float
    fused: float
    reranker_alone: float
    difference: float
    low: float
    high: float
    p_value: float
    weight_lowest: float
    weight_highest: float
    brier: float
    calibration_error: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_finite(f"cross_validation.{field.name}", getattr(self, field.name))


@dataclass(frozen=True, slots=True)
class FusionFile:
    """The content of a fusion file, which `read` and `write` keep strict: no other keys, none missing.

    encoder, reranker: names, for people; the identities decide. rerank: False where re-ranking did not pay.
    """

    format: int
    encoder: str
    encoder_identity: str
    reranker: str
    reranker_identity: str
    rerank: bool
    weight: float
    calibration: Calibration
    fitted_on: FittedOn
    cross_validation: CrossValidation

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ConfigError(f"format {self.format}; this release reads fusion files of format {FORMAT}")
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"weight must lie between 0 and 1, got {self.weight}")

    @classmethod
    def read(cls, path: str | Path) -> FusionFile:
        """Raises `ConfigError` that names the file, and the key where one is wrong."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ConfigError(
                f"{Path(path).absolute()}: no such fusion file, which fusion.file of the configuration names (of the "
                "index's own, where none is given): 'hybrid-retrieval fit-fusion' writes one"
            ) from None
        except (ValueError, OSError, RecursionError) as error:
            raise ConfigError(f"{path}: not a readable JSON file ({error})") from None
        found: FusionFile = from_mapping(cls, values, source=str(path))
        return found

    def write(self, path: str | Path) -> None:
        """Write it as JSON (`whole_files.write_whole`). Raises `ConfigError` where that cannot be."""
        try:
            write_whole(path, (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())
        except OSError as error:
            raise ConfigError(f"{path}: the fusion file cannot be written ({error.strerror or error})") from None

    def check(self, path: str, kind: str, name: str, identity: str) -> None:
        """Raise `ModelMismatchError` unless the `kind` ("encoder" or "reranker") in use is the one fitted with."""
        fitted_name, fitted_identity = getattr(self, kind), getattr(self, f"{kind}_identity")
        if identity != fitted_identity:
            same = " (same name, other weights or settings)" if fitted_name == name else ""
            raise ModelMismatchError(
                f"{path} was fitted with the {kind} '{fitted_name}', not with '{name}'{same}: fit the fusion anew with "
                "'hybrid-retrieval fit-fusion', or use another fusion.method"
            )

    def verdict(self) -> str:
        """Why re-ranking is left out or not, with the figures."""
        found, on = self.cross_validation, self.fitted_on
        return (
            f"nDCG@10 {found.stage_1:.3f} by stage 1, {found.fused:.3f} fused, {found.reranker_alone:.3f} by the "
            f"reranker alone (difference of fusion {found.difference:+.3f}, 95 % interval {found.low:+.3f} to "
            f"{found.high:+.3f}, p = {found.p_value:.2g}; {on.queries} questions of {on.dataset} {on.split})"
        )


@dataclass(frozen=True, slots=True)
class Fusion:
    """What a pipeline does with two scores. weight: as for `fuse`. fitted: the fusion file in use, if any."""

    weight: float | None
    fitted: FusionFile | None = None

    @classmethod
    def of(
        cls,
        config: FusionConfig,
        *,
        encoder: tuple[str, str],
        reranker: tuple[str, str] | None,
        recommended_weight: float | None,
    ) -> Fusion:
        """encoder, reranker: (name, identity) of those in use. recommended_weight: what the reranker's files say.

        Raises `ConfigError` for an unreadable fusion file, `ModelMismatchError` for one of other models.
        """
        if config.method == "fitted":
            path = str(config.file)
            fitted = FusionFile.read(path)
            fitted.check(path, "encoder", *encoder)
            if reranker is not None:
                fitted.check(path, "reranker", *reranker)
            return cls(fitted.weight, fitted)
        if config.method == "weighted":
            return cls(config.weight)
        return cls(recommended_weight if config.method == "auto" else None)

    @property
    def rerank(self) -> bool:
        """Whether stage 2 is worth running."""
        return self.fitted is None or self.fitted.rerank

    def candidates_of_stage_1(self, k: int) -> int:
        """How many candidates stage 1 must give where it is the last: k, and those that a calibration compares."""
        return k if self.fitted is None or self.fitted.rerank else max(k, self.fitted.fitted_on.num_candidates)

    def probabilities(
        self, logits: NDArray[np.float32] | None, scores: NDArray[np.float32], retrieval_scores: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        """Of each candidate, best of stage 1 first: float32 [N], NaN behind those that were compared.

        logits: float32 [M], or None where stage 2 did not run. scores: float32 [N], the final ones. None without a
        fitted fusion, and where it was fitted for the other number of stages.
        """
        if self.fitted is None or self.fitted.rerank != (logits is not None):
            return None
        compared = len(logits) if logits is not None else self.fitted.fitted_on.num_candidates
        head, tail = retrieval_scores[:compared], retrieval_scores[compared:]
        final = scores[:compared] if logits is not None else standardise(head)
        known = self.fitted.calibration.probabilities(final, evidence(logits, head))
        return np.concatenate([known, np.full(len(tail), np.nan, np.float32)])

    def notes(self, rescored: int) -> tuple[str, ...]:
        """What a reader of the scores should know. rescored: how many candidates stage 2 scored."""
        if self.fitted is None:
            return ()
        if not self.fitted.rerank:
            return (f"not reranked, as the fusion file advises: {self.fitted.verdict()}",)
        calibrated = self.fitted.fitted_on.num_candidates
        if rescored == calibrated:
            return ()
        return (f"probabilities were calibrated on {calibrated} rescored candidates a query, here {rescored} were",)


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value}")
