"""The picture in a file."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as Tree

import pytest

from adaptmix.monitoring import save_picture
from tests.monitoring import made

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("mode", ["adapt", "observe"])
def test_domains_are_named_and_proposed_weights_are_called_so(mode: str, tmp_path: Path) -> None:
    record = made.record(mode=mode, weights=[0.5, 1.0, 1.5])
    save_picture([record, made.record(mode=mode, seed=1)], tmp_path / "folder" / "a.svg")
    text = " ".join(Tree.parse(tmp_path / "folder" / "a.svg").getroot().itertext())
    for words in ("Share of a batch", "Loss weight", "Held-out loss", *record.domains, "step"):
        assert words in text
    assert ("Share of a batch, proposed" in text) == (mode == "observe")
    assert "Held-out loss, proposed" not in text


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="records must hold at least one run; got none"):
        save_picture([], tmp_path / "a.png")
