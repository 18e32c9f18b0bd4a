"""Stanford ColBERT checkpoints: a BERT-like trunk, one linear projection, `artifact.metadata`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybrid_retrieval.checkpoints import check_complete, checkpoint_tokenizer, load_state, longest_input, weight_files
from hybrid_retrieval.encoders.convention import EncodingConvention, stanford_convention
from hybrid_retrieval.errors import ModelError
from hybrid_retrieval.model_files import read_json
from hybrid_retrieval.optional import require

WORDS = "embeddings.word_embeddings.weight"


def load_stanford(folder: Path) -> tuple[Any, Any, EncodingConvention, Any, list[Any]]:
    """A trunk (transformers model), its projection (torch Linear), the convention, the tokenizer, what identifies them.

    colbert-ai names the trunk after its family (`bert.`, `roberta.`, ...) and the projection `linear`.
    """
    torch = require("torch", f"the ColBERT checkpoint {folder}")
    transformers = require("transformers", f"the ColBERT checkpoint {folder}")
    metadata = read_json(folder / "artifact.metadata") if (folder / "artifact.metadata").exists() else {}
    tokenizer, tokenizer_bytes = checkpoint_tokenizer(folder)
    convention = stanford_convention(
        metadata,
        tokenizer.token_to_id,
        lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        str(folder),
    )
    state = load_state(folder)
    projection = state.pop("linear.weight", None)
    prefix = next((name.removesuffix(WORDS) for name in state if name.endswith(WORDS)), None)
    if projection is None or prefix is None:
        missing = "linear.weight" if projection is None else f"...{WORDS}"
        raise ModelError(f"{folder}: not a ColBERT checkpoint (it has no tensor {missing})")
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        trunk = transformers.AutoModel.from_config(config, trust_remote_code=False).float()
    except Exception as error:  # what transformers raises for odd values has no class in common
        raise ModelError(f"{folder}: its config.json is not usable ({' '.join(str(error).split())})") from None
    own = {_renamed(name.removeprefix(prefix)): value for name, value in state.items() if name.startswith(prefix)}
    try:
        found = trunk.load_state_dict(own, strict=False)
    except RuntimeError as error:
        raise ModelError(f"{folder}: its weights do not fit its config.json ({' '.join(str(error).split())})") from None
    check_complete(folder, trunk, found.missing_keys, found.unexpected_keys)
    longest = longest_input(trunk)
    for side, most in (("query", convention.query.max_tokens), ("passage", convention.passage.max_tokens)):
        if longest is not None and most > longest:
            raise ModelError(
                f"{folder}: a {side} is to have up to {most} tokens, its trunk has positions for {longest}"
            )
    width = trunk.config.hidden_size
    if projection.ndim != 2 or projection.shape[1] != width:
        raise ModelError(
            f"{folder}: linear.weight must be [D, {width}], as wide as the states, got {list(projection.shape)}"
        )
    linear = torch.nn.Linear(projection.shape[1], projection.shape[0], bias=False)
    linear.weight.data = projection.float()
    return trunk, linear, convention, tokenizer, [weight_files(folder), tokenizer_bytes]


def _renamed(name: str) -> str:
    """As transformers names a weight today, which checkpoints of 2018 to 2020 name otherwise."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
