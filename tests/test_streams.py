"""Runs on streams train on the stated objective, on one process or two, and say what they need."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes
from torch.utils.data import IterableDataset

from adaptmix import Controller, Mixture, Schedule, policies
from adaptmix.errors import ProcessMismatchError, StateError
from tests import streams
from tests.helpers_data import SIGMAS
from tests.integrations.adaptmix_lightning import pl
from tests.leaving import leave

MEANS = {"a": 1.0, "b": -2.0, "c": 5.0}


class Numbers(IterableDataset[Any]):
    """Independent numbers of a domain, without end."""

    def __init__(self, mean: float, seed: int) -> None:
        self.mean, self.seed = mean, seed

    def __iter__(self) -> Iterator[float]:
        numbers = np.random.default_rng(self.seed)
        while True:
            yield from (self.mean + numbers.standard_normal(64)).tolist()


@pytest.mark.parametrize("counts", ["stratified", "multinomial"])
@pytest.mark.parametrize("unit", ["sample", "token"])
def test_gradients_are_unbiased_while_shares_move(counts: str, unit: str) -> None:
    """Over 800 steps the mean gradient is that of the objective; a false alarm in 1.5e5 seeds.

    Domain c is a dataset. Rows of a domain have one, two or four tokens with unit "token".
    """
    lengths = {"a": 1, "b": 2, "c": 4} if unit == "token" else dict.fromkeys(MEANS, 1)
    stored = np.random.default_rng(9).standard_normal(4000)
    parts = {name: Numbers(MEANS[name], place) for place, name in enumerate("ab")}
    importance = {"a": 0.5, "b": 0.2, "c": 0.3}
    mixture = Mixture(parts | {"c": (MEANS["c"] + stored).tolist()}, importance=importance)
    shares = Schedule({0: {"a": 0.2, "b": 0.4, "c": 0.4}, 800: {"a": 0.75, "b": 0.05, "c": 0.2}})
    controller = Controller(
        mixture,
        policy="static",
        sampling=shares,
        counts=counts,
        unit=unit,
        tokens_per_row={name: float(n) for name, n in lengths.items()},
        seed=1,
    )
    rows_of = torch.tensor([lengths[name] for name in "abc"])
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    slopes = []
    for batch, draw in controller.loader(7, steps=800).with_draws():
        mask = torch.arange(4) < rows_of[draw.domains][:, None]
        losses = (scale * batch.double())[:, None].expand(-1, 4)
        loss = controller.loss(losses, mask=mask, draw=draw)
        slopes.append(float(torch.autograd.grad(loss, scale)[0]))
        controller.step()
    expected = sum(importance[name] * MEANS[name] for name in "ab") + 0.3 * (5.0 + stored.mean())
    error = np.std(slopes) / np.sqrt(len(slopes))
    assert abs(np.mean(slopes) - expected) < SIGMAS * error
    assert error < 0.09 * abs(expected)


def test_held_out_rows_are_a_streams_first_and_are_never_trained_on() -> None:
    """Also in later epochs, whose order is another."""
    sources: dict[str, Any] = {"a": streams.shuffled(0, 60), "b": streams.Plain(1000, 40)}
    first = {streams.number_of(row) for row in Mixture(sources).sample(0, 10)} | set(
        range(1000, 1010)
    )
    controller = Controller(
        Mixture(sources), policy="static", holdout=10, update_every=2, measure_every=1
    )
    trained: Counter[int] = Counter()
    held: set[int] = set()
    scale = torch.ones((), requires_grad=True)
    loader = controller.loader(16, steps=30, collate_fn=streams.collate)
    for batch, draw in loader.with_draws():
        apart = torch.zeros(16, dtype=torch.bool) if draw.held is None else draw.held
        trained.update(batch[~apart].tolist())
        held.update(batch[apart].tolist())
        controller.loss(scale * batch, draw=draw).backward()
        controller.step()
    assert held == first
    assert not held & set(trained)
    assert len(trained) == 80  # all others, each several times over
    assert min(trained.values()) >= 3


def test_a_run_goes_on_with_another_mixture_of_streams() -> None:
    def parts(*names: str) -> Mixture:
        return Mixture({name: streams.Plain(1000 * ord(name), 500) for name in names})

    _, state = streams.train(parts("a", "b"), 12, stop=6)
    controller = Controller(parts("b", "c"), policy="static")
    controller.load_state_dict(state, changed=True)
    scale = torch.ones((), requires_grad=True)
    loader = controller.loader(8, steps=8, collate_fn=streams.collate)
    rows = []
    for batch in loader:
        rows += batch.tolist()
        controller.loss(scale * batch).backward()
        controller.step()
    starts = [min(row % 1000 for row in rows if row // 1000 == ord(name)) for name in "bc"]
    assert starts == [24, 0]  # b goes on, and c begins


def test_a_stream_comes_to_a_run_on_datasets() -> None:
    stored = {"a": list(range(50))}
    _, state = streams.train(Mixture(stored), 12, stop=6)
    controller = Controller(Mixture(stored | {"b": streams.Plain(1000, 50)}), policy="static")
    controller.load_state_dict(state, changed=True)
    batch = next(iter(controller.loader(8, steps=8, collate_fn=streams.collate)))
    assert min(row for row in batch.tolist() if row >= 1000) == 1000


def test_what_needs_the_number_of_rows_says_so() -> None:
    mixture = Mixture({"a": streams.Plain(0, 50), "b": streams.Plain(100, 50)})
    with pytest.raises(TypeError, match="Say how long to train in steps"):
        Controller(mixture).loader(8, epochs=2)
    with pytest.raises(ValueError, match="sizes must have the number of rows of stream 'a'"):
        Controller(mixture, max_epochs=4)
    with pytest.raises(ValueError, match="sizes must have the number of rows of stream 'b'"):
        Controller(mixture, when_exhausted="drop", max_epochs={"b": 0.5})
    with pytest.raises(ValueError, match="holdout must be a number of rows where the size"):
        Controller(mixture, holdout=0.1)
    with pytest.raises(ValueError, match=r"Mixture\(\.\.\., sizes="):
        next(iter(Controller(mixture, policy=policies.Temperature(0.5)).loader(8, steps=2)))
    given = Mixture({"a": streams.Plain(0, 50)}, sizes={"a": 50})
    assert len(Controller(given).loader(10, epochs=2)) == 5


def of_two(rank: int, folder: str) -> dict[str, Any]:
    """What one of two processes sees: split streams, whole ones with an end, and other rows."""
    split = {"a": streams.hugging_face(0, 96, shards=4), "c": list(range(2000, 2050))}
    whole = {"a": streams.Plain(0, 90), "b": streams.shuffled(1000, 37)}
    seen: dict[str, Any] = {}
    runs: list[tuple[str, Any, dict[str, Any]]] = [
        ("split", split, {}),
        ("whole", whole, {"when_exhausted": "drop"}),
    ]
    for name, parts, options in runs:
        seen[name], _ = streams.train(Mixture(parts), 12, **options)
        rows, state = streams.train(Mixture(parts), 12, stop=5, **options)
        more, _ = streams.train(Mixture(parts), 12, state=state, num_workers=1, **options)
        seen[f"{name} again"] = rows + more
    torch.save(state, f"{folder}/state.pt")
    try:
        streams.train(Mixture({"a": streams.Plain(1000 * rank, 90)}), 12)
    except ProcessMismatchError as error:
        seen["other rows"] = str(error)
    return seen


def worker(rank: int, port: int, folder: str) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save(of_two(rank, folder), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    leave()


def test_two_processes(tmp_path: Path) -> None:
    start_processes(worker, (pl.free_port(), str(tmp_path)), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for seen in (first, second):
        for name in ("split", "whole"):
            assert seen[name] == seen[f"{name} again"]
        assert "first_rows_of_stream" in seen["other rows"]
    assert not {row for row in streams.flat(first["split"]) if row < 96} & {
        row for row in streams.flat(second["split"]) if row < 96
    }
    # Together they have the rows of one process with their batches, and one goes on with theirs.
    parts = {"a": streams.Plain(0, 90), "b": streams.shuffled(1000, 37)}
    alone, _ = streams.train(Mixture(parts), 12, batch_size=16, when_exhausted="drop")
    assert [a + b for a, b in zip(first["whole"], second["whole"], strict=True)] == alone
    state = torch.load(tmp_path / "state.pt")
    rows, _ = streams.train(Mixture(parts), 12, state=state, batch_size=16, when_exhausted="drop")
    assert rows == alone[5:]


def test_a_stream_is_not_a_dataset_to_a_saved_run() -> None:
    rows = list(range(50))
    _, state = streams.train(Mixture({"a": rows, "b": streams.Plain(100, 50)}), 6, stop=3)
    with pytest.raises(StateError, match="sizes"):
        streams.train(Mixture({"a": rows, "b": list(range(50))}), 6, state=state)
