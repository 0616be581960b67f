"""The state of something made of parts: all of it is taken over, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Protocol

from adaptmix.state import _checkpoint as checkpoint
from adaptmix.state import _schema as schema


class Part(Protocol):
    """What has a state of its own.

    ``load_state_dict`` must replace what the object holds, and change nothing in place, so that a
    shallow copy can try it out.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain values, arrays and tensors."""

    def load_state_dict(self, state: Mapping[str, Any], *, name: str) -> None:
        """Take over a saved state, or raise a StateError and change nothing."""


def save_parts(
    identity: Mapping[str, Any], parts: Mapping[str, Part], **values: Any
) -> dict[str, Any]:
    """Return a sealed state.

    Args:
        identity: what must be the same when it is loaded.
        parts: what has a state of its own, by name.
        values: further plain values.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    return checkpoint.seal(checkpoint.encode({**identity, **values, **states}))


def open_parts(
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
    parts: Mapping[str, Part],
    *,
    names: Sequence[str] = (),
    **checks: schema.Check,
) -> dict[str, Any]:
    """Return what ``save_parts`` was given, after checking all but the parts' own states.

    Args:
        state: sealed.
        identity: as for ``save_parts``, now.
        parts: as for ``save_parts``.
        names: of the domains, for messages.
        checks: of each further value.

    Raises:
        StateError: a damaged state, or one of something else.
    """
    saved = checkpoint.unseal(state)
    checkpoint.expect(saved, names=names, **identity)
    fields = {
        **dict.fromkeys(identity, schema.anything),
        **dict.fromkeys(parts, schema.mapping),
        **checks,
    }
    return schema.read(saved, fields)


def load_parts(saved: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    """Let all parts take over their states; none does where one of them is refused.

    Raises:
        StateError: a part refuses its state.
    """
    with checkpoint.damage():
        for name, part in parts.items():
            copy(part).load_state_dict(saved[name], name=name)
        for name, part in parts.items():
            part.load_state_dict(saved[name], name=name)
