"""Which texts go through a model together, and what happens where they do not fit. No tensors here: lengths in, groups
of positions out."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import ModelError

logger = logging.getLogger(__name__)

Int64 = NDArray[np.int64]


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Groups of positions, longest first, whose padded size (rows x longest row) stays within `batch_tokens`.

    A row longer than the budget goes alone. The plan depends on the lengths only; rows of one length keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batches: list[list[int]] = []
    for position in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


class Batches:
    """Runs rows in batches under a token budget, which shrinks where the device's memory does not hold a batch.

    Safe to share between threads. tokens: the budget now, padded tokens in one forward pass.
    """

    def __init__(self, tokens: int, name: str) -> None:
        """name: of the model, for messages."""
        self.tokens, self._name = tokens, name
        self._warned = False
        self._lock = threading.Lock()

    def run(self, lengths: Sequence[int], forward: Callable[[list[int]], None], workers: int = 1) -> None:
        """Call `forward` with the positions of each batch until every row has been through; from up to `workers`
        threads at once, where there are as many batches.

        Out of memory, the budget is halved for good (said once, as a warning), and what remains is planned anew. Raises
        `ModelError` where a single row does not fit. An error ends the run once the batches under way are through.
        """
        waiting = deque(plan_batches(lengths, self.tokens))
        stopped = threading.Event()

        def work() -> None:
            while True:
                with self._lock:
                    if stopped.is_set() or not waiting:
                        return
                    batch = waiting.popleft()
                try:
                    if self._forwarded(batch, lengths, forward):
                        continue
                except BaseException:
                    stopped.set()
                    raise
                # Outside of the handler: its traceback would keep the failed batch's memory.
                self._halve(len(batch) * lengths[batch[0]])
                with self._lock:
                    rest = [position for batch in (batch, *waiting) for position in batch]
                    plan = plan_batches([lengths[position] for position in rest], self.tokens)
                    waiting.clear()
                    waiting.extend([rest[i] for i in part] for part in plan)

        together = min(workers, len(waiting))
        if together < 2:
            work()
            return
        with ThreadPoolExecutor(together) as pool:
            try:
                for done in [pool.submit(work) for _ in range(together)]:
                    done.result()
            except BaseException:  # an interruption too, which reaches this thread alone
                stopped.set()
                raise

    def _forwarded(self, batch: list[int], lengths: Sequence[int], forward: Callable[[list[int]], None]) -> bool:
        """Whether a batch fitted."""
        try:
            forward(batch)
        except Exception as error:  # the class is the device library's, which need not be installed
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise ModelError(
                    f"{self._name}: not enough memory on the device for a single row of {lengths[batch[0]]} "
                    "tokens: lower max_tokens, free memory there, or use device 'cpu'"
                ) from None
            return False
        return True

    def _halve(self, failed_tokens: int) -> None:
        with self._lock:
            # Another thread may have halved it already, since this batch was planned.
            self.tokens = max(1, min(self.tokens, failed_tokens // 2))
            if not self._warned:
                self._warned = True
                logger.warning(
                    "%s: out of memory with a batch of %d tokens; going on with batches of %d. Lower batch_tokens to "
                    "avoid this; further halvings are not reported",
                    self._name,
                    failed_tokens,
                    self.tokens,
                )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is torch's (or a kin's) for a device whose memory is full. By name: torch need not be there."""
    return any(base.__name__ == "OutOfMemoryError" for base in type(error).__mro__)


def pad(rows: Sequence[Sequence[int] | NDArray[np.integer[Any]]], pad_id: int) -> tuple[Int64, Int64]:
    """Token ids and attention mask, both int64 [B, L], L the longest row."""
    longest = max(map(len, rows), default=0)
    ids = np.full((len(rows), longest), pad_id, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask
