"""Checkpoints as their authors publish them: what the torch backends of both stages share."""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
import queue
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybrid_retrieval.errors import ModelError, ModelSettingsError, OptionalDependencyError
from hybrid_retrieval.model_files import TOKENIZERS, load_tokenizer
from hybrid_retrieval.optional import require
from hybrid_retrieval.time_limits import OutOfTime, seconds_left

logger = logging.getLogger(__name__)

DTYPES = ("float32", "float16", "bfloat16")
_quieting = threading.Lock()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers draws bars while it loads, terminal or not, and prints a table of the weights that a checkpoint
    lacks (`check_complete` says it in a line) or has beyond need; afterwards its settings are what they were."""
    settings = require("transformers.utils.logging", "loading a checkpoint")
    with _quieting:  # else a thread would take another's for what they were
        enabled, verbosity = settings.is_progress_bar_enabled(), settings.get_verbosity()
        settings.disable_progress_bar()
        settings.set_verbosity_error()
        try:
            yield
        finally:
            settings.set_verbosity(verbosity)
            if enabled:
                settings.enable_progress_bar()


def check_complete(folder: Path, model: Any, missing: Iterable[str], surplus: Iterable[str]) -> None:
    """Raise `ModelError` for weights that a checkpoint lacks, which transformers would draw at random, and for layers
    that it has beyond those of its config.json, which transformers would leave out. Weights that no score depends on
    may be missing, and heads of other tasks may be there. model: a torch module."""
    lost = sorted(name for name in missing if not _unused(name))
    if lost:
        raise ModelError(f"{folder}: {len(lost)} weights are missing, first {lost[0]}")
    counted = {_layer(name) for name in model.state_dict()}
    beyond = sorted(name for name in surplus if _layer(name) not in {None, *counted})
    if beyond:
        raise ModelError(
            f"{folder}: it has {len(beyond)} weights of layers that its config.json does not count, first {beyond[0]}"
        )


def _layer(name: str) -> int | None:
    """The number of the layer that a weight is of."""
    found = re.search(r"\blayers?\.(\d+)\.", name)
    return int(found[1]) if found else None


def _unused(name: str) -> bool:
    return name.startswith("pooler.") or "position_ids" in name or "token_type_ids" in name


def longest_input(model: Any) -> int | None:
    """Tokens that a transformers model's table of positions holds; None where it has none (relative or rotary ones).

    Of a table with padding (RoBERTa and its kin, MPNet, Longformer) the rows up to that of the padding are never used;
    others may be larger than the config says, and are not used beyond that (Nystromformer).
    """
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and hasattr(part, "num_embeddings"):
            rows, padding = int(part.num_embeddings), getattr(part, "padding_idx", None)
            if padding is not None:
                return rows - int(padding) - 1
            return min(rows, getattr(model.config, "max_position_embeddings", None) or rows)
    return None


class Words:
    """How many words a transformers model has, against the ids that its tokenizer gives."""

    def __init__(self, model: Any) -> None:
        self._name = str(model.config.model_type)
        # Some kinds have an embedding of their own making, which says nothing of the sort.
        self._count = getattr(model.get_input_embeddings(), "num_embeddings", None)

    def check(self, ids: Any) -> None:
        """Raise `ModelError` for an id (of an int array) beyond the model's words."""
        largest = int(ids.max(initial=0))
        if self._count is not None and largest >= self._count:
            raise ModelError(
                f"the tokenizer gave the id {largest}, the model ({self._name}) has {self._count} words: they are not "
                "of one checkpoint"
            )


def placement(torch: Any, device: str, dtype: str) -> tuple[Any, Any]:
    """The torch device and dtype behind two names; `auto` is CUDA where there is one, float16 there, else float32."""
    if device not in ("auto", "cpu", "cuda"):
        raise ModelSettingsError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise ModelSettingsError(
            "device 'cuda' was asked for, but torch sees no CUDA device: use device 'cpu' or 'auto'"
        )
    chosen = "cuda" if device in ("auto", "cuda") and cuda else "cpu"
    if dtype == "auto":
        dtype = "float16" if chosen == "cuda" else "float32"
    if dtype not in DTYPES:
        raise ModelSettingsError(
            f"the torch backend runs in {', '.join(DTYPES)}, not in {dtype}: for int8 run "
            f"'hybrid-retrieval export-onnx' with --dtype int8 and name its folder"
        )
    return torch.device(chosen), getattr(torch, dtype)


def cuda_or_none(device: str, purpose: str) -> Any:
    """The torch device of a name where that is CUDA, None for a processor, which takes no import of torch if asked for.
    purpose: for the message where torch is missing. Raises `ModelSettingsError` or `OptionalDependencyError` where CUDA
    was asked for in vain."""
    if device == "cpu" or (device == "auto" and importlib.util.find_spec("torch") is None):
        return None
    placed, _ = placement(require("torch", purpose, "gpu"), device, "float32")
    return placed if placed.type == "cuda" else None


def all_devices(torch: Any, placed: Any) -> list[Any]:
    """Every device of the kind that `placement` chose: the processor, or the current CUDA device and those others that
    this process may see that are the same model (another one rounds otherwise, and which device takes a batch is a
    matter of time)."""
    if placed.type != "cuda":
        return [placed]
    first = torch.cuda.current_device()
    name = torch.cuda.get_device_name(first)
    kept = [torch.device("cuda", first)]
    for number in range(torch.cuda.device_count()):
        if number == first:
            continue
        if torch.cuda.get_device_name(number) == name:
            kept.append(torch.device("cuda", number))
        else:
            logger.warning("CUDA device %d is no %s as the current device is, and not used", number, name)
    return kept


class Copies:
    """A torch module on each of the devices that work with it, lent to one thread at a time: two forward passes at once
    on one device only take each other's memory. count: of devices. all: the copies and their devices."""

    def __init__(self, module: Any, places: Sequence[Any]) -> None:
        """The module itself moves to the first device; one that stands there twice holds two copies."""
        self.count = len(places)
        # Copied before the module itself moves away from the host's memory.
        self.all = [(copy.deepcopy(module).to(place), place) for place in places[:0:-1]]
        self.all.append((module.to(places[0]), places[0]))
        # The last to be given back is the next to be used: a lone batch finds a device that has run before.
        self._free: queue.LifoQueue[tuple[Any, Any]] = queue.LifoQueue()
        for lent in self.all:
            self._free.put(lent)

    @contextmanager
    def taken(self, ends: float = math.inf) -> Iterator[tuple[Any, Any]]:
        """A copy and its device; waits while all are taken, up to `ends` (`time.perf_counter`; raises `OutOfTime`)."""
        try:
            lent = self._free.get(timeout=seconds_left(ends))
        except queue.Empty:
            raise OutOfTime from None
        try:
            yield lent
        finally:
            self._free.put(lent)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, safetensors before pickles. Raises `ModelError` where there are none."""
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    raise ModelError(f"{folder}: no weights here (expected *.safetensors or pytorch_model.bin)")


def load_state(folder: Path) -> dict[str, Any]:
    """All tensors of a folder by name. Pickled weights are read as tensors only; no code in them runs."""
    torch = require("torch", f"reading {folder}")
    state: dict[str, Any] = {}
    for path in weight_files(folder):
        try:
            if path.suffix == ".safetensors":
                state.update(require("safetensors.torch", f"reading {path}").load_file(path))
            else:
                state.update(torch.load(path, map_location="cpu", weights_only=True))
        except OptionalDependencyError:
            raise
        except Exception as error:  # safetensors and pickle raise errors of their own
            raise ModelError(f"{path}: not readable as weights ({' '.join(str(error).split()):.200})") from None
    return state


def has_tokenizer_files(folder: Path) -> bool:
    """Whether a vocabulary lies there."""
    return any(any(folder.glob(name)) for name in TOKENIZERS)


def check_tokenizer_files(folder: Path) -> None:
    """Raise `ModelError` where transformers would make up a tokenizer that knows no word."""
    if not has_tokenizer_files(folder):
        raise ModelError(f"{folder}: no tokenizer here (expected tokenizer.json, vocab.txt, vocab.json or *.model)")


def checkpoint_tokenizer(folder: Path) -> tuple[Any, bytes]:
    """The folder's tokenizer for the tokenizers library, and its bytes (which identify it)."""
    path = folder / "tokenizer.json"
    if path.exists():
        tokenizer = load_tokenizer(path)
    else:
        check_tokenizer_files(folder)
        reader = require("transformers", f"reading the tokenizer of {folder}").AutoTokenizer
        try:
            read = reader.from_pretrained(str(folder), use_fast=True, trust_remote_code=False)
            tokenizer = read.backend_tokenizer
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"{folder}: no tokenizer can be read here ({' '.join(str(error).split())})") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
    return tokenizer, tokenizer.to_str().encode("utf-8")


def model_name(folder: Path) -> str:
    """What to call a checkpoint: the hub's name where the folder lies in its cache, else the folder's own."""
    for parent in folder.resolve().parents:
        if parent.name.startswith("models--"):
            return parent.name.removeprefix("models--").replace("--", "/")
    return folder.resolve().name
