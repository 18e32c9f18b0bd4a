"""Other engines' indexes: colbert-ai's and fast-plaid's read, colbert-ai's written."""

from hybrid_retrieval.interchange.colbert_export import export_colbert
from hybrid_retrieval.interchange.colbert_import import import_colbert

__all__ = ["export_colbert", "import_colbert"]
