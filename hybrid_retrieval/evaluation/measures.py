"""Evaluation measures by the field's names: `nDCG@10`, `R@100`, `RR@10`, computed by ir-measures."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hybrid_retrieval.errors import ConfigError
from hybrid_retrieval.optional import require

DEEPEST = 1_000_000
# Names end at white space or commas, but not inside the parentheses of parameters: "P(rel=2,
# judged_only=True)@5".
_SEPARATOR = re.compile(r"[\s,]+(?![^(]*\))")
_EXAMPLES = "nDCG@10, R@100, RR@10, AP, P@5, Success@1"


def parse_measures(text: str) -> list[Any]:
    """Names separated by white space or commas to ir-measures' values; `str()` of one gives its name back.

    A name given twice counts once. Raises `ConfigError` for no name, an unknown one (it names the nearest
    known), an impossible cut-off or parameter, and measures that need a package beyond ir-measures' own, or what else
    this machine lacks.
    """
    return [measure for measure, _ in named_measures(text)]


def named_measures(text: str) -> list[tuple[Any, str]]:
    """As `parse_measures`, each with the first name that it was asked for by: RR@10, for one, by MRR@10."""
    found: list[tuple[Any, str]] = []
    for name in filter(None, _SEPARATOR.split(text.strip())):
        measure = _parse(name)
        if all(measure != known for known, _ in found):
            found.append((measure, name))
    if not found:
        raise ConfigError(f"no measure named; expected one or more, such as {_EXAMPLES}")
    return found


def evaluate(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: str | Sequence[Any],
) -> dict[str, float]:
    """Each measure over all queries of the qrels, of which one that the run skipped counts as 0; aggregated as
    ir-measures does, by the mean, and counts such as NumRet by the sum.

    run: query id -> passage id -> score. It is ordered by score, ties as the run lists them, whichever tie
    rule a measure's own implementation has. measures: text, or what `parse_measures` gave.
    """
    wanted = parse_measures(measures) if isinstance(measures, str) else list(measures)
    values = per_query(run, qrels, wanted)
    found = {}
    for measure in wanted:
        aggregator = measure.aggregator()
        for value in values[str(measure)].values():
            aggregator.add(value)
        found[str(measure)] = float(aggregator.result())
    return found


def per_query(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: str | Sequence[Any],
) -> dict[str, dict[str, float]]:
    """measure -> query id -> value, for every query of the qrels, in their order. Arguments as for
    `evaluate`."""
    ir_measures = _ir_measures()
    if not qrels:
        raise ConfigError("no judgements to measure by: the qrels are empty")
    wanted = parse_measures(measures) if isinstance(measures, str) else list(measures)
    values: dict[str, dict[str, float]] = {str(measure): dict.fromkeys(qrels, 0.0) for measure in wanted}
    # By number: some implementations know no other ids, or cut them.
    answered = [query_id for query_id, scores in run.items() if query_id in qrels and scores]
    named = {str(number): query_id for number, query_id in enumerate(answered, 1)}
    both = {number: _by_number(run[query_id], qrels[query_id]) for number, query_id in named.items()}
    ranked = {number: scores for number, (scores, _) in both.items()}
    judged = {number: grades for number, (_, grades) in both.items()}
    if ranked:
        for measure in wanted:  # apart: of two that differ in a parameter, pytrec_eval would give one for both
            for metric in ir_measures.iter_calc([measure], judged, ranked):
                values[str(measure)][named[metric.query_id]] = float(metric.value)
    return values


def _by_number(scores: Mapping[str, float], grades: Mapping[str, int]) -> tuple[dict[str, float], dict[str, int]]:
    """The same order and grades by made-up ids, with scores that no two passages share: implementations break ties each
    in their own way."""
    ordered = sorted(scores, key=lambda passage_id: -scores[passage_id])
    number = {passage_id: f"p{place}" for place, passage_id in enumerate(dict.fromkeys([*ordered, *grades]))}
    run = {number[passage_id]: float(len(ordered) - place) for place, passage_id in enumerate(ordered)}
    return run, {number[passage_id]: grade for passage_id, grade in grades.items()}


def _parse(name: str) -> Any:
    ir_measures = _ir_measures()
    try:
        measure = ir_measures.parse_measure(name)
    except NameError:
        base = re.split(r"[@(]", name)[0]
        known: dict[str, str] = {}
        for registered in ir_measures.measures.registry:  # "nDCG" comes before its alias "NDCG"
            known.setdefault(registered.lower(), registered)
        near = difflib.get_close_matches(base.lower(), list(known), n=1, cutoff=0.5)
        hint = f"known are, for example, {_EXAMPLES}"
        if near:
            hint = f"did you mean '{known[near[0]]}{name[len(base) :]}'?"
        raise ConfigError(f"unknown measure '{name}'; {hint}") from None
    except (ValueError, SyntaxError, TypeError, AssertionError, KeyError):
        raise ConfigError(f"malformed measure '{name}'; expected a form like {_EXAMPLES}, P(rel=2)@5") from None
    cutoff = measure.params.get("cutoff")
    whole = isinstance(cutoff, int) and not isinstance(cutoff, bool)
    if cutoff is not None and not (whole and 1 <= cutoff <= DEEPEST):
        raise ConfigError(f"measure '{name}': the cut-off must be a whole number from 1 to {DEEPEST:,}, got {cutoff}")
    try:
        supported = ir_measures.DefaultPipeline.supports(measure)
    except AssertionError:
        raise ConfigError(f"measure '{name}' lacks a parameter; expected a form like {_EXAMPLES}") from None
    if not supported:
        raise ConfigError(f"measure '{name}' needs a package that ir-measures does not bring; use {_EXAMPLES}")
    try:  # what a parameter or a missing program makes impossible shows only when it is computed
        list(ir_measures.iter_calc([measure], {"1": {"p0": 1, "p1": 0}}, {"1": {"p0": 2.0, "p1": 1.0}}))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"measure '{name}' cannot be computed here ({reason:.200}); use {_EXAMPLES}") from None
    return measure


def _ir_measures() -> Any:
    ir_measures = require("ir_measures", "measuring a run", "evaluate")
    # Importing it attaches a handler that would print its records a second time beside the caller's own
    # logging.
    logger = logging.getLogger("ir_measures")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    return ir_measures
