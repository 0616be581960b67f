"""A state is taken whole or refused by the name of what is wrong, and then nothing has changed.

Also tests ``state/_parts.py`` and ``state/_schema.py``.
"""

from __future__ import annotations

import copy
import io
import pickle
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptmix import Controller, Mixture, policies
from adaptmix.errors import StateError
from adaptmix.policies import Policy
from adaptmix.state import _checkpoint as checkpoint
from tests import runs
from tests.state.test_checkpoint import same

pytestmark = [
    pytest.mark.filterwarnings("ignore::adaptmix.errors.NoiseWarning"),
    pytest.mark.filterwarnings("ignore::adaptmix.errors.RowLengthWarning"),
]

Path_ = tuple[Any, ...]


def trained(stop: int, policy: Policy | str = "joint", **options: Any) -> Controller:
    """A controller in the middle of a run, with something in every part of its state."""
    net = runs.model()
    controller = Controller(
        runs.mixture(), policy=policy, update_every=4, measure_every=2, lag=3, **options
    )
    controller.watch(net)
    run = runs.Run(controller, net, steps=30).train(2)
    controller.pin("a", sampling=(0.1, 0.9))
    controller.record_evaluation({"a": 1.0, "c": 2.0})
    run.train(stop)
    return controller


# In the step after an update is due, a window waits; in the one after it, sums do.
STATES = {
    "a window waits": lambda: trained(8),
    "sums wait": lambda: trained(11),
    "a policy chosen, with a memory": lambda: trained(12, policies.chain(
        policies.Shrink(), policies.Joint(bias="ignored", use_sizes=True), policies.TrustRegion(),
        policies.WarmUp(2),
    )),
}  # fmt: skip


def leaves(state: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The paths of everything in a state, dicts and lists among it."""
    if path:
        yield path
    if isinstance(state, (dict, list)):
        for key in list(state) if isinstance(state, dict) else range(len(state)):
            yield from leaves(state[key], (*path, key))


def damaged_value(value: Any, rng: random.Random) -> Any:
    """A value that is another one, or of another type, or the same by chance."""
    if isinstance(value, Tensor):
        changes: list[Callable[[Tensor], Any]] = [
            lambda t: t.to(torch.float16),
            lambda t: t.flatten()[:-1],
            lambda t: t.unsqueeze(0),
            lambda t: -t if t.is_floating_point() else ~t,
            lambda t: torch.full_like(t.double(), torch.nan),
            lambda t: torch.full_like(t.double(), 1e300),
            lambda t: t.tolist(),
            lambda t: t.flip(0) if t.ndim else t + 1,
            lambda _: None,
        ]
        return rng.choice(changes)(value)
    odd: list[Any] = [
        None,
        -1,
        0,
        1,
        2**62,
        -0.5,
        float("nan"),
        float("inf"),
        1e300,
        "",
        "x",
        [],
        {},
        True,
    ]
    if isinstance(value, str):
        odd += [value.upper(), value + " ", value[:-1]]
    if isinstance(value, (int, float)):
        odd += [float(value), -value, value + 1, str(value), bool(value)]
    if isinstance(value, list):
        odd += [value[1:], [*value, *value], dict(enumerate(value))]
    return rng.choice(odd)


def damage(state: dict[str, Any], path: Path_, rng: random.Random) -> dict[str, Any]:
    """A copy of a state in which one thing is not as it was."""
    mutant = copy.deepcopy(state)
    holder: Any = mutant
    for key in path[:-1]:
        holder = holder[key]
    key = path[-1]
    kind = rng.choice(["change", "change", "change", "delete", "rename", "add"])
    if kind == "delete":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
    elif kind == "add" and isinstance(holder, dict):
        holder["more"] = 1
    else:
        holder[key] = damaged_value(holder[key], rng)
    return mutant


def names_what_is_wrong(message: str, path: Path_) -> bool:
    """Whether a refusal speaks of a part of the state on the way to what was damaged."""
    if path == ("step_rows",) and "batch_size × processes × accumulation" in message:
        return True
    return any(str(key).rstrip("_") in message for key in (*path, "more", "checksums", "state"))


@pytest.mark.parametrize("name", STATES)
def test_no_damage_is_trained_on(name: str) -> None:
    state = STATES[name]().state_dict()
    target = STATES[name]()
    before = target.state_dict()
    assert same(before, state)
    rng = random.Random(7)
    paths = list(leaves(state))
    assert len(paths) > 100
    refused = 0
    for path in paths * 2:
        mutant = damage(state, path, rng)
        if same(mutant, state):
            continue
        with pytest.raises(StateError) as caught:
            target.load_state_dict(mutant)
        assert names_what_is_wrong(str(caught.value), path), (path, str(caught.value))
        assert len(str(caught.value)) < 400
        refused += 1
    assert refused > 200
    assert same(target.state_dict(), before)
    target.load_state_dict(state)
    assert same(target.state_dict(), before)


@pytest.mark.parametrize("name", STATES)
def test_no_damage_with_right_checksums_is_trained_on(name: str) -> None:
    """What the fields' own checks find, in a state that somebody else wrote and sealed."""
    state = STATES[name]().state_dict()
    target = STATES[name]()
    before = target.state_dict()
    rng = random.Random(8)
    outcomes = {"refused": 0, "taken": 0}
    parts = ("plan", "measurements", "guards", "step_rows", "warned")
    for path in [path for path in leaves(state) if path[0] in parts] * 2:
        mutant = damage(state, path, rng)
        content = {key: mutant[key] for key in mutant if key not in ("schema", "checksums")}
        if same(mutant, state) or (path[-1] == "__array__" and not is_tensor(mutant, path)):
            continue
        try:
            target.load_state_dict(checkpoint.seal(content))
        except StateError as error:
            assert names_what_is_wrong(str(error), path), (path, str(error))
            assert same(target.state_dict(), before)
            outcomes["refused"] += 1
        else:  # another state that a run could be in
            outcomes["taken"] += 1
            target.load_state_dict(state)
    assert outcomes["refused"] > 5 * outcomes["taken"]


def is_tensor(state: Any, path: Path_) -> bool:
    for key in path:
        if key not in state:
            return False
        state = state[key]
    return isinstance(state, Tensor)


def test_no_flipped_bit_is_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    target = trained(11)
    before = target.state_dict()
    checkpoint.save(before, path)
    whole = path.read_bytes()
    rng = random.Random(9)
    outcomes = {"refused": 0, "the same": 0}
    for trial in range(400):
        broken = bytearray(whole)
        if trial < 20:
            del broken[rng.randrange(len(broken)) :]
        else:
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            target.load_state_dict(checkpoint.load(path))
        except StateError:
            outcomes["refused"] += 1
        else:
            outcomes["the same"] += 1
        assert same(target.state_dict(), before)
    assert outcomes["refused"] > 100


def test_a_refused_state_leaves_the_run_where_it_is() -> None:
    """Everything in it is right but the last thing that is read."""
    target, other = trained(5), trained(11)
    before = target.state_dict()
    content = other.state_dict()
    content["guards"]["above"] = checkpoint.encode(torch.zeros(3).numpy())
    sealed = {key: content[key] for key in content if key not in ("schema", "checksums")}
    with pytest.raises(
        StateError, match=r"^guards\.above must be an array of int64; got .*float32"
    ):
        target.load_state_dict(checkpoint.seal(sealed))
    assert target.completed == 5
    assert same(target.state_dict(), before)


class Rated:
    """A user's policy, no dataclass."""

    requires = frozenset[str]()

    def __init__(self, rate: float, limit: Callable[[float], float] = abs) -> None:
        self.rate, self.limit = rate, limit

    def init(self, domains: Any, run: Any) -> Any:
        return policies.Static().init(domains, run)

    def update(self, stats: Any, state: Any) -> Any:
        return policies.Static().update(stats, state)


def limited(most: float) -> Callable[[float], float]:
    return lambda value: min(value, most)


TOKENS = {"a": 1.0, "b": 2.0, "c": 3.0}


@pytest.mark.parametrize(
    ("saved", "loading", "message"),
    [
        ({"policy": Rated(0.1)}, {"policy": Rated(0.2)}, r"policy\.rate .*: 0\.1; got 0\.2"),
        (
            {"policy": Rated(1, limited(2))},
            {"policy": Rated(1, limited(3))},
            r"policy\.limit\.clos",
        ),
        ({"policy": policies.Static(loss=TOKENS)}, {"policy": "static"}, r"policy\.loss must be"),
        (
            {"unit": "token", "tokens_per_row": TOKENS},
            {"unit": "token", "tokens_per_row": {**TOKENS, "b": 9.0}},
            r"tokens_per_row\['b'\] must be what the saved run had: 2\.0; got 9\.0\.",
        ),
        ({"seed_rows": False}, {}, "seed_rows must be what the saved run had: False; got True"),
        ({"mode": "adapt"}, {"mode": "observe"}, "mode must be .* 'adapt'; got 'observe'"),
    ],
)
def test_settings_are_part_of_what_a_run_is(
    saved: dict[str, Any], loading: dict[str, Any], message: str
) -> None:
    state = Controller(runs.mixture(), **saved).state_dict()
    same_again = Controller(runs.mixture(), **copy.copy(saved))
    same_again.load_state_dict(state)
    with pytest.raises(StateError, match=f"^{message}"):
        Controller(runs.mixture(), **loading).load_state_dict(state)


def test_a_policy_without_settings_that_are_plain_is_the_same_in_another_process() -> None:
    """No address in memory is part of it."""
    first = Controller(runs.mixture(), policy=Rated(0.1, limited(2.0)))
    second = Controller(runs.mixture(), policy=Rated(0.1, limited(2.0)))
    assert "0x" not in repr(first.state_dict()["policy"])
    second.load_state_dict(first.state_dict())


def many(names: list[str], sizes: list[int]) -> Mixture:
    return Mixture({name: range(size) for name, size in zip(names, sizes, strict=True)})


def test_messages_stay_short_with_many_domains() -> None:
    names = [f"domain number {i}" for i in range(2000)]
    state = Controller(many(names, [3] * 2000)).state_dict()
    other_names = [*names[:5], *(f"another {i}" for i in range(1995))]
    for mixture, start in (
        (many(other_names, [3] * 2000), "domains must be those of the saved run; got domains that"),
        (many(names[:-1], [3] * 1999), "domains must be those of the saved run; got domains that"),
        (many(names, [3] * 7 + [4] * 1993), "sizes['domain number 7'] must be what the saved run"),
    ):
        with pytest.raises(StateError) as caught:
            Controller(mixture).load_state_dict(state)
        assert str(caught.value).startswith(start)
        assert len(str(caught.value)) < 500
        assert re.search(r"\(199|19\d\d more|gone: 'domain number 1999'", str(caught.value))


@pytest.mark.parametrize("state", [None, [], "state", 3, {}, {"schema": 1}, {"schema": 2}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    controller = Controller(runs.mixture())
    with pytest.raises(StateError, match=r"^(state|schema|checksums) must be"):
        controller.load_state_dict(state)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_controllers_are_not_copied(duplicate: Callable[[Any], Any]) -> None:
    with pytest.raises(
        TypeError, match=r"^A Controller must not be copied or pickled: .*load_stat"
    ):
        duplicate(Controller(runs.mixture()))


def test_states_survive_torch_and_pickle() -> None:
    state = trained(11).state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    for again in (torch.load(buffer, weights_only=True), pickle.loads(pickle.dumps(state))):
        target = trained(11)
        target.load_state_dict(again)
        assert same(target.state_dict(), state)
