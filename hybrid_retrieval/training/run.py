"""The whole training, in two stages: the encoder; then the cross-encoder, from the encoder's layers and against
negatives that the encoder finds. Each stage ends by writing model files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from hybrid_retrieval.training import data, encoder_recipe, reranker_recipe
from hybrid_retrieval.training.base_weights import BaseModel, read_base, tokenizer_json
from hybrid_retrieval.training.export import write_encoder, write_reranker
from hybrid_retrieval.training.modules import CrossEncoder, Encoder, Trunk

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
    heads: int,
    inner: int,
    dimensions: int,
    encoder_steps: int,
    reranker_steps: int,
    fusion_weight: float,
    only: str | None,
    seed: int,
    threads: int,
    resume: bool,
) -> bool:
    """Train what ``only`` asks for (both stages when None) and write the files; False when a signal stopped it."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    work.mkdir(parents=True, exist_ok=True)
    source = read_base(base)
    tokenizer = Tokenizer.from_str(tokenizer_json(source))
    drawn = data.load_pairs(pairs, tokenizer, limit=4000, seed=seed)
    widths = [(heads, inner)] * source.layers
    encoder = Encoder(Trunk(source, list(range(source.layers)), widths), dimensions)
    checkpoint = work / "encoder.ckpt"
    if only in (None, "encoder"):
        start = work / "start.pt"
        if not (resume and start.exists()):
            lines = data.load_sentences(sentences, tokenizer)
            lines = lines[:: max(1, len(lines) // 120)]
            pruned = encoder_recipe.start(source, drawn, lines, heads=heads, inner=inner, dimensions=dimensions)
            torch.save(pruned.state_dict(), start)
        encoder.load_state_dict(torch.load(start, weights_only=True))
        bitext = data.load_bitext(sentences, tokenizer, per_language=200, seed=seed)
        pool = encoder_recipe.build_pool(source, drawn, bitext, per_weight=200)
        if not encoder_recipe.train_encoder(
            encoder, pool, steps=encoder_steps, checkpoint=checkpoint, resume=resume, seed=seed
        ):
            return False
        write_encoder(source, arrays(encoder), out, ENCODER)
    if only == "encoder":
        return True
    encoder.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    return _reranker(
        source, encoder, drawn, work, out, steps=reranker_steps, weight=fusion_weight, seed=seed, resume=resume
    )


def _reranker(
    base: BaseModel,
    encoder: Encoder,
    pairs: dict[str, list[data.Pair]],
    work: Path,
    out: Path,
    *,
    steps: int,
    weight: float,
    seed: int,
    resume: bool,
) -> bool:
    """Mine negatives with the trained encoder, train the cross-encoder from its layers, export."""
    encoder.eval()
    mined = {}
    for name, items in pairs.items():
        mined[name] = reranker_recipe.mine(encoder, items, questions=min(600, 150 * data.WEIGHTS[name]))
        print(f"mined {name}: {len(mined[name])} questions", flush=True)
    model = CrossEncoder(encoder.trunk)
    done = reranker_recipe.train_reranker(
        model, mined, steps=steps, checkpoint=work / "reranker.ckpt", resume=resume, seed=seed
    )
    if done:
        note = (
            "score = weight * z(reranker) + (1 - weight) * z(MaxSim), z over the query's candidates; "
            "weight tuned on held-out training pairs"
        )
        write_reranker(base, arrays(model), out, {**RERANKER, "fusion": {"weight": weight, "note": note}})
    return done
