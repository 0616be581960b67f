"""Random states that are put back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator


class Randomness:
    """The global random states of this process, and those of generators that an object holds.

    Args:
        owner: such as a collator, whose attributes may be generators.
    """

    def __init__(self, owner: object = None) -> None:
        held = getattr(owner, "__self__", owner)
        self._undo: list[Callable[[], Any]] = []
        self._keep(torch.set_rng_state, torch.get_rng_state())
        self._keep(np.random.set_state, np.random.get_state())  # noqa: NPY002
        self._keep(random.setstate, random.getstate())
        for part in getattr(held, "__dict__", {}).values():
            if isinstance(part, torch.Generator):
                self._keep(part.set_state, part.get_state())
            elif isinstance(part, np.random.Generator):
                self._keep(_set_bits, part, part.bit_generator.state)
            elif isinstance(part, random.Random):
                self._keep(part.setstate, part.getstate())

    def _keep(self, put_back: Callable[..., Any], *state: Any) -> None:
        self._undo.append(lambda: put_back(*state))

    def restore(self) -> None:
        """Put all of them back to where they were; may be called again."""
        for undo in self._undo:
            undo()


# What NumPy's functions draw from while a micro-batch is made. Exchanging it takes a
# microsecond, and saving NumPy's own state and putting it back a hundred.
_own_bits = np.random.MT19937(0)


@contextmanager
def seeded(seed: int | None, *key: int) -> Iterator[None]:
    """Let the global generators draw what follows from a seed and a key, and put them back.

    Python's and torch's go on where they were. NumPy's does, too, but for half a pair of normal
    numbers that its legacy functions may have kept.

    Args:
        seed: of the run; nothing is done when None.
        key: further numbers that choose what is drawn.
    """
    if seed is None:
        yield
        return
    words = blake2b(repr((seed, *key)).encode(), digest_size=20).digest()
    python, number, tensor = (
        int.from_bytes(part, "little") for part in (words[:8], words[8:12], words[12:])
    )
    bits, states = get_bit_generator(), (random.getstate(), torch.get_rng_state())
    set_bit_generator(_own_bits)
    try:
        random.seed(python)
        np.random.seed(number)  # noqa: NPY002
        torch.default_generator.manual_seed(tensor)  # and not those of devices
        yield
    finally:
        set_bit_generator(bits)
        random.setstate(states[0])
        torch.set_rng_state(states[1])


def _set_bits(generator: np.random.Generator, state: Any) -> None:
    generator.bit_generator.state = state


@contextmanager
def own_randomness(seed: int, owner: object = None) -> Iterator[None]:
    """Draw with fixed seeds, the same on every process, and leave the run's states as they were.

    Args:
        seed: of the global generators.
        owner: as for ``Randomness``.
    """
    states = Randomness(owner)
    try:
        torch.default_generator.manual_seed(seed)  # and not those of devices
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield
    finally:
        states.restore()
