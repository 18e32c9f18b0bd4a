"""`export-onnx`, `doctor` and `demo`: models made portable, the machine examined, everything shown at work."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Literal

import click
from rich.table import Table
from rich.text import Text

from hybrid_retrieval.cli.output import NamedPath, echo_json, progress_bar, table_console


@click.command("export-onnx")
@click.argument("model")
@click.argument("folder", type=NamedPath(file_okay=False))
@click.option("--revision", help="Revision of a hub model.")
@click.option("--dtype", type=click.Choice(["float32", "int8"]), default="float32", show_default=True)
@click.option("--kind", type=click.Choice(["auto", "encoder", "reranker"]), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export_onnx(
    model: str,
    folder: str,
    revision: str | None,
    dtype: str,
    kind: Literal["auto", "encoder", "reranker"],
    as_json: bool,
) -> None:
    """Write MODEL (a folder or a hub id) as ONNX to FOLDER, which then runs without torch."""
    from hybrid_retrieval import model_files
    from hybrid_retrieval.encoders.export import export_encoder
    from hybrid_retrieval.rerankers.export import export_reranker

    source = model_files.resolve(model, revision)
    chosen = model_files.kind_to_export(source, None if kind == "auto" else kind)
    export = export_encoder if chosen == "encoder" else export_reranker
    worst = export(source, Path(folder), dtype=dtype)
    if as_json:
        echo_json({"model": model, "folder": folder, "kind": chosen, "dtype": dtype, "max_difference": worst})
    else:
        click.echo(f"{folder}: {chosen} in {dtype}; largest difference from torch in float32: {worst:.2g}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Say what this machine can run and which models load, and test both stages against expected scores."""
    from hybrid_retrieval.doctor import examine

    checks = list(examine())
    failed = any(check.status == "failed" for check in checks)
    if as_json:
        echo_json({"ok": not failed, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for check in checks:
            colour = {"ok": "green", "absent": "yellow", "failed": "red"}[check.status]
            table.add_row(Text(check.status, style=colour), Text(check.name), Text(check.detail))
        table_console().print(table)
    if failed:
        context.exit(1)


@click.command()
@click.option("--folder", type=NamedPath(file_okay=False), help="Where to keep the index. Default: a temporary folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def demo(folder: str | None, as_json: bool) -> None:
    """Index a real collection with the embedded pair and ask it questions in five languages (a few minutes)."""
    from hybrid_retrieval.evaluation.demo import run_demo

    if folder and Path(folder).exists() and any(Path(folder).iterdir()):
        raise click.UsageError(f"--folder {folder}: expected a new or an empty folder")
    with tempfile.TemporaryDirectory() as temporary, progress_bar(quiet=as_json) as progress:
        result = run_demo(
            Path(folder) if folder else Path(temporary) / "demo",
            console=None if as_json else table_console(),
            progress=progress,
        )
    if as_json:
        echo_json(result)
    elif folder:
        click.echo(f"The index is in {folder}: hybrid-retrieval query {folder} TEXT")
