"""States survive a file that runs no code, and files are never half written."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adaptmix import checkpoint
from adaptmix.errors import StateError

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
    with pytest.raises(StateError, match="must be a file that adaptmix") as caught:
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
