"""The command `hybrid-retrieval build` as a script."""

from hybrid_retrieval.cli import main
from hybrid_retrieval.cli.build import build

if __name__ == "__main__":
    main(command=build)
