"""PyLate and sentence-transformers multi-vector folders (`modules.json`), read through `MultiVectorEncoder`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hybrid_retrieval.checkpoints import (
    check_complete,
    check_tokenizer_files,
    has_tokenizer_files,
    longest_input,
    quiet_transformers,
    weight_files,
)
from hybrid_retrieval.encoders.convention import EncodingConvention, Expansion, Side
from hybrid_retrieval.errors import ModelError
from hybrid_retrieval.optional import require

DEFAULT_QUERY_TOKENS = 32
DEFAULT_PASSAGE_TOKENS = 180


def load_pylate(folder: Path) -> tuple[Any, Any, EncodingConvention, Any, list[Any]]:
    """A trunk (transformers model), its projection (torch module), the convention, the tokenizer, what identifies them.

    Prompts become marker ids, `query_expansion` and the scoring mask's skip list become the convention. What cannot be
    expressed in it is a `ModelError`, never another encoding in silence.
    """
    torch = require("torch", f"the checkpoint {folder}")
    library = require("sentence_transformers", f"the checkpoint {folder}")
    parts = _parts(folder)
    own = parts[0][1]
    check_tokenizer_files(own if has_tokenizer_files(own) else folder)
    try:
        with quiet_transformers():
            model = library.MultiVectorEncoder(
                str(folder),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": torch.float32},  # else of the config's dtype, which rounds weights
            )
            first, rest = model[0], list(model)[1:]
            trunk = getattr(first, "auto_model", None) or first.model
            # Once more, for what the library does not pass on.
            loading = type(trunk).from_pretrained(str(own), output_loading_info=True)[1]
    except Exception as error:  # safetensors and pickle raise errors of their own
        raise ModelError(f"{folder}: sentence-transformers cannot read it ({' '.join(str(error).split())})") from None
    check_complete(folder, trunk, loading["missing_keys"], loading["unexpected_keys"])
    dense = [module for module in rest if type(module).__name__ == "Dense"]
    masks = [module for module in rest if type(module).__name__ == "MultiVectorMask"]
    other = [
        type(module).__name__
        for module in rest
        if type(module).__name__ not in ("Dense", "MultiVectorMask", "Normalize")
    ]
    if other or not dense:
        raise ModelError(
            f"{folder}: expected a transformer and dense projections, got also {', '.join(other) or 'no Dense'}"
        )
    if not any(kind.startswith("pylate.") for kind, _ in parts):  # whose own folders mean both without naming them
        if not any(type(module).__name__ == "Normalize" for module in rest):
            raise ModelError(f"{folder}: its vectors are not of unit length (it has no Normalize)")
        if first.query_expansion is not None and not masks:
            raise ModelError(f"{folder}: it expands queries but has no MultiVectorMask: not known to this release")
    projections = [path for kind, path in parts if kind.endswith(".Dense")]
    if len(projections) != len(dense):  # the library draws what is not there at random
        raise ModelError(
            f"{folder}: modules.json names {len(projections)} Dense projections, the library made {len(dense)}"
        )
    if any(getattr(module, "use_residual", False) for module in dense):
        raise ModelError(f"{folder}: a Dense of it adds its input to its output, which this release does not know")
    layers = [layer for module in dense for layer in (module.linear, module.activation_function)]
    if masks and (masks[0].keep_only_token_ids is not None or list(masks[0].skiplist_tasks) != ["document"]):
        raise ModelError(f"{folder}: its MultiVectorMask has settings that this release does not know")
    tokenizer = model.tokenizer.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    expansion = first.query_expansion
    filling = None if expansion is None else expansion.get("token") or model.tokenizer.mask_token
    if expansion is not None and (filling is None or tokenizer.token_to_id(filling) is None):
        raise ModelError(f"{folder}: it expands queries, but its tokenizer has no token to fill them with ({filling})")
    prompts = model.prompts
    most = longest_input(trunk) or sys.maxsize  # the library's own limit counts the rows of padding
    limit = first.max_seq_length
    query_tokens = first.query_length or limit or DEFAULT_QUERY_TOKENS
    if expansion is not None and expansion["strategy"] == "fixed":  # the other strategy, `min`, is a floor only
        query_tokens = expansion["length"]
    if expansion is not None and expansion["length"] > most:
        raise ModelError(f"{folder}: it fills queries up to {expansion['length']} tokens, and has positions for {most}")
    query = _markers(tokenizer, prompts.get("query") or "", folder)
    passage = _markers(tokenizer, prompts.get("document") or "", folder)
    words = masks[0].skiplist_words if masks else []
    known = [tokenizer.token_to_id(word) for word in words]
    convention = EncodingConvention(
        query=Side(
            *query,
            max_tokens=min(int(query_tokens), most),
            expansion=expansion
            and Expansion(
                tokenizer.token_to_id(filling), int(expansion["length"]), bool(expansion.get("attend", False))
            ),
        ),
        passage=Side(
            *passage,
            max_tokens=min(int(first.document_length or limit or DEFAULT_PASSAGE_TOKENS), most),
            skip_ids=tuple(sorted({token for token in known if token is not None})),
        ),
        pad_id=int(model.tokenizer.pad_token_id or 0),
    )
    files = [path for part in (own, *projections) for path in weight_files(part)]
    return trunk, torch.nn.Sequential(*layers), convention, tokenizer, [files, tokenizer.to_str().encode()]


def _parts(folder: Path) -> list[tuple[str, Path]]:
    """Type and folder of each module that `modules.json` names, the transformer first. Raises `ModelError` for a folder
    of one vector a text, of which the library would make a multi-vector model with a random projection."""
    path = folder / "modules.json"
    try:
        parts = [(str(part["type"]), folder / str(part["path"])) for part in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a readable list of modules ({error})") from None
    if any(kind.endswith(".Pooling") for kind, _ in parts):
        raise ModelError(f"{folder}: a model of one vector a text (it has a Pooling), not a ColBERT encoder")
    if not parts:
        raise ModelError(f"{path}: names no modules")
    return parts


def _markers(tokenizer: Any, prompt: str, folder: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that stand before and after a text that is tokenised behind `prompt`."""
    markers = set()
    for text in ("hello", "two words"):
        whole = list(tokenizer.encode(prompt + text, add_special_tokens=True).ids)
        own = list(tokenizer.encode(text, add_special_tokens=False).ids)
        starts = [at for at in range(len(whole)) if whole[at : at + len(own)] == own]
        if not starts:
            raise ModelError(f"{folder}: the prompt '{prompt}' changes how the text behind it is tokenised")
        markers.add((tuple(whole[: starts[-1]]), tuple(whole[starts[-1] + len(own) :])))
    if len(markers) != 1:
        raise ModelError(f"{folder}: the prompt '{prompt}' gives other markers for other texts")
    return markers.pop()
