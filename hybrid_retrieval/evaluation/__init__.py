"""How good rankings are: measures, the BM25 baseline, whole collections, the demonstration."""
