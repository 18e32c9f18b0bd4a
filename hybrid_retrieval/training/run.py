"""The whole training: the encoder's projection, then its upper layers; then the cross-encoder's upper layers, against
negatives that the encoder mined. Both write model files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from hybrid_retrieval.training import data, projection_recipe, reranker_recipe, upper_recipe
from hybrid_retrieval.training.base_weights import BaseModel, read_base, tokenizer_json
from hybrid_retrieval.training.export import write_encoder, write_reranker
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
RERANKER: dict[str, Any] = {"name": "multilingual-e5-small-cross-encoder", "max_tokens": 512, "max_query_tokens": 128}


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def run(
    *,
    base: Path,
    pairs: Path,
    sentences: Path,
    work: Path,
    out: Path,
    dimensions: int,
    projection_steps: int,
    upper_steps: int,
    reranker_steps: int,
    fusion_weight: float,
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
            work=work,
            out=out,
            dimensions=dimensions,
            projection_steps=projection_steps,
            upper_steps=upper_steps,
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
        work=work,
        out=out,
        steps=reranker_steps,
        weight=fusion_weight,
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
    work: Path,
    out: Path,
    dimensions: int,
    projection_steps: int,
    upper_steps: int,
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
    material = upper_recipe.gather(
        work / "untrained",
        data.load_pairs(pairs, tokenizer, limit=4000, seed=seed, names=upper_recipe.FILES),
        data.load_across(
            pairs, tokenizer, per_language={k: limit for k, (_, limit) in upper_recipe.ACROSS.items()}, seed=seed
        ),
        data.load_bitext(
            sentences,
            tokenizer,
            per_language=upper_recipe.OTHER_LANGUAGES,
            more=upper_recipe.PER_LANGUAGE,
            seed=seed + 1,
        ),
        work,
        threads=threads,
    )
    done = upper_recipe.train_upper(
        encoder, material, steps=upper_steps, checkpoint=work / "upper.ckpt", resume=resume, seed=seed
    )
    if done:
        write_encoder(base, arrays(upper_recipe.rotated(encoder, seed)), out, ENCODER)
    return done


def _reranker(
    base: BaseModel,
    tokenizer: Tokenizer,
    *,
    pairs: Path,
    work: Path,
    out: Path,
    steps: int,
    weight: float,
    seed: int,
    threads: int,
    resume: bool,
) -> bool:
    """Mine negatives with the encoder in ``out``, train the cross-encoder on its lower layers' states, export."""
    lists = reranker_recipe.gather(
        out,
        data.load_pairs(pairs, tokenizer, limit=4000, seed=seed, names=reranker_recipe.FILES),
        data.load_across(
            pairs, tokenizer, per_language={k: limit for k, (_, limit) in reranker_recipe.ACROSS.items()}, seed=seed
        ),
        work / "reranker-states",
        seed=seed,
        threads=threads,
    )
    model = CrossEncoder(Trunk(base))
    done = reranker_recipe.train_reranker(
        model, lists, steps=steps, checkpoint=work / "reranker.ckpt", resume=resume, seed=seed
    )
    if done:
        note = (
            "score = weight * z(reranker) + (1 - weight) * z(MaxSim), z over the query's candidates; "
            "weight tuned on held-out training pairs"
        )
        write_reranker(base, arrays(model), out, {**RERANKER, "fusion": {"weight": weight, "note": note}})
    return done
