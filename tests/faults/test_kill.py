"""A real kill -9 at every kind of moment of a build, then --resume: the bytes of a build that nobody
killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_retrieval.errors import IndexDamagedError, IndexExistsError, IndexNotFoundError
from hybrid_retrieval.storage import Snapshot, verify
from tests.support import tree
from tests.test_builder import build

ROOT = Path(__file__).parents[2]

KILL = "lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)"

# Where the process dies, as Python that arranges it.
MOMENTS = {
    "while the corpus is read": f"PassageEncoder.encode = after(20, PassageEncoder.encode, {KILL})",
    "while the sample is encoded": (f"HashEncoder.encode_windows = after(2, HashEncoder.encode_windows, {KILL})"),
    "while a chunk is appended": (f"SegmentWriter.append_vectors = after(2, SegmentWriter.append_vectors, {KILL})"),
    "after a chunk, before its checkpoint": (f"SegmentWriter.checkpoint = after(3, SegmentWriter.checkpoint, {KILL})"),
    "before the journal of the codec": f"IndexWriter.save_journal = after(2, IndexWriter.save_journal, {KILL})",
    "before the journal of a chunk": f"IndexWriter.save_journal = after(4, IndexWriter.save_journal, {KILL})",
    "while the lists are written": f"writer.write_lists = {KILL}",
    "before the pending manifest": f"writer.describe = after(1, writer.describe, {KILL})",
    "before anything is moved": f"IndexWriter._publish = {KILL}",
    "between the two moves": f"writer.os = Proxy(os, rename=after(1, os.rename, {KILL}))",
    "after the moves, before the link": f"writer.os = Proxy(os, link={KILL})",
    "after the link": f"IndexWriter._remove_unreferenced = {KILL}",
}

PROGRAM = """
import os, signal, sys
from pathlib import Path
from hybrid_retrieval.storage import IndexWriter, PassageEncoder, SegmentWriter, writer
from tests.support import HashEncoder
from tests.test_builder import build

class Proxy:
    def __init__(self, module, **changes):
        self.module, self.changes = module, changes
    def __getattr__(self, name):
        return self.changes.get(name) or getattr(self.module, name)

def after(count, function, kill):
    calls = []
    def wrapped(*arguments, **options):
        calls.append(None)
        return (kill if len(calls) > count else function)(*arguments, **options)
    return wrapped

{moment}
build(Path(sys.argv[1]), {options})
"""


def build_and_die(path: Path, moment: str, options: str = "") -> None:
    code = PROGRAM.replace("{moment}", moment).replace("{options}", options)
    run = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "x"
    build(path)
    return tree(path)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_is_as_if_never_killed(tmp_path: Path, moment: str, whole: dict[str, bytes]) -> None:
    path = tmp_path / "x"
    build_and_die(path, MOMENTS[moment])
    if moment == "after the link":
        assert verify(path) == []  # the commit had happened
    else:
        with pytest.raises(IndexNotFoundError, match="--resume"):
            Snapshot.open(path)
    build(path, resume=True)
    assert tree(path) == whole
    assert verify(path) == []


@pytest.mark.parametrize("moment", ["between the two moves", "after the moves, before the link"])
def test_killed_in_the_commit_and_started_over(tmp_path: Path, moment: str, whole: dict[str, bytes]) -> None:
    path = tmp_path / "x"
    build_and_die(path, MOMENTS[moment])
    build(path, overwrite=True)
    assert tree(path) == whole


def test_a_commit_that_only_lacked_its_end_is_not_built_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path = tmp_path / "x"
    build_and_die(path, MOMENTS["between the two moves"])
    build(path, resume=True, overwrite=True)
    assert tree(path) == whole


def test_a_replacement_killed_in_its_commit_leaves_the_old_index(tmp_path: Path) -> None:
    path = tmp_path / "x"
    build(path)
    before = Snapshot.open(path).manifest
    build_and_die(path, MOMENTS["after the moves, before the link"], "overwrite=True")
    assert Snapshot.open(path).manifest == before
    assert verify(path) == []
    build(path, resume=True)
    assert Snapshot.open(path).manifest.version == 2
    assert verify(path) == []


REMOVING = f"""
def rmtree(folder, *_):
    (Path(folder) / "segment" / {{gone!r}}).unlink()
    ({KILL})()
writer.shutil = Proxy(writer.shutil, rmtree=rmtree)
"""


@pytest.mark.parametrize(
    ("moment", "gone"), [("before anything is moved", "codes.uint32"), ("before the journal of a chunk", "ids.uint8")]
)
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_killed_while_an_unfinished_build_is_removed(
    tmp_path: Path, moment: str, gone: str, options: dict[str, bool]
) -> None:
    """The old index stays, or a whole one takes its place: what is left over is not taken for a build."""
    path = tmp_path / "x"
    build(path)
    build_and_die(path, MOMENTS[moment], "overwrite=True")
    build_and_die(path, REMOVING.format(gone=gone), "overwrite=True")
    assert verify(path) == []
    try:
        build(path, **options)
    except IndexExistsError:
        assert not options
    assert verify(path) == []


def test_a_pending_version_that_is_not_whole_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    build(path)
    build_and_die(path, MOMENTS["before anything is moved"], "overwrite=True")
    (path / "building" / "segment" / "codes.uint32").unlink()
    for options in ({}, {"resume": True}):
        with pytest.raises(IndexDamagedError, match=r"codes.uint32: missing.*build again with overwrite"):
            build(path, **options)
        assert verify(path) == []
    build(path, overwrite=True)
    assert Snapshot.open(path).manifest.version == 2
    assert verify(path) == []
