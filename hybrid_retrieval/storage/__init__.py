"""Indexes on disk: layout, manifest, writing, reading, checking."""

from hybrid_retrieval.storage.manifest import Manifest
from hybrid_retrieval.storage.passages import PassageEncoder
from hybrid_retrieval.storage.segment import Segment
from hybrid_retrieval.storage.segment_writer import SegmentWriter
from hybrid_retrieval.storage.snapshot import Snapshot
from hybrid_retrieval.storage.verify import verify
from hybrid_retrieval.storage.writer import IndexWriter

__all__ = ["IndexWriter", "Manifest", "PassageEncoder", "Segment", "SegmentWriter", "Snapshot", "verify"]
