"""The command `hybrid-retrieval query` as a script."""

from hybrid_retrieval.cli import main
from hybrid_retrieval.cli.query import query

if __name__ == "__main__":
    main(command=query)
