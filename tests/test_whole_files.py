"""Files written whole: links, pipes and failures."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hybrid_retrieval.whole_files import check_writable, is_stream, write_whole


def test_a_file_keeps_its_mode_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)  # as long as names may be: what is written beside it must not be longer
    write_whole(path, b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()
    path.chmod(0o640)
    write_whole(path, b"two")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o640)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for content in (b"one", b"two"):  # the first while it leads nowhere
        write_whole(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == content


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    check_writable(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, b"content")
    reader.join(timeout=10)
    assert found == [b"content"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_what_another_holds_open_is_added_to(tmp_path: Path) -> None:
    lines = ("from hybrid_retrieval.whole_files import write_whole", "print('one', flush=True)")
    write = "\n".join([*lines, "write_whole('/dev/stdout', b'two')"])
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", write], stdout=out, check=True, timeout=60)
    assert (tmp_path / "out").read_bytes() == b"one\ntwo"


def test_a_device_stays_one() -> None:
    assert is_stream(Path(os.devnull)), "or the next line would replace it"
    check_writable(os.devnull)
    write_whole(os.devnull, b"content")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise OSError("no")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", ["missing/file", "/proc/file"])
def test_a_place_that_cannot_be_written_is_known_before(tmp_path: Path, path: str) -> None:
    with pytest.raises(OSError):
        check_writable(tmp_path / path)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
