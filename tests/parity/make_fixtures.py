"""Record what colbert-ai and FlagReranker answer, for the parity tests. `make_fixtures.sh` runs every step.

    python -m tests.parity.make_fixtures texts DATA BERT_TOKENIZER_JSON XLMR_TOKENIZER_JSON
    python -m tests.parity.make_fixtures colbert      in an environment with colbert-ai 0.2.22, transformers 4.57.6
    python -m tests.parity.make_fixtures flag         in an environment with FlagEmbedding 1.4.2, transformers 4.57.6

DATA holds xquad/{corpus,queries}.LANG.jsonl and tydiqa-LANG/{corpus,queries}.jsonl (BEIR lines).
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.checkpoints import (
    HERE,
    make_bert_reranker,
    make_colbert,
    make_xlmr_reranker,
    texts,
    weights_digest,
)

XQUAD = ("en", "es", "ru", "ar", "hi", "th", "zh")
TYDI = ("ko", "te", "sw")
NUM_QUERIES, NUM_PASSAGES = 50, 8


def record_texts(data: Path, bert: Path, xlmr: Path) -> None:
    """500 pairs, 50 a language: every fifth passage and every tenth query is far over the limit."""
    pairs = []
    for language in (*XQUAD, *TYDI):
        folder, suffix = (data / "xquad", f".{language}") if language in XQUAD else (data / f"tydiqa-{language}", "")
        questions = [line["text"] for line in _lines(folder / f"queries{suffix}.jsonl")]
        paragraphs = [line["text"] for line in _lines(folder / f"corpus{suffix}.jsonl")][:NUM_PASSAGES]
        everything = "\n".join(paragraphs)
        longest = " ".join(questions[:NUM_QUERIES])
        for i in range(NUM_QUERIES):
            passage = everything if i % 5 == 4 else paragraphs[i % NUM_PASSAGES]
            pairs.append((longest if i % 10 in (3, 4) else questions[i], passage))
    english = data / "xquad"
    questions = [line["text"] for line in _lines(english / "queries.en.jsonl")]
    paragraphs = [line["text"] for line in _lines(english / "corpus.en.jsonl")]
    words = "the house is near a green river and old men walk there every day to see how water runs under trees "
    value = {
        "sources": "XQuAD (CC BY-SA 4.0): en es ru ar hi th zh; TyDi QA GoldP (Apache-2.0): ko te sw",
        "colbert_queries": [
            *questions[20:30],
            "why?",
            "café naïve ÉCOLE",
            "C++ vs. C#: what's faster?",
            "东京在哪里",
            " ".join(questions[:4]),
        ],
        # Within the limit of 64 tokens, but for the last one, whose words are one piece each.
        "colbert_passages": [
            *[". ".join(paragraph.split(". ")[:1])[:180] for paragraph in paragraphs[:12]],
            "...",
            'It\'s 3.14; (really!) [yes] {no} <a@b.c> #1 $5 50% ~x^y `z` "q" a/b\\c|d_e=f+g*h&i',
            "東京は日本の首都。",
            (words * 5).strip(),
        ],
        "pairs": pairs,
    }
    _write_gz(HERE / "texts.json.gz", json.dumps(value, ensure_ascii=False))
    _write_gz(HERE / "bert_tokenizer.json.gz", json.dumps(json.loads(bert.read_text("utf-8")), ensure_ascii=False))
    _write_gz(HERE / "xlmr_tokenizer.json.gz", _reduced(xlmr.read_text("utf-8"), sorted({t for p in pairs for t in p})))


def _reduced(tokenizer_json: str, contents: list[str]) -> str:
    """The tokenizer with only those pieces that are substrings of the texts: it segments these texts as before."""
    from tokenizers import Tokenizer

    original = Tokenizer.from_str(tokenizer_json)
    value = json.loads(tokenizer_json)
    words = set()
    for text in contents:
        normalised = original.normalizer.normalize_str(text)
        words |= {word for word, _ in original.pre_tokenizer.pre_tokenize_str(normalised)}
    wanted = {word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, min(len(word), i + 20) + 1)}
    pieces = value["model"]["vocab"]
    kept = pieces[:4] + [piece for piece in pieces[4:] if piece[0] in wanted]
    value["model"]["vocab"] = kept
    value["added_tokens"] = [token for token in value["added_tokens"] if token["id"] < 4] + [
        next(token for token in value["added_tokens"] if token["content"] == "<mask>") | {"id": len(kept)}
    ]
    text = json.dumps(value, ensure_ascii=False)
    reduced = Tokenizer.from_str(text)
    for content in contents:
        before, after = (
            original.encode(content, add_special_tokens=False),
            reduced.encode(content, add_special_tokens=False),
        )
        assert before.tokens == after.tokens, content[:80]
    return text


def record_colbert() -> None:
    """Token vectors of colbert-ai: queries with and without attention to the filling, and passages."""
    from colbert.infra import ColBERTConfig
    from colbert.modeling.checkpoint import Checkpoint
    from colbert.modeling.colbert import ColBERT

    ColBERT.loaded_extensions = True  # its C++ extension scores; encoding does not need it
    found: dict[str, Any] = {}
    content = texts()
    with tempfile.TemporaryDirectory() as folder:
        for attend in (False, True):
            path = make_colbert(Path(folder) / f"attend-{attend}", attend=attend)
            config = ColBERTConfig.load_from_checkpoint(str(path))
            checkpoint = Checkpoint(str(path), colbert_config=config, verbose=0)
            assert (
                checkpoint.colbert_config.attend_to_mask_tokens is attend and checkpoint.colbert_config.doc_maxlen == 64
            )
            found[f"queries_attend_{attend}"] = checkpoint.queryFromText(content["colbert_queries"]).numpy()
        passages = [checkpoint.docFromText([text], keep_dims=False)[0].numpy() for text in content["colbert_passages"]]
        found["passages"] = np.concatenate(passages)
        found["passage_lengths"] = np.array([len(passage) for passage in passages])
        found["weights"] = weights_digest(path)
    np.savez_compressed(HERE / "colbert.npz", **found)


def record_flag() -> None:
    """Pair ids of FlagReranker's tokenisation, and logits of two small cross-encoders."""
    from FlagEmbedding import FlagReranker

    found: dict[str, Any] = {}
    pairs = [tuple(pair) for pair in texts()["pairs"]]
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (("xlmr", make_xlmr_reranker), ("bert", make_bert_reranker)):
            path = make(Path(folder) / name)
            reranker = FlagReranker(str(path), use_fp16=False, devices="cpu", batch_size=16)
            chosen = pairs if name == "xlmr" else pairs[:50]
            rows = _pair_ids(reranker, chosen)
            found[f"{name}_ids"] = np.concatenate([row["input_ids"] for row in rows]).astype(np.uint16)
            found[f"{name}_lengths"] = np.array([len(row["input_ids"]) for row in rows], np.uint16)
            if name == "bert":
                found["bert_types"] = np.concatenate([row["token_type_ids"] for row in rows]).astype(np.uint8)
            step = 11 if name == "xlmr" else 3  # prime to the cycle of long pairs
            found[f"{name}_scored"] = np.arange(0, len(chosen), step)
            found[f"{name}_logits"] = np.array(reranker.compute_score(chosen[::step]), np.float32)
            found[f"{name}_weights"] = weights_digest(path)
    np.savez_compressed(HERE / "flag.npz", **found)


def _pair_ids(reranker: Any, pairs: list[tuple[str, str]]) -> list[dict[str, list[int]]]:
    """What FlagReranker hands to its model, caught where it pads."""
    from FlagEmbedding.inference.reranker.encoder_only import base

    caught: list[dict[str, list[int]]] = []
    original = base.prepare_for_model_compat

    def catching(*arguments: Any, **options: Any) -> Any:
        item = original(*arguments, **options)
        caught.append({key: list(value) for key, value in item.items()})
        return item

    base.prepare_for_model_compat = catching
    try:
        for start in range(0, len(pairs), 50):
            reranker.compute_score(pairs[start : start + 50])
    finally:
        base.prepare_for_model_compat = original
    assert len(caught) == len(pairs)
    return caught


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_gz(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode("utf-8"), 9, mtime=0))


if __name__ == "__main__":
    step, *arguments = sys.argv[1:]
    steps: dict[str, Any] = {"texts": record_texts, "colbert": record_colbert, "flag": record_flag}
    steps[step](*map(Path, arguments))
