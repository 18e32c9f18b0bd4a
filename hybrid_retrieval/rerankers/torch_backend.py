"""Sequence classifiers (XLM-R, BERT and their kin) through torch, on a CPU or on CUDA."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.checkpoints import (
    Copies,
    Words,
    all_devices,
    check_complete,
    checkpoint_tokenizer,
    longest_input,
    model_name,
    placement,
    quiet_transformers,
    weight_files,
)
from hybrid_retrieval.errors import ModelError, ModelSettingsError
from hybrid_retrieval.model_files import fingerprint, read_json
from hybrid_retrieval.optional import require
from hybrid_retrieval.rerankers.backend import RerankerBackend
from hybrid_retrieval.rerankers.loading import FLAG_MAX_TOKENS, limits
from hybrid_retrieval.rerankers.pairs import convention_of
from hybrid_retrieval.time_limits import OutOfTime

if TYPE_CHECKING:
    from hybrid_retrieval.rerankers.recorded import Recordings

FLOAT8 = "float8"
# Of sentence-transformers' CrossEncoder.
PROMPTS = "config_sentence_transformers.json"


class _Running(threading.local):
    """When the batch that this thread runs is to end, on `time.perf_counter`."""

    ends = math.inf


class TorchRerankerBackend(RerankerBackend):
    """model: a transformers ...ForSequenceClassification with one output. XLM-R and BERT run without padding where
    torch can, all others as transformers runs them; `padded` asks for that. On CUDA every device that this process may
    see holds the model, and works on a batch of its own; small batches are replayed there (`recorded`)."""

    def __init__(
        self,
        model: Any,
        *,
        device: str,
        dtype: str,
        threads: int,
        padded: bool = False,
        devices: Sequence[Any] | None = None,
    ) -> None:
        """dtype: as `placement` has it, or `float8`: products of layers in float8 (e4m3), the rest in bfloat16.
        devices: torch devices to use instead of those of `device`; one that stands there twice holds two copies."""
        self._torch = torch = require("torch", "the torch backend")
        from hybrid_retrieval.rerankers import unpadded

        config, self._words = model.config, Words(model)
        placed, chosen = placement(torch, device, "bfloat16" if dtype == FLOAT8 else dtype)
        if threads and placed.type == "cpu":
            torch.set_num_threads(threads)  # the whole process shares them: 0 leaves them as they are
        places = all_devices(torch, placed) if devices is None else list(devices)
        unpaddable = unpadded.is_supported(model) and all(
            unpadded.has_varlen_attention(place, chosen, model) for place in places
        )
        self.padded = padded or not unpaddable
        if dtype == FLOAT8:
            if self.padded:
                raise ModelSettingsError(
                    "float8 is for XLM-R and BERT classifiers without padding, on CUDA with torch's flash attention: "
                    "use dtype 'bfloat16' or 'float16'"
                )
            unpadded.check_float8(places, model)
        self.model = (model if self.padded else unpadded.UnpaddedClassifier(model)).eval().to(chosen)
        if dtype == FLOAT8:
            self.model.to_float8()
        self._copies = Copies(self.model, places)
        self._running = _Running()
        # Until a layer was seen to look at the clock. A card works off what the processor is done with.
        self.stops = False
        for copied, _ in self._copies.all if all(place.type == "cpu" for place in places) else ():
            lists = [module for module in copied.modules() if isinstance(module, torch.nn.ModuleList)]
            for layer in max(lists, key=len, default=()):
                layer.register_forward_pre_hook(self._look_at_the_clock)
        self.devices = self._copies.count
        self._recordings: dict[int, Recordings] = {}
        on_cuda = [] if self.padded else [lent for lent in self._copies.all if lent[1].type == "cuda"]
        if on_cuda:
            from hybrid_retrieval.rerankers.recorded import Recordings

            types = getattr(config, "type_vocab_size", 1) > 1
            for copied, place in on_cuda:
                self._recordings[id(copied)] = Recordings(copied, place, types=types)

    def forward(
        self,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        types: NDArray[np.int64] | None,
        ends: float = math.inf,
    ) -> NDArray[np.float32]:
        self._words.check(ids)
        run = self._padded if self.padded else self._unpadded
        with self._copies.taken(ends) as (model, device), self._torch.inference_mode():
            self._running.ends = ends
            try:
                found = run(model, device, ids, mask, types)
            finally:
                self._running.ends = math.inf
            logits: NDArray[np.float32] = found.float().reshape(-1).cpu().numpy()
        return logits

    def _look_at_the_clock(self, *_: Any) -> None:
        self.stops = True
        if time.perf_counter() > self._running.ends:
            raise OutOfTime

    def _padded(
        self, model: Any, device: Any, ids: NDArray[np.int64], mask: NDArray[np.int64], types: NDArray[np.int64] | None
    ) -> Any:
        inputs = {"input_ids": ids, "attention_mask": mask}
        if types is not None:
            inputs["token_type_ids"] = types
        return model(**{name: self._torch.from_numpy(array).to(device) for name, array in inputs.items()}).logits

    def _unpadded(
        self, model: Any, device: Any, ids: NDArray[np.int64], mask: NDArray[np.int64], types: NDArray[np.int64] | None
    ) -> Any:
        real = mask != 0
        lengths = mask.sum(axis=1).tolist()
        arrays = ids[real], model.positions(ids, mask)[real], None if types is None else types[real]
        recordings = self._recordings.get(id(model))
        if recordings is not None:
            from hybrid_retrieval.rerankers.recorded import Rows

            found = recordings.run(Rows(*arrays, lengths))
            if found is not None:
                return found
        starts = np.cumsum([0, *lengths])
        placed = (None if array is None else self._torch.from_numpy(array).to(device) for array in (*arrays, starts))
        return model(*placed, max(lengths))


def torch_parts(
    folder: Path, *, device: str, dtype: str, threads: int, max_tokens: int, padded: bool = False
) -> dict[str, Any]:
    """The keyword arguments of `Reranker` that come from the model's files. padded: as `TorchRerankerBackend`."""
    transformers = require("transformers", f"the checkpoint {folder}")
    tokenizer, tokenizer_bytes = checkpoint_tokenizer(folder)
    try:
        with quiet_transformers():
            classifier = transformers.AutoModelForSequenceClassification
            model, found = classifier.from_pretrained(
                str(folder), output_loading_info=True, trust_remote_code=False, dtype="float32"
            )
    except Exception as error:  # safetensors and pickle raise errors of their own
        raise ModelError(f"{folder}: not a sequence classifier ({' '.join(str(error).split()):.200})") from None
    config = model.config
    if config.num_labels != 1:
        raise ModelError(f"{folder} has {config.num_labels} outputs; a reranker has one (num_labels 1)")
    check_complete(folder, model, found["missing_keys"], found["unexpected_keys"])
    pad_id = config.pad_token_id if config.pad_token_id is not None else 0
    convention = convention_of(tokenizer, pad_id, token_types=getattr(config, "type_vocab_size", 1) > 1)
    longest = longest_input(model) or getattr(config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1 or config.is_encoder_decoder:
        raise ModelError(
            f"{folder}: a classifier of the kind '{config.model_type}' is not known to this release: expected an "
            "encoder with a limit of positions (BERT, XLM-R, ModernBERT, ...)"
        )
    prompts = read_json(folder / PROMPTS) if (folder / PROMPTS).exists() else {}
    named = prompts.get("default_prompt_name")
    if named and (prompts.get("prompts") or {}).get(named, "?"):
        raise ModelError(
            f"{folder / PROMPTS}: the default prompt '{named}' is not known to this release, "
            "and without it logits would be other ones: put it before each query, and drop the key"
        )
    own = min(FLAG_MAX_TOKENS, longest)
    tokenizer_identity = hashlib.sha256(tokenizer_bytes).hexdigest()
    # In 8 bits the logits are other ones: no store and no fitted fusion of another dtype is theirs.
    facts = [tokenizer_identity, FLOAT8] if dtype == FLOAT8 else [tokenizer_identity]
    return {
        "name": model_name(folder),
        "identity": fingerprint(weight_files(folder), *facts),
        "tokenizer_identity": tokenizer_identity,
        "convention": convention,
        "tokenizer": tokenizer,
        "backend": TorchRerankerBackend(model, device=device, dtype=dtype, threads=threads, padded=padded),
        "fusion_weight": None,
        **limits(own, own * 3 // 4, max_tokens, longest, folder),
    }
