"""The command `hybrid-retrieval evaluate` as a script."""

from hybrid_retrieval.cli import main
from hybrid_retrieval.cli.evaluate import evaluate

if __name__ == "__main__":
    main(command=evaluate)
