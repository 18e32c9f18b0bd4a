"""Where a model's name leads: `embedded`, a local folder, or a hub id; and what kind of model a folder holds."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from hybrid_retrieval.errors import InputError, ModelError, ModelNotFoundError, ModelSettingsError

Kind = Literal["encoder", "reranker"]

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "models" / "embedded"

# What either stage may read of a checkpoint. Pickled weights are read as tensors only, and only without safetensors.
HUB_PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.metadata", "*.onnx", "*.gz"]
# Patterns match across folders: other exports of the same weights, several gigabytes that neither stage reads.
HUB_UNREAD = ["onnx/*", "openvino/*"]
# Any of these is a vocabulary.
TOKENIZERS = ("tokenizer.json", "tokenizer.json.gz", "vocab.txt", "vocab.json", "*.model")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # unlike ./folder


def resolve(model: str, revision: str | None = None) -> Path:
    """The folder of a model.

    model: `embedded`, an existing folder, or a hub id `owner/name` (with an optional revision), which is looked up in
    the local cache first and then downloaded. Raises `ModelNotFoundError` with a line that says how to get it,
    `ModelSettingsError` for a revision of what has none.
    """
    if revision is not None and not _is_hub_id(model):
        raise ModelSettingsError(f"a revision is of a hub id ('owner/name'), got {revision!r} for '{model}'")
    try:
        here = local_folder(model, revision)
    except OSError as error:
        raise ModelNotFoundError(f"no model '{model}': the folder cannot be read ({error.strerror or error})") from None
    if here is not None:
        return here
    if not _is_hub_id(model):
        raise ModelNotFoundError(
            f"no model '{model}': expected 'embedded', an existing folder (looked for from {Path.cwd()}; "
            "'hybrid-retrieval export-onnx MODEL FOLDER' makes one of a checkpoint), or a hub id such as 'owner/name'"
        )
    try:
        return _snapshot(model, revision, local=False)
    except Exception as error:  # those of the hub's HTTP library have no other class in common
        reason = type(error).__name__
        wanted = f" --revision {revision}" if revision else ""
        raise ModelNotFoundError(
            f"no model '{model}': not a folder, not whole in the local cache, and the hub did not give it ({reason}). "
            f"On a connected machine run 'hf download {model}{wanted} --local-dir FOLDER', then name that folder"
        ) from None


def lasting_name(model: str) -> str:
    """A model's name that means the same from any working directory: a folder by its absolute path."""
    is_folder = model != EMBEDDED and Path(model).is_dir()
    return str(Path(model).resolve()) if is_folder else model


def local_folder(model: str, revision: str | None = None) -> Path | None:
    """The folder of a model that `resolve` finds without a network, or None."""
    if model == EMBEDDED:
        return EMBEDDED_FOLDER
    if model and Path(model).is_dir():  # Path("") would be the working directory
        return Path(model)
    return _cached(model, revision) if _is_hub_id(model) else None


def is_local(model: str) -> bool:
    """Whether `resolve` would find the model without a network."""
    return local_folder(model) is not None


def kind_to_export(folder: Path, asked: Kind | None = None) -> Kind:
    """What a checkpoint is exported as: what is asked for, or what its files say. Raises `InputError` for what is an
    ONNX export already, and where neither an encoder nor a reranker can be recognised."""
    exported: tuple[Kind, ...] = ("encoder", "reranker") if asked is None else (asked,)
    if any((folder / f"{kind}.json").exists() for kind in exported):
        raise InputError(f"{folder}: an ONNX export already, which runs without torch: nothing is left to do")
    if asked is not None:
        return asked
    if (folder / "artifact.metadata").exists():
        return "encoder"
    names = read_json(folder / "config.json").get("architectures") or [] if (folder / "config.json").exists() else []
    if any(name.endswith("ForSequenceClassification") for name in names):
        return "reranker"
    if (folder / "modules.json").exists() or "HF_ColBERT" in names:
        return "encoder"
    raise InputError(
        f"{folder}: neither a ColBERT encoder (artifact.metadata or modules.json) nor a sequence classifier "
        "(config.json with an architecture ...ForSequenceClassification)"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder. Raises `ModelError` that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def load_tokenizer(path: Path) -> Any:
    """A `tokenizers.Tokenizer` without padding or truncation. It is then never changed, so threads may share it.

    Reading a large vocabulary takes a second: models of one file share one object. Raises `ModelError`.
    """
    try:
        facts = path.stat()
    except OSError:
        raise ModelError(f"{path}: no such tokenizer file") from None
    return _read_tokenizer(path.resolve(), facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=4)
def _read_tokenizer(path: Path, mtime_ns: int, size: int) -> Any:
    from tokenizers import Tokenizer

    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for a file that it cannot read
        raise ModelError(f"{path}: not a readable tokenizer ({error})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def reader(tokenizer: Any) -> Callable[[str], str]:
    """What of a text is tokenised: all but the white space at its end where the tokenizer would make a lone `▁` of it,
    a token that transformers' XLM-R does not have. To a byte-level tokenizer that white space is text, and stays."""
    bare, spaced = (tokenizer.encode(probe, add_special_tokens=False).ids for probe in ("a", "a "))
    lone = tokenizer.token_to_id("▁")
    return str.rstrip if lone is not None and spaced == [*bare, lone] else str


def fingerprint(files: Iterable[Path], *facts: Any) -> str:
    """SHA-256 (hex) over the contents of files, in the given order, and over facts that JSON can hold."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode())
    for path in files:
        with path.open("rb") as stream:
            digest.update(path.name.encode() + b"\0")
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _is_hub_id(model: str) -> bool:
    return _HUB_ID.fullmatch(model) is not None and not Path(model).exists()


def _cached(model: str, revision: str | None) -> Path | None:
    """The hub's local copy, if it is whole: other libraries leave copies of a tokenizer alone, or of weights alone, and
    an interrupted download some of the weights."""
    try:
        folder = _snapshot(model, revision, local=True)
    except (OSError, ValueError):
        return None
    weights = any(_has_weights(folder, kind) for kind in ("safetensors", "bin", "onnx"))
    return folder if weights and any(any(folder.rglob(name)) for name in TOKENIZERS) else None


def _has_weights(folder: Path, kind: str) -> bool:
    """Whether a folder holds weights of a kind, and all the files that an index of them names. Raises `ModelError` for
    an index that is no JSON."""
    for index in folder.glob(f"*.{kind}.index.json"):
        shards = read_json(index).get("weight_map")
        if isinstance(shards, dict) and not all((folder / str(name)).exists() for name in {*shards.values()}):
            return False
    return any(folder.glob(f"*.{kind}"))


def _snapshot(model: str, revision: str | None, *, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            model,
            revision=revision,
            local_files_only=local,
            allow_patterns=HUB_PATTERNS,
            ignore_patterns=HUB_UNREAD,
        )
    )
