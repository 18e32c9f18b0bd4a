"""The whole training: the encoder's projection, its upper layers, the weights of its query tokens; then the
cross-encoder's upper layers, against negatives that the encoder mined. Both write model files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

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
from hybrid_retrieval.training.loop import Course, save_atomically
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
PAIRS_A_WEIGHT = 45
"""Pairs that the projection learns from, for each unit of a file's weight in ``data.WEIGHTS``."""
RERANKER: dict[str, Any] = {
    "name": "multilingual-e5-small-cross-encoder",
    # As long as the pairs that it learns from: on whole passages of up to 512 tokens it ranks worse.
    "max_tokens": second_round_recipe.ROOM,
    "max_query_tokens": 128,
    "longest_tokens": 512,
}


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


@dataclass(frozen=True)
class Setting:
    """What every part of the training is given: the base, folders of data and of files, and how it runs."""

    base: BaseModel
    tokenizer: Tokenizer
    pairs: Path
    sentences: Path
    documentation: Path
    work: Path
    out: Path
    half: bool
    seed: int
    threads: int
    resume: bool

    def course(self, steps: int, checkpoint: str, made_of: str = "") -> Course:
        return Course(steps, self.work / checkpoint, self.resume, self.half, made_of, self.seed)

    def drawn(self, names: Iterable[str]) -> dict[str, list[Pair]]:
        """Pairs of some files, in the order in which the recipes count them."""
        return data.load_pairs(self.pairs, self.tokenizer, limit=data.DRAWN, seed=self.seed, names=names)

    def bitext(self, each: int, more: Mapping[str, int], offset: int) -> list[tuple[str, list[int], list[int]]]:
        """Translated sentences; ``offset`` makes another draw of each part of the training."""
        return data.load_bitext(self.sentences, self.tokenizer, per_language=each, more=more, seed=self.seed + offset)

    def across(self, shares: data.Shares) -> dict[str, list[Pair]]:
        """The PHP manual's pairs with English passages, by file. shares: by language."""
        limits = {language: limit for language, (_, limit) in shares.items()}
        found = data.load_across(self.pairs, self.tokenizer, per_language=limits, seed=self.seed)
        return {data.across_file(language): rows for language, rows in found.items()}

    def documented(self, shares: data.Shares, tokens: int) -> dict[str, list[Pair]]:
        """The same of Python's documentation, passages of at most ``tokens`` tokens where more than one paragraph."""
        return {
            data.documentation_file(language): data.load_documentation(
                self.documentation, self.tokenizer, language, limit=limit, tokens=tokens, seed=self.seed
            )
            for language, (_, limit) in shares.items()
        }


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
    setting = Setting(source, tokenizer, pairs, sentences, documentation, work, out, half, seed, threads, resume)
    done = only == "reranker" or _encoder(setting, dimensions, projection_steps, upper_steps)
    return done and (only == "encoder" or _reranker(setting, reranker_steps, second_steps, fusion_weight))


def _encoder(setting: Setting, dimensions: int, projection_steps: int, upper_steps: int) -> bool:
    """Train the projection, export it on the base, train the upper layers on the exported layers' states, export."""
    base, work, seed = setting.base, setting.work, setting.seed
    path, pairs, sentences = work / "projection.pt", setting.drawn(data.WEIGHTS), setting.bitext(110, {}, 0)
    told = (_numbers(projection_recipe), PAIRS_A_WEIGHT, dimensions, projection_steps, seed, pairs, sentences)
    made_of = hashlib.sha256(repr(told).encode()).hexdigest()
    known = torch.load(path, weights_only=True) if setting.resume and path.exists() else {}
    if isinstance(known, dict) and known.get("made_of") == made_of:
        encoder = upper_recipe.untrained(base, known["weight"])
    else:
        encoder = projection_recipe.train_projection(
            base, pairs, sentences, per_weight=PAIRS_A_WEIGHT, dimensions=dimensions, steps=projection_steps, seed=seed
        )
        save_atomically({"weight": encoder.projection.weight.detach(), "made_of": made_of}, path)
    write_encoder(base, arrays(encoder), work / "untrained", ENCODER)
    recipe = upper_recipe
    drawn = setting.drawn(recipe.FILES)
    sources = {name: drawn[name][:limit] for name, (_, limit) in recipe.FILES.items()}
    sources |= setting.across(recipe.ACROSS) | setting.documented(recipe.DOCUMENTATION, recipe.PASSAGE_TOKENS)
    bitext = _upper_bitext(setting)
    hosts = [pair.passage for name in recipe.HOSTS for pair in drawn[name]]
    sources |= recipe.stated(bitext[1::2], hosts, seed=seed)
    material = recipe.gather(work / "untrained", sources, bitext[0::2], work, threads=setting.threads)
    made_of = _made_of(work / "untrained", recipe, (seed, sources, bitext))
    done = recipe.train_upper(encoder, material, setting.course(upper_steps, "upper.ckpt", made_of))
    if done:
        trained = arrays(upper_recipe.rotated(encoder, seed))
        write_encoder(base, trained, work / "unweighted", ENCODER)
        weights = _query_weights(setting, work / "unweighted", _unseen(setting, drawn))
        write_encoder(base, trained, setting.out, {**ENCODER, "query": {**ENCODER["query"], "weights": weights}})
    return done


def _unseen(setting: Setting, drawn: dict[str, list[Pair]]) -> dict[str, tuple[list[Pair], list[Pair]]]:
    """What ``query_weights_recipe.learn`` takes: of the ``drawn`` and of other files the pairs that the encoder's
    layers did not learn from, nor from another with the same question; and all pairs of the file."""
    recipe, upper = query_weights_recipe, upper_recipe
    found = {name: (_left_over(rows, upper.FILES[name][1]), rows) for name, rows in drawn.items()}
    across, documented = (
        {language: (share, limit + recipe.QUESTIONS) for language, (share, limit) in shares.items()}
        for shares in (upper.ACROSS, upper.DOCUMENTATION)
    )
    more = setting.across(across) | setting.documented(documented, upper.PASSAGE_TOKENS)
    seen = {data.across_file(language): limit for language, (_, limit) in upper.ACROSS.items()}
    seen |= {data.documentation_file(language): limit for language, (_, limit) in upper.DOCUMENTATION.items()}
    found |= {name: (_left_over(rows, seen[name]), rows) for name, rows in more.items()}
    hosts = [pair.passage for name in upper.HOSTS for pair in drawn[name]]
    bitext = setting.bitext(recipe.SENTENCES_EACH, recipe.SENTENCES_MORE, 3)
    shown = {tuple(english) for _, _, english in _upper_bitext(setting)}
    unseen = [row for row in bitext if tuple(row[2]) not in shown]
    stated = data.statements(unseen, hosts, seed=setting.seed)
    return found | {"stated": (stated, stated)}


def _upper_bitext(setting: Setting) -> list[tuple[str, list[int], list[int]]]:
    """The translated sentences that the upper layers learn from."""
    return setting.bitext(upper_recipe.OTHER_LANGUAGES, upper_recipe.PER_LANGUAGE, 1)


def _left_over(rows: list[Pair], kept: int) -> list[Pair]:
    """The pairs after the first ``kept``, without those that ask a question of these."""
    asked = {tuple(pair.query) for pair in rows[:kept]}
    return [pair for pair in rows[kept:] if tuple(pair.query) not in asked]


def _made_of(encoder: Path, recipe: ModuleType, told: object) -> str:
    """A digest of an exported encoder's weights, of a recipe's numbers, and of what else a step was given."""
    told = (_numbers(recipe), told)
    return hashlib.sha256((encoder / "encoder.safetensors").read_bytes() + repr(told).encode()).hexdigest()


def _numbers(recipe: ModuleType) -> dict[str, object]:
    """A recipe's constants. None is a set: the order of its members would be another in every process."""
    return {name: value for name, value in vars(recipe).items() if name.isupper() and not isinstance(value, ModuleType)}


def _kept(path: Path, made_of: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``make`` gives, kept in a file for the next run that is made of the same."""
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if known.pop("made_of", "") == made_of:
            return known
    made = make()
    write_atomically(path, json.dumps({**made, "made_of": made_of}).encode())
    return made


def _query_weights(
    setting: Setting, encoder: Path, sources: dict[str, tuple[list[Pair], list[Pair]]]
) -> dict[str, object]:
    """The weights of query tokens."""
    seed, threads = setting.seed, setting.threads
    return _kept(
        setting.work / "query-weights.json",
        _made_of(encoder, query_weights_recipe, (seed, sources)),
        lambda: query_weights_recipe.learn(encoder, sources, seed=seed, threads=threads),
    )


def _reranker_sources(setting: Setting) -> dict[str, tuple[list[Pair], int]]:
    """What ``reranker_recipe.gather`` mines in."""
    recipe = reranker_recipe
    drawn = setting.drawn(recipe.FILES)
    sources = {name: (drawn[name], limit) for name, (_, limit) in recipe.FILES.items()}
    more = setting.across(recipe.ACROSS) | setting.documented(recipe.DOCUMENTATION, recipe.PASSAGE_TOKENS)
    sources |= {name: (found, len(found)) for name, found in more.items()}
    hosts = [pair.passage for name in recipe.HOSTS for pair in drawn[name]]
    stated = data.statements(
        setting.bitext(recipe.STATEMENTS_EACH, recipe.STATEMENTS_MORE, 2), hosts, seed=setting.seed
    )
    return sources | {recipe.STATEMENTS: (stated, len(stated))}


def _reranker(setting: Setting, steps: int, second_steps: int, weight: float) -> bool:
    """Mine negatives with the encoder in ``out``, train the cross-encoder in two rounds, export."""
    recipe, out, seed = reranker_recipe, setting.out, setting.seed
    sources = _reranker_sources(setting)
    made_of = _made_of(out, recipe, (seed, [(name, limit, drawn) for name, (drawn, limit) in sources.items()]))
    lists = _kept(
        setting.work / "reranker-lists.json",
        made_of,
        lambda: dataclasses.asdict(recipe.gather(out, sources, seed=seed, threads=setting.threads)),
    )
    model = CrossEncoder(Trunk(setting.base))
    done = recipe.train_reranker(model, recipe.Lists(**lists), setting.course(steps, "reranker.ckpt", made_of))
    if done and second_steps:
        done = _second_round(setting, model, second_steps)
    if done:
        note = (
            "score = weight * z(reranker) + (1 - weight) * z(MaxSim), z over the query's candidates; "
            "weight tuned on held-out training pairs"
        )
        write_reranker(setting.base, arrays(model), out, {**RERANKER, "fusion": {"weight": weight, "note": note}})
    return done


def _second_round_sources(setting: Setting) -> dict[str, tuple[list[Pair], list[Pair]]]:
    """What ``second_round_recipe.gather`` ranks passages for: of each of its files what the encoder did not learn from
    and what it did."""
    upper = upper_recipe
    drawn = setting.drawn(upper.FILES)
    unseen = _unseen(setting, drawn)
    hosts = [pair.passage for name in upper.HOSTS for pair in drawn[name]]
    seen = {name: drawn[name][:limit] for name, (_, limit) in upper.FILES.items()}
    seen["stated"] = data.statements(_upper_bitext(setting)[1::2], hosts, seed=setting.seed)
    return {name: (unseen[name][0], seen.get(name, [])) for name in second_round_recipe.FILES}


def _second_round(setting: Setting, model: CrossEncoder, steps: int) -> bool:
    """Learn lexicons and rank passages with the encoder in ``out``, train ``model`` on."""
    recipe, tokenizer, out, seed = second_round_recipe, setting.tokenizer, setting.out, setting.seed
    sources = _second_round_sources(setting)
    told = json.loads((out / "encoder.json").read_text(encoding="utf-8"))["query"]["weights"]
    weights = TokenWeights(tuple(told["direction"]), told["bias"])
    made_of = _made_of(out, recipe, (seed, told, code_switching.LANGUAGES, sources))

    def gather() -> dict[str, Any]:
        english = (
            tokenizer.decode(pair.query)
            for name, use in recipe.FILES.items()
            if use.versions
            for part in sources[name]
            for pair in part
        )
        lexicons = code_switching.learn(out, setting.sentences, tokenizer, english, threads=setting.threads)
        found = recipe.gather(out, weights, sources, lexicons, tokenizer, seed=seed, threads=setting.threads)
        return dataclasses.asdict(found)

    lists = recipe.Lists(**_kept(setting.work / "second-round-lists.json", made_of, gather))
    first = hashlib.sha256(b"".join(value.tobytes() for value in arrays(model).values())).hexdigest()
    return recipe.train_second_round(model, lists, setting.course(steps, "second-round.ckpt", made_of + first))
