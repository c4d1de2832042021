"""A file that a command writes is the old one or the new one, whatever happens meanwhile."""

import os
import resource
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from megatron_seams.base.files import (
    files_below,
    files_named,
    locked,
    read_at_most,
    read_file,
    replace_text,
)
from seam_support import registry, run_python, unprivileged


def test_a_new_file_has_its_text_and_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "by_open").write_text("")
    replace_text(tmp_path / "new", "läßt\nsich lesen\r\n")
    assert (tmp_path / "new").read_bytes() == "läßt\nsich lesen\r\n".encode()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "by_open").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by_open", "new"]


def test_an_existing_file_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    file.chmod(0o640)
    replace_text(file, "new")
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_of_a_symbolic_link_the_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    link.symlink_to(target)
    for text in ("first", "second"):  # the target is not there at first
        replace_text(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["target"]


def test_what_is_no_regular_file_is_written_directly(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    replace_text(pipe, "through the pipe")
    reader.join(timeout=30)
    assert read == ["through the pipe"]
    assert pipe.is_fifo()
    with pytest.raises(IsADirectoryError):
        replace_text(tmp_path, "text")
    with pytest.raises(FileNotFoundError):
        replace_text(tmp_path / "nowhere" / "file", "text")


def test_a_file_that_may_not_be_written_is_not_replaced() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)  # anybody may replace the file by its folder's rights
        file = folder / "file"
        file.write_text("old")
        file.chmod(0o444)
        with unprivileged(), pytest.raises(PermissionError):
            replace_text(file, "new")
        assert file.read_text() == "old"
        assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_text_that_is_not_unicode_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(file, "\ud800")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


#: Longer than a write that one moment could hold.
_SIZE = 32 * 1024 * 1024

_REPLACE_FOREVER = f"""
import itertools, sys
from pathlib import Path
from megatron_seams.base.files import replace_text
for letter in itertools.cycle("ab"):
    replace_text(Path(sys.argv[1]), letter * {_SIZE})
    print(letter, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.1])
def test_a_process_that_is_killed_in_the_middle_of_a_write_leaves_a_whole_file(
    delay: float, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    command = [sys.executable, "-c", _REPLACE_FOREVER, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(2):  # by then it replaces a file that is as large
            assert child.stdout.readline()
        time.sleep(delay)
        child.kill()
    data = file.read_bytes()
    assert len(data) == _SIZE
    assert data in (b"a" * _SIZE, b"b" * _SIZE)


def test_a_process_that_is_killed_before_the_new_file_is_complete_leaves_the_old_one(
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from megatron_seams.base.files import replace_text\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "replace_text(Path(sys.argv[1]), 'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    assert done.returncode == -9
    assert file.read_text() == "old"


_FAIL = """
import resource, signal, sys
from pathlib import Path
from megatron_seams.base.files import replace_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    replace_text(Path(sys.argv[1]), "x" * 5000)
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("existing", [True, False])
def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(
    existing: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if existing:
        (folder / "file").write_text("old")
    done = run_python("-c", _FAIL, folder / "file", cwd=tmp_path)
    assert "File too large" in done.stdout
    assert {path.name: path.read_text() for path in folder.iterdir()} == (
        {"file": "old"} if existing else {}
    )


@pytest.mark.parametrize(
    "command",
    [("resolve", "MM", "--replace", "--receipt"), ("report", "MM", "--out")],
    ids=lambda command: str(command[0]),
)
def test_a_command_whose_write_fails_keeps_the_file_that_was_there(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python's own files of byte code would be cut off too, and fail every later import.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    file.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        done = registry(*command, file, cwd=tmp_path, code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in done.stderr
    assert {path.name: path.read_text() for path in file.parent.iterdir()} == {"file": "old"}


def test_a_lock_that_cannot_be_removed_is_given_up_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *, missing_ok: bool = False) -> None:
        del self, missing_ok
        raise PermissionError

    with (
        monkeypatch.context() as without,
        pytest.raises(PermissionError),
        locked(tmp_path / "file"),
    ):
        without.setattr(Path, "unlink", refuse)
    with locked(tmp_path / "file", seconds=0):
        pass


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_at_most(tmp_path / "file", 3) == b"123"
    assert read_at_most(tmp_path / "file", 9) == b"12345"
    assert read_at_most(tmp_path / "file", 0) == b""
    long = os.urandom(200_000)
    (tmp_path / "long").write_bytes(long)
    assert read_at_most(tmp_path / "long", 150_000) == long[:150_000]
    assert read_file(tmp_path / "long", len(long)) == long
    with pytest.raises(OSError, match="more than 199,999 bytes"):
        read_file(tmp_path / "long", len(long) - 1)
    with pytest.raises(FileNotFoundError):
        read_at_most(tmp_path / "nowhere", 1)


def test_the_files_of_a_tree_are_those_of_its_source(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "seam.toml").touch()
    root = tmp_path / "tree"
    sources = ("b/build/seam.toml", "b/other", "a/seam.toml", "seam.toml")
    others = (
        *(".hidden/seam.toml", "env/seam.toml", "a/__pycache__/seam.toml", "x.egg-info/seam.toml"),
        *("p/build/seam.toml", "p/dist/seam.toml", "site-packages/seam.toml"),
    )
    for name in (*sources, *others, "p/pyproject.toml", "env/pyvenv.cfg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "link").symlink_to(tmp_path / "outside")
    found = [file.relative_to(root).as_posix() for file in files_below(root)]
    assert found == ["seam.toml", "a/seam.toml", "b/other", "b/build/seam.toml", "p/pyproject.toml"]
    assert [file.relative_to(root).as_posix() for file in files_named(root, "seam.toml")] == [
        *("seam.toml", "a/seam.toml", "b/build/seam.toml")
    ]
