"""The whole training: the encoder's projection, its upper layers, the weights of its query tokens; then the
cross-encoder's upper layers, against negatives that the encoder mined. Both write model files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from hybrid_retrieval.encoders.convention import TokenWeights
from hybrid_retrieval.training import (
    code_switching,
    data,
    projection_recipe,
    query_weights_recipe,
    reranker_recipe,
    second_round_recipe,
    upper_recipe,
)
from hybrid_retrieval.training.base_weights import BaseModel, read_base, tokenizer_json
from hybrid_retrieval.training.data import Pair
from hybrid_retrieval.training.export import write_atomically, write_encoder, write_reranker
from hybrid_retrieval.training.modules import CrossEncoder, Trunk

ENCODER: dict[str, Any] = {
    "name": "multilingual-e5-small-colbert",
    "query": {
        "prefix_ids": data.QUERY_PREFIX,
        "suffix_ids": [data.END],
        "max_tokens": 64,
        "expansion": None,
        "skip_ids": [],
    },
    "passage": {"prefix_ids": data.PASSAGE_PREFIX, "suffix_ids": [data.END], "max_tokens": 256, "skip_ids": []},
}
RERANKER: dict[str, Any] = {
    "name": "multilingual-e5-small-cross-encoder",
    # About as long as the pairs that it learns from: on whole passages of up to 512 tokens it ranks worse.
    "max_tokens": 216,
    "max_query_tokens": 128,
    "longest_tokens": 512,
}


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def run(
    *,
    base: Path,
    pairs: Path,
    sentences: Path,
    documentation: Path,
    work: Path,
    out: Path,
    dimensions: int,
    projection_steps: int,
    upper_steps: int,
    reranker_steps: int,
    second_steps: int,
    fusion_weight: float,
    half: bool,
    only: str | None,
    seed: int,
    threads: int,
    resume: bool,
) -> bool:
    """Train what ``only`` asks for (both models when None) and write the files; False when a signal stopped the
    training."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    work.mkdir(parents=True, exist_ok=True)
    source = read_base(base)
    tokenizer = Tokenizer.from_str(tokenizer_json(source))
    if only in (None, "encoder"):
        done = _encoder(
            source,
            tokenizer,
            pairs=pairs,
            sentences=sentences,
            documentation=documentation,
            work=work,
            out=out,
            dimensions=dimensions,
            projection_steps=projection_steps,
            upper_steps=upper_steps,
            half=half,
            seed=seed,
            threads=threads,
            resume=resume,
        )
        if not done:
            return False
    if only == "encoder":
        return True
    return _reranker(
        source,
        tokenizer,
        pairs=pairs,
        sentences=sentences,
        documentation=documentation,
        work=work,
        out=out,
        steps=reranker_steps,
        second_steps=second_steps,
        weight=fusion_weight,
        half=half,
        seed=seed,
        threads=threads,
        resume=resume,
    )


def _encoder(
    base: BaseModel,
    tokenizer: Tokenizer,
    *,
    pairs: Path,
    sentences: Path,
    documentation: Path,
    work: Path,
    out: Path,
    dimensions: int,
    projection_steps: int,
    upper_steps: int,
    half: bool,
    seed: int,
    threads: int,
    resume: bool,
) -> bool:
    """Train the projection, export it on the base, train the upper layers on the exported layers' states, export."""
    path = work / "projection.pt"
    if resume and path.exists():
        encoder = upper_recipe.untrained(base, torch.load(path, weights_only=True))
    else:
        drawn = data.load_pairs(pairs, tokenizer, limit=4000, seed=seed)
        bitext = data.load_bitext(sentences, tokenizer, per_language=110, seed=seed)
        encoder = projection_recipe.train_projection(
            base, drawn, bitext, per_weight=45, dimensions=dimensions, steps=projection_steps, seed=seed
        )
        torch.save(encoder.projection.weight.detach(), path)
    write_encoder(base, arrays(encoder), work / "untrained", ENCODER)
    recipe = upper_recipe
    drawn = data.load_pairs(pairs, tokenizer, limit=4000, seed=seed, names=recipe.FILES)
    sources = {name: drawn[name][:limit] for name, (_, limit) in recipe.FILES.items()}
    sources |= _across(tokenizer, recipe.ACROSS, pairs=pairs, seed=seed)
    sources |= _documentation(tokenizer, recipe.DOCUMENTATION, documentation, tokens=recipe.PASSAGE_TOKENS, seed=seed)
    bitext = data.load_bitext(
        sentences, tokenizer, per_language=recipe.OTHER_LANGUAGES, more=recipe.PER_LANGUAGE, seed=seed + 1
    )
    hosts = [pair.passage for name in recipe.HOSTS for pair in drawn[name]]
    sources |= recipe.stated(bitext[1::2], hosts, seed=seed)
    material = recipe.gather(work / "untrained", sources, bitext[0::2], work, threads=threads)
    done = recipe.train_upper(
        encoder, material, steps=upper_steps, checkpoint=work / "upper.ckpt", resume=resume, half=half, seed=seed
    )
    if done:
        trained = arrays(upper_recipe.rotated(encoder, seed))
        write_encoder(base, trained, work / "unweighted", ENCODER)
        unseen = _unseen(tokenizer, drawn, pairs=pairs, sentences=sentences, documentation=documentation, seed=seed)
        weights = _query_weights(work / "query-weights.json", work / "unweighted", unseen, seed=seed, threads=threads)
        write_encoder(base, trained, out, {**ENCODER, "query": {**ENCODER["query"], "weights": weights}})
    return done


def _unseen(
    tokenizer: Tokenizer,
    drawn: dict[str, list[Pair]],
    *,
    pairs: Path,
    sentences: Path,
    documentation: Path,
    seed: int,
) -> dict[str, tuple[list[Pair], list[Pair]]]:
    """What ``query_weights_recipe.learn`` takes: pairs that ``_encoder`` left over of the ``drawn`` and of other files
    (of sentences, some may have been shown)."""
    recipe, upper = query_weights_recipe, upper_recipe
    found = {name: (rows[upper.FILES[name][1] :], rows) for name, rows in drawn.items()}
    across, documented = (
        {language: (share, limit + recipe.QUESTIONS) for language, (share, limit) in shares.items()}
        for shares in (upper.ACROSS, upper.DOCUMENTATION)
    )
    more = _across(tokenizer, across, pairs=pairs, seed=seed)
    more |= _documentation(tokenizer, documented, documentation, tokens=upper.PASSAGE_TOKENS, seed=seed)
    seen = {data.across_file(language): limit for language, (_, limit) in upper.ACROSS.items()}
    seen |= {data.documentation_file(language): limit for language, (_, limit) in upper.DOCUMENTATION.items()}
    found |= {name: (rows[seen[name] :], rows) for name, rows in more.items()}
    bitext = data.load_bitext(
        sentences, tokenizer, per_language=recipe.SENTENCES_EACH, more=recipe.SENTENCES_MORE, seed=seed + 3
    )
    hosts = [pair.passage for name in upper.HOSTS for pair in drawn[name]]
    stated = data.statements(bitext, hosts, seed=seed)
    return found | {"stated": (stated, stated)}


def _made_of(encoder: Path, told: object) -> str:
    """A digest of an exported encoder's weights and of what else a step was given."""
    return hashlib.sha256((encoder / "encoder.safetensors").read_bytes() + repr(told).encode()).hexdigest()


def _query_weights(
    path: Path, encoder: Path, sources: dict[str, tuple[list[Pair], list[Pair]]], *, seed: int, threads: int
) -> dict[str, object]:
    """What ``query_weights_recipe.learn`` finds, kept in a file for the next run with the same encoder and pairs."""
    made_of = _made_of(encoder, (seed, sources))
    if path.exists():
        known: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
        if known.pop("made_of", "") == made_of:
            return known
    weights = query_weights_recipe.learn(encoder, sources, seed=seed, threads=threads)
    write_atomically(path, json.dumps({**weights, "made_of": made_of}).encode())
    return weights


Mined = TypeVar("Mined", reranker_recipe.Lists, second_round_recipe.Lists)


def _kept(path: Path, kind: type[Mined], made_of: str, gather: Callable[[], Mined]) -> Mined:
    """What ``gather`` finds, kept for the next run that is made of the same."""
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known.pop("made_of", "") == made_of:
            return kind(**known)
    lists = gather()
    write_atomically(path, json.dumps({**dataclasses.asdict(lists), "made_of": made_of}).encode())
    return lists


def _across(tokenizer: Tokenizer, shares: data.Shares, *, pairs: Path, seed: int) -> dict[str, list[Pair]]:
    """The PHP manual's pairs with English passages, by file. shares: by language."""
    limits = {language: limit for language, (_, limit) in shares.items()}
    found = data.load_across(pairs, tokenizer, per_language=limits, seed=seed)
    return {data.across_file(language): rows for language, rows in found.items()}


def _documentation(
    tokenizer: Tokenizer, shares: data.Shares, folder: Path, *, tokens: int, seed: int
) -> dict[str, list[Pair]]:
    """The same of Python's documentation, passages of at most ``tokens`` tokens where more than one paragraph."""
    return {
        data.documentation_file(language): data.load_documentation(
            folder, tokenizer, language, limit=limit, tokens=tokens, seed=seed
        )
        for language, (_, limit) in shares.items()
    }


def _reranker_sources(
    tokenizer: Tokenizer, *, pairs: Path, sentences: Path, documentation: Path, seed: int
) -> dict[str, tuple[list[Pair], int]]:
    """What ``reranker_recipe.gather`` mines in."""
    recipe = reranker_recipe
    drawn = data.load_pairs(pairs, tokenizer, limit=4000, seed=seed, names=recipe.FILES)
    bitext = data.load_bitext(
        sentences, tokenizer, per_language=recipe.STATEMENTS_EACH, more=recipe.STATEMENTS_MORE, seed=seed + 2
    )
    hosts = [pair.passage for name in recipe.HOSTS for pair in drawn[name]]
    sources = {name: (drawn[name], limit) for name, (_, limit) in recipe.FILES.items()}
    more = _across(tokenizer, recipe.ACROSS, pairs=pairs, seed=seed)
    more |= _documentation(tokenizer, recipe.DOCUMENTATION, documentation, tokens=recipe.PASSAGE_TOKENS, seed=seed)
    sources |= {name: (found, len(found)) for name, found in more.items()}
    stated = data.statements(bitext, hosts, seed=seed)
    return sources | {recipe.STATEMENTS: (stated, len(stated))}


def _reranker(
    base: BaseModel,
    tokenizer: Tokenizer,
    *,
    pairs: Path,
    sentences: Path,
    documentation: Path,
    work: Path,
    out: Path,
    steps: int,
    second_steps: int,
    weight: float,
    half: bool,
    seed: int,
    threads: int,
    resume: bool,
) -> bool:
    """Mine negatives with the encoder in ``out``, train the cross-encoder in two rounds, export."""
    sources = _reranker_sources(tokenizer, pairs=pairs, sentences=sentences, documentation=documentation, seed=seed)
    made_of = _made_of(out, (seed, [(name, limit, drawn) for name, (drawn, limit) in sources.items()]))
    lists = _kept(
        work / "reranker-lists.json",
        reranker_recipe.Lists,
        made_of,
        lambda: reranker_recipe.gather(out, sources, seed=seed, threads=threads),
    )
    model = CrossEncoder(Trunk(base))
    done = reranker_recipe.train_reranker(
        model,
        lists,
        steps=steps,
        checkpoint=work / "reranker.ckpt",
        resume=resume,
        half=half,
        made_of=made_of,
        seed=seed,
    )
    if done and second_steps:
        done = _second_round(
            model,
            tokenizer,
            pairs=pairs,
            sentences=sentences,
            documentation=documentation,
            work=work,
            out=out,
            steps=second_steps,
            half=half,
            seed=seed,
            threads=threads,
            resume=resume,
        )
    if done:
        note = (
            "score = weight * z(reranker) + (1 - weight) * z(MaxSim), z over the query's candidates; "
            "weight tuned on held-out training pairs"
        )
        write_reranker(base, arrays(model), out, {**RERANKER, "fusion": {"weight": weight, "note": note}})
    return done


def _second_round(
    model: CrossEncoder,
    tokenizer: Tokenizer,
    *,
    pairs: Path,
    sentences: Path,
    documentation: Path,
    work: Path,
    out: Path,
    steps: int,
    half: bool,
    seed: int,
    threads: int,
    resume: bool,
) -> bool:
    """Learn lexicons and rank passages with the encoder in ``out``, train ``model`` on."""
    recipe, upper = second_round_recipe, upper_recipe
    drawn = data.load_pairs(pairs, tokenizer, limit=4000, seed=seed, names=upper.FILES)
    unseen = _unseen(tokenizer, drawn, pairs=pairs, sentences=sentences, documentation=documentation, seed=seed)
    sources = {
        name: (unseen[name][0], drawn.get(name, [])[: upper.FILES.get(name, (0, 0))[1]]) for name in recipe.FILES
    }
    told = json.loads((out / "encoder.json").read_text(encoding="utf-8"))["query"]["weights"]
    weights = TokenWeights(tuple(told["direction"]), told["bias"])
    made_of = _made_of(out, (seed, told, recipe.FILES, code_switching.LANGUAGES, sources))

    def gather() -> second_round_recipe.Lists:
        english = (
            tokenizer.decode(pair.query)
            for name, use in recipe.FILES.items()
            if use.versions
            for part in sources[name]
            for pair in part
        )
        lexicons = code_switching.learn(out, sentences, tokenizer, english, threads=threads)
        return recipe.gather(out, weights, sources, lexicons, tokenizer, seed=seed, threads=threads)

    lists = _kept(work / "second-round-lists.json", second_round_recipe.Lists, made_of, gather)
    return recipe.train_second_round(
        model,
        lists,
        steps=steps,
        checkpoint=work / "second-round.ckpt",
        resume=resume,
        half=half,
        made_of=made_of,
        seed=seed,
    )
