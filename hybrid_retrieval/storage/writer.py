"""`IndexWriter`: the one writer of an index folder, from the lock to the commit."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import hybrid_retrieval.storage.layout as layout
from hybrid_retrieval.codec import ResidualCodec
from hybrid_retrieval.errors import (
    IndexDamagedError,
    IndexExistsError,
    IndexLockedError,
    IndexNotFoundError,
    IndexVersionError,
)
from hybrid_retrieval.storage.files import (
    canonical_json,
    check_content,
    check_size,
    checksum,
    describe,
    map_array,
    replace_synced,
    sync_files,
    sync_folder,
    write_synced,
)
from hybrid_retrieval.storage.lists import write_lists
from hybrid_retrieval.storage.manifest import Manifest, newest_version


class IndexWriter:
    """Everything is written under building/ and moved into place by `commit`.

    A build that dies leaves building/ behind and no new version; with its journal the next writer may go on.
    The lock is the operating system's and dies with the process. Use as a context manager: leaving releases
    the lock.
    """

    def __init__(self, path: Path, lock: int, made_folder: bool, journal: dict[str, Any] | None) -> None:
        self.path, self.building = path, path / layout.BUILDING
        self._lock, self._made_folder, self._process = lock, made_folder, os.getpid()
        self.journal = journal
        self.finished_earlier = False

    @classmethod
    def create(cls, path: str | Path, *, overwrite: bool = False, resume: bool = False) -> IndexWriter:
        """Lock an index folder for a build.

        Raises `IndexExistsError` where there is an index, or an unfinished build, or foreign files, and
        neither `overwrite` nor `resume` says what to do; `IndexLockedError` where another process writes.
        After `resume`, `journal` holds what the interrupted build recorded, or None where there was none;
        `finished_earlier` says that it had only its last step to go, which was done now.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise IndexExistsError(f"{path}: a file is there; an index is a folder")
        made_folder = not path.exists()
        _refuse_foreign(path, deep=False)
        had_lock = (path / layout.LOCK).exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
        except OSError as error:
            raise IndexNotFoundError(f"{path}: cannot write an index there ({error.strerror})") from None
        writer = cls(path, lock, made_folder, None)
        try:
            _refuse_foreign(path, deep=True)  # now that no other writer changes anything
            writer._enter(overwrite=overwrite, resume=resume)
        except BaseException as error:
            if isinstance(error, IndexExistsError) and not had_lock:
                (path / layout.LOCK).unlink(missing_ok=True)
            writer.close()
            raise
        return writer

    def _enter(self, *, overwrite: bool, resume: bool) -> None:
        pending = self._pending_manifest(drop_damaged=overwrite and not resume)
        published = pending is not None and newest_version(self.path) == pending.version
        if pending is not None and (resume or not overwrite or published):
            # Everything was ready when the writer died: only the last step is missing.
            self._publish(pending, checked=False)
            self.finished_earlier = True
        unfinished = (self.building / layout.JOURNAL).exists()
        if newest_version(self.path) is not None and not overwrite and not resume:
            begun = ", and with --resume goes on with the interrupted build that is there" if unfinished else ""
            raise IndexExistsError(
                f"{self.path}: an index is there already; --overwrite (overwrite=True) replaces it{begun}"
            )
        if unfinished and not resume and not overwrite:
            raise IndexExistsError(
                f"{self.path}: an interrupted build is there; continue it with --resume (resume=True), "
                "or start over with --overwrite (overwrite=True)"
            )
        if resume and unfinished:
            self.journal = _read_journal(self.building / layout.JOURNAL)
        else:
            self._clear_building()
        self.building.mkdir(exist_ok=True)

    @property
    def committed_version(self) -> int | None:
        """The newest version that readers see."""
        return newest_version(self.path)

    def save_journal(self, journal: dict[str, Any]) -> None:
        """Record how far the build has come, durably."""
        self.journal = journal
        signed = {**journal, "checksum": checksum(journal)}
        replace_synced(self.building / layout.JOURNAL, canonical_json(signed))

    def commit(self, codec: ResidualCodec, **keys: Any) -> Manifest:
        """Finish building/segment, write the codec and publish the next version.

        keys: what the manifest says beside files and counts (encoder, reranker, config, corpus). Only one
        version is kept: what it replaces is removed, which a reader that has it open does not notice.
        """
        segment, codec_folder = self.building / "segment", self.building / "codec"
        write_lists(segment, codec.num_centroids)
        # The build may have saved its codec already; writing it again would put it at risk of this process's death.
        if not codec_folder.exists():
            codec_folder.mkdir()
            codec.save(codec_folder)
            sync_files(codec_folder)
        sync_files(segment)
        version = (self.committed_version or 0) + 1
        files, codec_files = describe(segment), describe(codec_folder)
        digest = _name_of(files)
        manifest = Manifest.create(
            version=version,
            codec={
                "id": codec.codec_id,
                "folder": f"{version:08x}-{codec.codec_id[:16]}",
                "nbits": codec.nbits,
                "dimensions": codec.dimensions,
                "num_centroids": codec.num_centroids,
                "files": codec_files,
            },
            segments=[
                {
                    "id": f"{version:08x}-{digest}",
                    "passages": len(map_array(segment, layout.WINDOW_OFFSETS)) - 1,
                    "windows": len(map_array(segment, layout.TOKEN_OFFSETS)) - 1,
                    "tokens": len(map_array(segment, layout.CODES)),
                    "deleted": None,
                    "files": files,
                }
            ],
            **keys,
        )
        replace_synced(self.building / layout.PENDING_MANIFEST, manifest.to_bytes())
        self._publish(manifest)
        return manifest

    def _pending_manifest(self, *, drop_damaged: bool) -> Manifest | None:
        """What a build that died in its commit was about to publish. One that starts over has no use for it if it
        cannot be read."""
        path = self.building / layout.PENDING_MANIFEST
        if not path.exists():
            return None
        try:
            return Manifest.parse(path.read_bytes(), path)
        except (IndexDamagedError, IndexVersionError):
            if drop_damaged:
                return None
            raise

    def _publish(self, manifest: Manifest, *, checked: bool = True) -> None:
        """Move what a manifest names into place, then the manifest itself. May be repeated after any
        interruption. checked: whether the files are as the manifest has them, for sure."""
        versions = self.path / layout.VERSIONS
        final = versions / layout.manifest_name(manifest.version)
        sources, folders = (self.building / "codec", self.building / "segment"), list(manifest.folders(self.path))
        if not final.exists():  # nothing is moved, and nothing replaced, by what is not whole
            try:
                for source, (target, files) in zip(sources, folders, strict=True):
                    for name, facts in files.items():
                        file = (source if source.exists() else target) / name
                        if checked:
                            check_size(file, facts["bytes"])
                        else:
                            check_content(file, facts)
            except IndexDamagedError as error:
                raise IndexDamagedError(
                    f"{error}: the interrupted build is not whole; build again with overwrite"
                ) from None
        for source, (target, _) in zip(sources, folders, strict=True):
            target.parent.mkdir(exist_ok=True)
            if source.exists():
                if target.exists():
                    shutil.rmtree(target)  # of an attempt that no version refers to
                os.rename(source, target)
                sync_folder(target.parent)
            elif not target.exists():
                raise IndexDamagedError(f"{self.path}: the interrupted build lost {target}; build again with overwrite")
        versions.mkdir(exist_ok=True)
        sync_folder(self.path)
        temporary = self.building / "commit.json"
        write_synced(temporary, manifest.to_bytes())
        try:
            os.link(temporary, final)  # refuses an existing name, where a rename would drop another's commit
        except FileExistsError:
            if final.read_bytes() != manifest.to_bytes():
                raise IndexLockedError(
                    f"{self.path}: version {manifest.version} was committed by another writer"
                ) from None
        sync_folder(versions)
        self._remove_unreferenced(manifest)
        self._clear_building()

    def _clear_building(self) -> None:
        """Remove building/. What would let another writer go on goes first, the journal before the pending manifest:
        an interruption leaves files that nobody takes for a build."""
        if self.building.exists():
            for name in (layout.JOURNAL, layout.PENDING_MANIFEST):
                (self.building / name).unlink(missing_ok=True)
            sync_folder(self.building)
            shutil.rmtree(self.building)

    def _remove_unreferenced(self, manifest: Manifest) -> None:
        keep = {folder for folder, _ in manifest.folders(self.path)}
        for file in (self.path / layout.VERSIONS).iterdir():
            if file.name != layout.manifest_name(manifest.version):
                file.unlink()
        for parent in (layout.CODEC, layout.SEGMENTS):
            for folder in (self.path / parent).iterdir():
                if folder not in keep:
                    shutil.rmtree(folder)

    def discard(self) -> None:
        """Remove the unfinished build, and the folder itself where this writer made it and nothing else is in
        it."""
        self._clear_building()
        if self.committed_version is None:
            (self.path / layout.LOCK).unlink(missing_ok=True)
            if self._made_folder:
                self._remove_folder_if_empty()

    def _remove_folder_if_empty(self) -> None:
        try:
            self.path.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def close(self) -> None:
        """Release the lock."""
        if self._lock >= 0:
            if os.getpid() == self._process:  # closing alone would leave the lock with a process forked meanwhile
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refuse_foreign(path: Path, *, deep: bool) -> None:
    """Raise `IndexExistsError` for what no writer of an index makes: a build may remove what builds made, nothing
    else. deep: below the folder's own entries too."""
    for root, folders, files in os.walk(path):
        for names, ours in ((folders, layout.OUR_FOLDERS), (files, layout.OUR_FILES)):
            for name in sorted(names):
                entry = Path(root, name)
                parts = entry.relative_to(path).parts
                known = any(len(own) == len(parts) and all(map(re.fullmatch, own, parts)) for own in ours)
                if not known or entry.is_symlink():
                    raise IndexExistsError(
                        f"{path}: the folder holds other files ({entry.relative_to(path)}); an index needs a folder "
                        "of its own"
                    )
        if not deep:
            return


def _lock(path: Path) -> int:
    """The writer's lock. Raises `IndexLockedError`."""
    file = path / layout.LOCK
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise IndexLockedError(f"{path}: another process is writing this index; wait for it to end") from None
        # A writer that discarded its build has unlinked the file that we hold: take the new one.
        try:
            if os.stat(file).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            path.mkdir(parents=True, exist_ok=True)
        os.close(descriptor)


def _read_journal(path: Path) -> dict[str, Any]:
    try:
        journal = json.loads(path.read_bytes())
        stated = journal.pop("checksum", None) if isinstance(journal, dict) else None
        if stated is not None and stated == checksum(journal):
            return dict(journal)
    except (ValueError, RecursionError):
        pass  # no JSON, or none that has one spelling
    raise IndexDamagedError(f"{path}: the journal is damaged; start over with overwrite=True")


def _name_of(files: dict[str, dict[str, Any]]) -> str:
    return hashlib.sha256(canonical_json(files)).hexdigest()[:16]
