"""`build`, `info` and `verify`: an index made, described, checked."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click

from hybrid_retrieval.cli.output import NamedPath, echo_json, echo_made, human_bytes, os_reason, progress_bar
from hybrid_retrieval.config import PipelineConfig
from hybrid_retrieval.index import Index, load_encoder, load_reranker
from hybrid_retrieval.storage.layout import BUILDING, JOURNAL
from hybrid_retrieval.storage.manifest import newest_version


@click.command()
@click.argument("corpus", type=NamedPath())
@click.argument("index", type=NamedPath())
@click.option("--config", type=NamedPath(), help="Pipeline configuration (YAML). Default: the embedded pair.")
@click.option("--nbits", type=int, help="Bits a dimension of the residuals: 1, 2, 4 or 8.")
@click.option("--pool-factor", type=int, help="Pool so many token vectors to one, on average. Default: 1, none.")
@click.option("--no-title", is_flag=True, help="Leave titles out of what the models read.")
@click.option("--resume", is_flag=True, help="Continue a build that was interrupted.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace an index that is there; with --resume, unless a build of it can be continued.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(
    corpus: str,
    index: str,
    config: str | None,
    nbits: int | None,
    pool_factor: int | None,
    no_title: bool,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Build INDEX from CORPUS.

    CORPUS is a .jsonl, .csv, .tsv or .parquet file of records, a .txt or .md file (one passage), a folder of those
    texts, or a BEIR folder; all but .parquet may be gzipped.
    """
    settings = PipelineConfig.load(config) if config else PipelineConfig()
    section = settings.index
    if nbits is not None:
        section = dataclasses.replace(section, nbits=nbits)
    if pool_factor is not None:
        section = dataclasses.replace(section, pool_factor=pool_factor)
    if no_title:
        section = dataclasses.replace(section, include_title=False)
    settings = dataclasses.replace(settings, index=section)
    before = newest_version(Path(index)) if resume else None
    start = time.perf_counter()
    try:
        with progress_bar(quiet=as_json) as progress:
            made = Index.build(
                corpus,
                index,
                encoder=load_encoder(settings),
                reranker=load_reranker(settings),
                config=settings,
                resume=resume,
                overwrite=overwrite,
                progress=progress,
            )
    except KeyboardInterrupt:
        if not _can_be_resumed(index):
            raise
        raise click.Abort("interrupted; the same command with --resume continues the build") from None
    except OSError as error:
        if not _can_be_resumed(index):
            raise
        raise click.ClickException(
            f"{os_reason(error)}; once that is mended, the same command with --resume continues the build"
        ) from None
    if before == made.version and not as_json:
        click.echo(f"{index}: complete already, {made.passages:,} passages; nothing was left to do")
        return
    echo_made(index, made.info(), time.perf_counter() - start, as_json)


def _can_be_resumed(index: str) -> bool:
    return (Path(index) / BUILDING / JOURNAL).exists()


@click.command()
@click.argument("index", type=NamedPath())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(index: str, as_json: bool) -> None:
    """Say what INDEX holds."""
    facts = Index.open(index).info()
    if as_json:
        echo_json(facts)
        return
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        note = f" ({human_bytes(value)})" if name == "bytes" else ""
        click.echo(f"{name:<14}{'none' if shown is None else shown}{note}")


@click.command()
@click.argument("index", type=NamedPath())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def verify(context: click.Context, index: str, as_json: bool) -> None:
    """Read all of INDEX and check it: checksums, sizes, structure. Exits with 1 where something is wrong."""
    problems = Index.verify_path(index)
    if as_json:
        echo_json({"ok": not problems, "problems": problems})
    elif problems:
        for problem in problems:
            click.echo(problem)
    else:
        click.echo(f"{index}: no problem found")
    if problems:
        context.exit(1)
