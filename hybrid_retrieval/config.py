"""Pipeline configuration: frozen dataclasses <-> YAML, strict.

An unknown key or an impossible value raises `ConfigError`, which names the nearest known key. The defaults are
those of `pipelines/embedded.yaml`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from hybrid_retrieval.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Backend = Literal["auto", "native", "onnx", "torch"]
DType = Literal["auto", "float32", "float16", "bfloat16", "int8"]

# What PyYAML lets through of a date without such a day, a number without digits, a tag on what it does not fit.
_OF_SCALARS = (ValueError, TypeError, LookupError, AttributeError, OverflowError)

FUSION_WEIGHT = 0.5
MOST_THREADS = 1024
"""More is a slip of the pen, and would exhaust the system's threads."""


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice: YAML's loader would let the later one win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused later: no key of a configuration is a list or a mapping
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The ColBERT encoder.

    model: `embedded`, a local folder, or a hub id (with `revision`). backend: `torch` for checkpoints as they are
    published, `onnx` or `native` (the kernels, on a CPU) for exports; `auto` takes what fits folder and machine.
    device: `auto` is CUDA where the model runs on torch and finds one. dtype: `auto` is float16 on CUDA and float32 on
    a CPU; an export keeps its own. threads: 0 means every core. batch_tokens: padded tokens in one forward pass.
    cached_queries: queries whose vectors are remembered, 0 none.
    """

    model: str = "embedded"
    revision: str | None = None
    backend: Backend = "auto"
    device: Device = "auto"
    dtype: DType = "auto"
    threads: int = 0
    batch_tokens: int = 4096
    cached_queries: int = 1024

    def __post_init__(self) -> None:
        _check_types(self, "encoder")
        _require(self.cached_queries >= 0, f"encoder.cached_queries must be 0 (off) or more, got {self.cached_queries}")
        _require(bool(self.model), "encoder.model must not be empty")
        _check_threads("encoder", self.threads)
        _require(self.batch_tokens >= 1, f"encoder.batch_tokens must be at least 1, got {self.batch_tokens}")


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """How an index is built.

    nbits: bits a dimension of the residuals. centroids: 0 chooses from the collection's size. pool_factor: token
    vectors that are pooled to one, on average (`builder.pooling`); 1 keeps them all. window_overlap: tokens that
    neighbouring windows of a long passage share. chunk_passages: passages encoded between two checkpoints.
    device: of the search for nearest centroids (`auto` is CUDA where torch finds one); another one may decide near ties
    otherwise. Where passages are encoded is `encoder.device`.
    """

    nbits: int = 2
    centroids: int = 0
    pool_factor: int = 1
    seed: int = 0
    include_title: bool = True
    window_overlap: int = 32
    chunk_passages: int = 256
    device: Device = "cpu"

    def __post_init__(self) -> None:
        _check_types(self, "index")
        _require(self.nbits in (1, 2, 4, 8), f"index.nbits must be 1, 2, 4 or 8, got {self.nbits!r}")
        _require(self.centroids >= 0, f"index.centroids must be 0 (automatic) or more, got {self.centroids}")
        _require(self.pool_factor >= 1, f"index.pool_factor must be 1 (none) or more, got {self.pool_factor}")
        _require(self.seed >= 0, f"index.seed must be 0 or more, got {self.seed}")
        _require(self.window_overlap >= 0, f"index.window_overlap must be 0 or more, got {self.window_overlap}")
        _require(self.chunk_passages >= 1, f"index.chunk_passages must be at least 1, got {self.chunk_passages}")


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """How a query is answered.

    num_candidates: passages that stage 1 hands to stage 2. nprobe: centroids probed by each query token, 0 chooses from
    k. exact: score every passage. device: of stage 1; `auto` is CUDA where torch finds one. threads: of stage 1 on a
    CPU, 0 means every core. early_stop: end stage 2 when the candidates
    that remain are not expected to enter the first early_stop_top places (0: any of the k asked for); they follow in
    stage 1's order. early_stop_bound: how many standard deviations above the mean of the logits so far the logit of a
    remaining candidate is expected to lie at most.
    """

    num_candidates: int = 14
    nprobe: int = 0
    exact: bool = False
    device: Device = "cpu"
    threads: int = 0
    early_stop: bool = False
    early_stop_top: int = 5
    early_stop_bound: float = -0.5

    def __post_init__(self) -> None:
        _check_types(self, "search")
        _require(self.num_candidates >= 1, f"search.num_candidates must be at least 1, got {self.num_candidates}")
        _require(self.early_stop_top >= 0, f"search.early_stop_top must be 0 (k) or more, got {self.early_stop_top}")
        _require(
            math.isfinite(self.early_stop_bound),
            f"search.early_stop_bound must be a finite number, got {self.early_stop_bound}",
        )
        _require(self.nprobe >= 0, f"search.nprobe must be 0 (automatic) or more, got {self.nprobe}")
        _check_threads("search", self.threads)


@dataclass(frozen=True, slots=True)
class RerankerConfig:
    """Stage 2.

    model: `embedded`, a local folder, a hub id (with `revision`), or `none` to stop after stage 1. backend, device,
    dtype and threads: as of the encoder; dtype may be `float8` too, on Ada and Hopper cards and newer ones. truncation:
    `only_second` cuts as FlagReranker does (the query to the model's own limit, or to 3/4 of max_tokens where that is
    set otherwise; then the passage); `longest_first` cuts as sentence-transformers does. batch_tokens: padded tokens in
    one forward pass. max_tokens: of a pair; 0 takes the model's own (512 for FlagReranker's). long_passages: one that
    does not fit is read in windows that share window_overlap tokens and scored by their `max` or `mean`; `cut` reads
    its start alone. max_passage_tokens: with windows, tokens of a passage that are read at all, 0 all of them.
    cached_pairs: scores of pairs that are remembered, 0 none.
    """

    model: str = "embedded"
    revision: str | None = None
    backend: Backend = "auto"
    device: Device = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16", "float8", "int8"] = "auto"
    threads: int = 0
    truncation: Literal["only_second", "longest_first"] = "only_second"
    max_tokens: int = 0
    long_passages: Literal["max", "mean", "cut"] = "max"
    window_overlap: int = 32
    max_passage_tokens: int = 0
    batch_tokens: int = 4096
    cached_pairs: int = 32768

    def __post_init__(self) -> None:
        _check_types(self, "reranker")
        for name in ("window_overlap", "max_passage_tokens", "cached_pairs"):
            _require(getattr(self, name) >= 0, f"reranker.{name} must be 0 or more, got {getattr(self, name)}")
        _require(
            self.max_passage_tokens == 0 or self.long_passages != "cut",
            "reranker.max_passage_tokens limits windows: with long_passages 'cut', set max_tokens instead",
        )
        _require(bool(self.model), "reranker.model must not be empty (write 'none' to stop after stage 1)")
        _check_threads("reranker", self.threads)
        _require(
            self.max_tokens == 0 or self.max_tokens >= 16,
            f"reranker.max_tokens must be 0 (the model's own) or at least 16, got {self.max_tokens}",
        )
        _require(self.batch_tokens >= 1, f"reranker.batch_tokens must be at least 1, got {self.batch_tokens}")


@dataclass(frozen=True, slots=True)
class FusionConfig:
    """How the two scores make one order.

    method `reranker`: by the raw logit. `weighted`: by w * z(logit) + (1 - w) * z(MaxSim), where z standardises over
    the candidates of one query. `fitted`: as the fusion file `file` says, which `hybrid-retrieval fit-fusion` writes.
    `auto`: what the reranker's own files recommend, else `reranker`. weight: w, read with `weighted` only.
    """

    method: Literal["auto", "reranker", "weighted", "fitted"] = "auto"
    weight: float = FUSION_WEIGHT
    file: str | None = None

    def __post_init__(self) -> None:
        _check_types(self, "fusion")
        _require(0.0 <= self.weight <= 1.0, f"fusion.weight must lie between 0 and 1, got {self.weight}")
        _require(
            self.method == "weighted" or self.weight == FUSION_WEIGHT,
            f"fusion.weight is read with method 'weighted' only, got {self.weight} with method '{self.method}'",
        )
        _require(
            self.method != "fitted" or bool(self.file),
            "fusion.method 'fitted' needs fusion.file, which 'hybrid-retrieval fit-fusion' writes",
        )
        _require(
            self.method == "fitted" or self.file is None,
            f"fusion.file is read with method 'fitted' only, got method '{self.method}'",
        )


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """The whole pipeline: one section a part."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    reranker: RerankerConfig = field(default_factory=RerankerConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "configuration") -> PipelineConfig:
        """Build from nested mappings. Raises `ConfigError` that names `source`, the key and what was expected."""
        built: PipelineConfig = from_mapping(cls, values, source=source)
        return built

    @classmethod
    def load(cls, path: str | Path) -> PipelineConfig:
        """Read a YAML file. Raises `ConfigError`, also where there is none."""
        path = Path(path)
        try:
            values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
        except (FileNotFoundError, IsADirectoryError):
            raise ConfigError(f"{path}: no such configuration file") from None
        except (yaml.YAMLError, OSError, RecursionError, *_OF_SCALARS) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"{path}: not a readable YAML file ({reason})") from None
        return cls.from_dict({} if values is None else values, source=str(path))

    @classmethod
    def from_stored(cls, values: Mapping[str, Any], *, source: str) -> PipelineConfig:
        """As `from_dict`, of what an index keeps. One from before it was refused may hold a weight that is not read."""
        fusion = values.get("fusion")
        if isinstance(fusion, Mapping) and fusion.get("method") != "weighted":
            values = {**values, "fusion": {key: value for key, value in fusion.items() if key != "weight"}}
        return cls.from_dict(values, source=source)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; `from_dict(to_dict())` is the same configuration."""
        return dataclasses.asdict(self)


def from_mapping(cls: Any, values: Any, *, source: str) -> Any:
    """A dataclass, and those it holds, from nested plain values: no unknown key, none missing, types as declared.

    Raises `ConfigError` that names `source`, the key and what was expected.
    """
    return _build(cls, values, source, "")


def _build(cls: Any, values: Any, source: str, prefix: str) -> Any:
    where = prefix.rstrip(".") or "the top level"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: {where} must be a mapping of keys to values, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), list(hints), n=1, cutoff=0.4)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known keys: {', '.join(hints)}"
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'; {hint}")
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            arguments[key] = _build(kind, {} if value is None else value, source, f"{prefix}{key}.")
        else:
            arguments[key] = _checked(kind, value, f"{source}: {prefix}{key}")
    missing = [
        f"'{prefix}{field.name}'"
        for field in dataclasses.fields(cls)
        if field.name not in arguments and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{source}: missing {', '.join(missing)}")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _check_threads(section: str, threads: int) -> None:
    _require(
        0 <= threads <= MOST_THREADS, f"{section}.threads must be 0 (every core) to {MOST_THREADS:,}, got {threads:,}"
    )


def _check_types(section: Any, name: str) -> None:
    """Raise `ConfigError` unless every value of a section is of its declared type, whoever made the section."""
    for key, kind in typing.get_type_hints(type(section)).items():
        _checked(kind, getattr(section, key), f"{name}.{key}")


def _checked(kind: Any, value: Any, where: str) -> Any:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.6)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ConfigError(f"{where} must be one of {', '.join(map(str, choices))}, got {value!r}{hint}")
        return value
    options = typing.get_args(kind) or (kind,)
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where} is larger than any number that can be computed with") from None
    if (isinstance(value, bool) and bool not in options) or not isinstance(value, options):
        names = " or ".join("null" if option is type(None) else option.__name__ for option in options)
        raise ConfigError(f"{where} must be {names}, got {value!r}")
    return value
