"""Domains for the quickstart: cut from what every CPython carries, or from the user's text files.

The built-in ones are mixed as instruction data is: two are supervised on whole rows, three on a
short answer at the row's end. Two of these ask the same question in the same words, but 70 % of
the training answers of one are wrong. Nothing is copied or stored: rows are made from the
installation that runs this.
"""

from __future__ import annotations

import encodings
import importlib
import pkgutil
import random
import sysconfig
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

Pair = tuple[bytes, bytes]  # question and answer
IGNORED = -100  # the label of a byte that is not supervised
_COMPLETE = "Use a complete CPython (python.org, uv, conda), or your own files: --data name=path."
# Scripts whose characters are named by numbers or sounds, which say nothing about them.
_NUMBERED = (
    *("ANATOLIAN", "BAMUM", "CJK", "CUNEIFORM", "EGYPTIAN", "HANGUL SYLLABLE", "KHITAN"),
    *("LINEAR", "NUSHU", "SIGNWRITING", "TANGUT", "VAI ", "YI "),
)


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Rows of bytes as (inputs, labels), int64 (T,) each; labels are IGNORED before the answer.

    Args:
        rows: (N, T + 1) uint8.
        supervised: (N,) how many bytes at the end of each row are to be predicted, at most T.
    """

    def __init__(self, rows: Tensor, supervised: Tensor) -> None:
        self.rows, self.supervised = rows, supervised

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.rows[index].long()
        labels = row[1:].clone()
        labels[: len(labels) - int(self.supervised[index])] = IGNORED
        return row[:-1], labels

    def take(self, index: slice | Sequence[int] | Tensor) -> Rows:
        """Return the rows at ``index``."""
        return Rows(self.rows[index], self.supervised[index])


@dataclass(frozen=True)
class Domain:
    """Training rows and held-out rows of one domain, none in both."""

    train: Rows
    heldout: Rows


def builtin_domains(
    *, rows: int = 10_000, heldout: int = 400, length: int = 64, wrong: float = 0.7, seed: int = 0
) -> dict[str, Domain]:
    """Return five domains of at most ``rows`` training rows of ``length`` bytes each.

    Held-out answers are all right; a share of ``wrong`` of the training answers of
    ``unicode_noisy`` is some other character's. A RuntimeError tells what this Python lacks.
    """
    rng = random.Random(seed)
    characters = _character_rows()
    rng.shuffle(characters)
    right, noisy = characters[::2], characters[1::2]
    noisy[heldout:] = _with_wrong_answers(noisy[heldout:], wrong, rng)
    every = {
        "library": _shuffled(_whole(_windows(_library(), length)), rng),
        "manual": _shuffled(_whole(_windows(_manual(), length)), rng),
        "codepages": _shuffled(_answered(_codepage_rows(), length), rng),
        "unicode": _answered(right, length),
        "unicode_noisy": _answered(noisy, length),
    }
    return {name: _split(name, part, rows, heldout) for name, part in every.items()}


def text_domains(
    paths: Mapping[str, str | Path], *, length: int = 64, heldout: int = 400
) -> dict[str, Domain]:
    """Return one domain per text file, supervised throughout; its last tenth is held out.

    Raises:
        ValueError: no file, or one that is missing, empty or too short.
    """
    if not paths:
        raise ValueError("data must name at least one file: --data name=path ...; got none.")
    domains = {}
    for name, path in paths.items():
        if not Path(path).is_file():
            raise ValueError(f"data {name!r} must be a text file; there is none at {path}.")
        text, least = Path(path).read_bytes(), 20 * (length + 1)
        if len(text) < least:
            rule = f"data {name!r} must have at least {least} bytes (20 rows of {length})"
            raise ValueError(f"{rule}; {path} has {len(text)}. Use a longer file.")
        cut = len(text) - len(text) // 10
        train, tail = _whole(_windows(text[:cut], length)), _whole(_windows(text[cut:], length))
        spread = torch.linspace(0, len(tail) - 1, min(heldout, len(tail))).long()
        domains[name] = Domain(train, tail.take(spread))
    return domains


def _library() -> bytes:
    """Return the source of the standard library's single-file modules."""
    root = Path(sysconfig.get_path("stdlib"))
    # _sysconfigdata holds paths of the machine that built this Python.
    files = (path for path in sorted(root.glob("*.py")) if not path.name.startswith("_sysconfig"))
    return b"\n".join(path.read_bytes() for path in files)


def _manual() -> bytes:
    """Return the prose of the language reference that help() shows."""
    try:
        topics: Mapping[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise RuntimeError(
            f"This Python lacks the module pydoc_data.topics. {_COMPLETE}"
        ) from error
    return "\n".join(text for _, text in sorted(topics.items())).encode()


def _codepage_rows() -> list[Pair]:
    """Return e.g. (b"cp850 DE LATIN CAPITAL LETTER I WITH GRAVE = ", b"00CC")."""
    pairs = []
    for module in pkgutil.iter_modules(encodings.__path__):
        if module.name in ("mbcs", "oem"):  # Windows only, and without a table
            continue
        codec = vars(importlib.import_module(f"encodings.{module.name}"))
        if codec.keys().isdisjoint({"decoding_table", "decoding_map"}):
            continue
        for byte in range(128, 256):  # below, almost every table is ASCII
            character = bytes([byte]).decode(module.name, errors="ignore")
            if len(character) == 1 and (title := unicodedata.name(character, "")):
                question = f"{module.name} {byte:02X} {title} = "
                pairs.append((question.encode(), f"{ord(character):04X}".encode()))
    return pairs


def _character_rows() -> list[Pair]:
    """Return names and general categories, e.g. (b"GREEK SMALL LETTER ALPHA: ", b"Ll")."""
    named = ((chr(code), unicodedata.name(chr(code), "")) for code in range(0x20000))
    return [
        (f"{title}: ".encode(), unicodedata.category(character).encode())
        for character, title in named
        if title and not title.startswith(_NUMBERED)
    ]


def _with_wrong_answers(pairs: list[Pair], share: float, rng: random.Random) -> list[Pair]:
    def wrong(right: bytes) -> bytes:
        while (answer := rng.choice(pairs)[1]) == right:
            pass
        return answer

    return [(q, wrong(a) if rng.random() < share else a) for q, a in pairs]


def _shuffled(part: Rows, rng: random.Random) -> Rows:
    return part.take(rng.sample(range(len(part)), len(part)))


def _windows(text: bytes, length: int) -> Tensor:
    """Return (N, length + 1) uint8; a window's last byte is the next one's first."""
    if len(text) <= length:
        return torch.empty(0, length + 1, dtype=torch.uint8)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).unfold(0, length + 1, length)


def _whole(windows: Tensor) -> Rows:
    return Rows(windows, torch.full((len(windows),), windows.shape[1] - 1))


def _answered(pairs: Sequence[Pair], length: int) -> Rows:
    """Return rows that end with their answer, padded or cut at the left."""
    rows = [
        (question + answer)[-length - 1 :].rjust(length + 1, b"\0") for question, answer in pairs
    ]
    flat = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8)
    return Rows(flat.view(-1, length + 1), torch.tensor([len(answer) for _, answer in pairs]))


def _split(name: str, part: Rows, rows: int, heldout: int) -> Domain:
    if len(part) <= heldout:
        found = f"{len(part)} rows for the domain {name!r}, of which {heldout} are held out"
        raise RuntimeError(f"This Python has {found}. {_COMPLETE}")
    return Domain(part.take(slice(heldout, heldout + rows)), part.take(slice(heldout)))
