"""States survive a file that runs no code, and files are never half written."""

from __future__ import annotations

import io
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adaptmix.errors import StateError
from adaptmix.state import _checkpoint as checkpoint

ARRAYS = hnp.arrays(
    dtype=st.sampled_from([np.float64, np.float32, np.int64, np.bool_]),
    shape=hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=5),
    ARRAYS,
    ARRAYS.map(torch.from_numpy),
)
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=3),
    ),
    max_leaves=8,
)


def same(left: Any, right: Any) -> bool:
    """Whether two states have the same types and bits; NaN is NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor):
        return same(left.numpy(), right.numpy())
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and same_bits(left, right)
    return bool(left == right) or (left != left and right != right)


def same_bits(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    return left.tobytes() == right.tobytes()


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(checkpoint.encode(state), buffer)
    buffer.seek(0)
    return checkpoint.decode(torch.load(buffer, weights_only=True))


@given(state=STATES)
def test_decode_undoes_encode(state: Any) -> None:
    assert same(checkpoint.decode(checkpoint.encode(state)), state)


@given(state=STATES)
def test_states_load_with_weights_only(state: Any) -> None:
    assert same(through_a_file(state), state)


@pytest.mark.parametrize(
    "scalar",
    [np.float64(1.5), np.float32(0.25), np.int64(-3), np.bool_(True), np.str_("a")],
    ids=lambda scalar: type(scalar).__name__,
)
def test_numpy_scalars_become_plain_ones(scalar: Any) -> None:
    assert same(through_a_file({"x": [scalar]}), {"x": [scalar.item()]})


def test_arrays_are_copied() -> None:
    array = np.zeros(2)
    state = checkpoint.encode({"x": array})
    decoded = checkpoint.decode(state)
    array += 1.0
    assert decoded["x"].tolist() == [0.0, 0.0]
    decoded["x"] += 2.0
    assert checkpoint.decode(state)["x"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("odd", [{1, 2}, object(), len, b"bytes", 1j])
def test_other_types_are_refused(odd: Any) -> None:
    with pytest.raises(TypeError, match=rf"^state must be made of .* got {type(odd).__name__}\.$"):
        checkpoint.encode({"x": [odd]})


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    state = {"x": np.arange(3.0), "n": 3}
    checkpoint.save(checkpoint.encode(state), path)
    checkpoint.save(checkpoint.encode(state), str(path))
    assert same(checkpoint.decode(checkpoint.load(path)), state)
    assert list(tmp_path.iterdir()) == [path]


def test_save_takes_a_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.save({"n": 1}, "state.pt")
    assert checkpoint.load("state.pt") == {"n": 1}


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save({"n": 1}, path)
    before = path.read_bytes()

    def fail(_state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(type(error)):
        checkpoint.save({"n": 2}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Dangerous:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code of the file was run')",))


def test_loading_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save(Dangerous(), path)
    with pytest.raises(StateError, match="must be a file that AdaptMix") as caught:
        checkpoint.load(path)
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)


def test_expect_takes_the_same_values() -> None:
    checkpoint.expect({"seed": 1, "names": ["a"], "more": 2}, seed=1, names=["a"])


def test_expect_names_what_is_missing() -> None:
    with pytest.raises(StateError, match=r"^seed must be in the state; it is missing\.$"):
        checkpoint.expect({"lag": 1, "unit": "token"}, seed=1)


def test_expect_names_both_values() -> None:
    with pytest.raises(StateError, match=r"^lag must be what the saved run had: 4; got 8\. Build"):
        checkpoint.expect({"lag": 4}, lag=8)


@pytest.mark.parametrize(
    "error", [AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError]
)
def test_damage_becomes_a_state_error(error: type[Exception]) -> None:
    with (
        pytest.raises(StateError, match=r"^state must be .* it is damaged: .*why.*older") as caught,
        checkpoint.damage(),
    ):
        raise error("why")
    assert isinstance(caught.value.__cause__, error)


@pytest.mark.parametrize("error", [StateError("as it is"), MemoryError("as it is")])
def test_other_errors_pass_through_damage(error: Exception) -> None:
    with pytest.raises(type(error), match=r"^as it is$") as caught, checkpoint.damage():
        raise error
    assert caught.value is error


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save({"n": 1}, path)
    usual = path.stat().st_mode
    path.chmod(0o640)
    checkpoint.save({"n": 2}, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert checkpoint.load(path) == {"n": 2}
    checkpoint.save({"n": 3}, tmp_path / "new.pt")
    assert (tmp_path / "new.pt").stat().st_mode == usual


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link(tmp_path: Path, relative: bool, there: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "state-3.pt"
    if there:
        checkpoint.save({"n": 1}, target)
    link = tmp_path / "latest.pt"
    link.symlink_to("elsewhere/state-3.pt" if relative else target)
    checkpoint.save({"n": 2}, link)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert checkpoint.load(link) == checkpoint.load(target) == {"n": 2}
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "elsewhere", target, link])


KILLED = """
import os, signal, sys, torch
from adaptmix.state import _checkpoint as checkpoint

def half(state, file):
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = half
checkpoint.save({"n": 2}, sys.argv[1])
"""


def test_a_kill_leaves_the_old_file_and_the_next_save_no_traces(tmp_path: Path) -> None:
    path = tmp_path / "state [1].pt"
    checkpoint.save({"n": 1}, path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert checkpoint.load(path) == {"n": 1}
    assert len(list(tmp_path.iterdir())) == 2
    checkpoint.save({"n": 3}, path)
    assert checkpoint.load(path) == {"n": 3}
    assert list(tmp_path.iterdir()) == [path]


def test_partial_files_of_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    host = socket.gethostname()
    others = [
        f".state.pt.{host}.{os.getppid()}",  # of a process that runs
        ".state.pt.another-host.1234567",  # which nothing is known of
        f".state.pt.old.{host}.1234567",  # of another file
        ".state.pt.backup",
    ]
    abandoned = [f".state.pt.{host}.{2**22 + 1}", ".state.pt.another-host.7"]
    for name in (*others, *abandoned):
        (tmp_path / name).touch()
    os.utime(tmp_path / abandoned[1], (0, 0))
    checkpoint.save({"n": 1}, path)
    assert {file.name for file in tmp_path.iterdir()} == {*others, "state.pt"}


def test_the_folder_is_synchronised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []
    sync = os.fsync

    def record(handle: int) -> None:
        kinds.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    monkeypatch.setattr(os, "fsync", record)
    checkpoint.save({"n": 1}, tmp_path / "state.pt")
    assert kinds == ["file", "folder"]


@pytest.mark.parametrize("content", [b"", b"PK", b"not a checkpoint at all", bytes(1000)])
def test_a_file_of_another_kind_is_a_state_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"state\.pt must be a file that AdaptMix wrote"):
        checkpoint.load(path)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "state.pt")
