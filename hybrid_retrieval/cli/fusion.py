"""`fit-fusion`: learn from judged questions how the two stages' scores make one order, and whether stage 2 pays."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from hybrid_retrieval.cli.output import NamedPath, check_output, echo_json, progress_bar, table_console
from hybrid_retrieval.cli.query import open_config
from hybrid_retrieval.corpus.dataset import Dataset
from hybrid_retrieval.index import Index

if TYPE_CHECKING:
    from hybrid_retrieval.evaluation.fusion_fit import Fit
    from hybrid_retrieval.fusion import FusionFile


@click.command("fit-fusion")
@click.argument("index", type=NamedPath())
@click.argument("dataset", type=NamedPath())
@click.option("--split", default="train", show_default=True, help="Which qrels: qrels/<split>.tsv.")
@click.option("--sample", type=int, default=200, show_default=True, help="Questions, drawn with --seed.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample, the folds and the tests.")
@click.option("--num-candidates", type=int, help="Passages that the reranker scores. Default: the configuration's.")
@click.option("--folds", type=int, default=5, show_default=True, help="Of the cross-validation.")
@click.option("--min-gain", type=float, default=0.0, show_default=True, help="nDCG@10 that makes stage 2 worth it.")
@click.option("--significance", type=float, default=0.05, show_default=True, help="p-value below which a gain counts.")
@click.option("--scores", type=NamedPath(), help="Keep scores in FILE; an interrupted run goes on from there.")
@click.option("--out", type=NamedPath(), help="Write the fusion FILE (JSON) that `fusion.method: fitted` reads.")
@click.option("--config", type=NamedPath(), help="Pipeline configuration. Default: the one INDEX was built with.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fit_fusion(
    index: str,
    dataset: str,
    split: str,
    sample: int,
    seed: int,
    num_candidates: int | None,
    folds: int,
    min_gain: float,
    significance: float,
    scores: str | None,
    out: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Fit the fusion of INDEX's two stages on judged questions of DATASET (a BEIR folder).

    The answer may be that re-ranking does not pay: a pipeline with this file then stops after stage 1.
    """
    from hybrid_retrieval.evaluation.fusion_runner import fit_dataset, open_both_stages
    from hybrid_retrieval.evaluation.runner import check_collection

    check_output("--out", out)
    check_output("--scores", scores, in_place=True)
    if out is not None and scores is not None and Path(out).resolve() == Path(scores).resolve():
        raise click.UsageError("--out and --scores name the same file")
    collection = Dataset.open(dataset, split=split)
    opened = Index.open(index)
    check_collection(opened, collection)
    pipeline = open_both_stages(open_config(opened, config), opened)
    with progress_bar(quiet=as_json) as progress:
        fit, file = fit_dataset(
            pipeline,
            collection,
            sample=sample,
            seed=seed,
            num_candidates=num_candidates,
            folds=folds,
            min_gain=min_gain,
            significance=significance,
            store=scores,
            progress=progress,
        )
    if out:
        file.write(out)
    if as_json:
        table = [dataclasses.asdict(row) for row in fit.table]
        echo_json({**dataclasses.asdict(file), "ndcg_by_weight": by_weight(fit), "reliability": table})
    else:
        show(fit, file, out)


def by_weight(fit: Fit) -> dict[str, float]:
    """Mean nDCG@10 at each weight, over all questions."""
    from hybrid_retrieval.evaluation.fusion_fit import WEIGHTS

    return {f"{weight:g}": value for weight, value in zip(WEIGHTS.tolist(), fit.by_weight, strict=True)}


def show(fit: Fit, file: FusionFile, out: str | None) -> None:
    """The figures as tables, and the verdict."""
    console, found = table_console(), file.cross_validation
    figures = Table(box=None, pad_edge=False, show_header=False)
    figures.add_row("nDCG@10, stage 1 alone", f"{found.stage_1:.4f}")
    figures.add_row(f"nDCG@10, fused ({found.folds}-fold)", f"{found.fused:.4f}")
    figures.add_row("nDCG@10, reranker alone", f"{found.reranker_alone:.4f}")
    figures.add_row("fused - stage 1", f"{found.difference:+.4f}")
    figures.add_row("95 % interval (paired bootstrap)", f"{found.low:+.4f} to {found.high:+.4f}")
    figures.add_row("p (paired randomisation)", f"{found.p_value:.4f}")
    figures.add_row("weight (folds)", f"{file.weight:g} ({found.weight_lowest:g} to {found.weight_highest:g})")
    figures.add_row("questions", f"{file.fitted_on.queries:,}, {file.fitted_on.num_candidates} candidates each")
    console.print(figures)
    reliability = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title="reliability", title_justify="left")
    for name in ("probability", "candidates", "promised", "found"):
        reliability.add_column(name, justify="right")
    for row in fit.table:
        reliability.add_row(
            f"{row.low:.1f}-{row.high:.1f}", f"{row.candidates:,}", f"{row.promised:.3f}", f"{row.found:.3f}"
        )
    console.print(reliability)
    console.print(f"Brier score {found.brier:.4f}, expected calibration error {found.calibration_error:.4f}")
    console.print(f"rerank, weight {fit.weight:g}" if fit.rerank else "do not rerank: these questions show no gain")
    if out:
        console.print(Text(f"{out}: use it with  fusion: {{method: fitted, file: {out}}}"), soft_wrap=True)
