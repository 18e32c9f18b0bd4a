"""`import-colbert` and `export-colbert`: indexes that come from colbert-ai or fast-plaid, or go to colbert-ai."""

from __future__ import annotations

import time
from pathlib import Path

import click

from hybrid_retrieval.cli.output import NamedPath, echo_json, echo_made, progress_bar
from hybrid_retrieval.index import Index


@click.command("import-colbert")
@click.argument("folder", metavar="DIR", type=NamedPath())
@click.argument("index", type=NamedPath())
@click.option("--collection", type=NamedPath(), help="The texts: a TSV of number<TAB>text, or a passage a line.")
@click.option("--overwrite", is_flag=True, help="Replace an index that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def import_colbert(folder: str, index: str, collection: str | None, overwrite: bool, as_json: bool) -> None:
    """Make INDEX of the colbert-ai (0.2) or fast-plaid index in DIR, without requantising it."""
    from hybrid_retrieval.interchange import import_colbert

    start = time.perf_counter()
    with progress_bar(quiet=as_json) as progress:
        import_colbert(folder, index, collection=collection, overwrite=overwrite, progress=progress)
    made = Index.open(index)
    echo_made(index, made.info(), time.perf_counter() - start, as_json)
    if not as_json:
        click.echo(
            "Queries stop after stage 1: a --config that names a reranker adds the second stage."
            if collection
            else f"Queries stop after stage 1, as the index holds no texts: give {_collection(folder)} to add the "
            "second stage."
        )


def _collection(folder: str) -> str:
    """What to import texts with: the collection that an export of ours left, if one is there."""
    from hybrid_retrieval.interchange.sources import COLLECTION

    ours = Path(folder) / COLLECTION
    return f"--collection {ours}" if ours.exists() else "a --collection"


@click.command("export-colbert")
@click.argument("index", type=NamedPath())
@click.argument("folder", metavar="DIR", type=NamedPath())
@click.option("--overwrite", is_flag=True, help="Replace a colbert-ai index that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export_colbert(index: str, folder: str, overwrite: bool, as_json: bool) -> None:
    """Write INDEX to DIR as colbert-ai (0.2) lays its indexes out."""
    from hybrid_retrieval.interchange import export_colbert

    start = time.perf_counter()
    with progress_bar(quiet=as_json) as progress:
        export_colbert(index, folder, overwrite=overwrite, progress=progress)
    opened = Index.open(index)
    seconds = time.perf_counter() - start
    if as_json:
        facts = {"passages": opened.passages, "tokens": opened.tokens, "nbits": opened.nbits}
        echo_json({"index": index, "folder": folder, "seconds": round(seconds, 3), **facts})
        return
    click.echo(f"{folder}: {opened.passages:,} passages, {opened.tokens:,} token vectors, in {seconds:.1f} s")
