"""`python -m hybrid_retrieval`: the command line, where its script is not on the PATH."""

from hybrid_retrieval.cli import main

if __name__ == "__main__":
    main()
