"""What a run tells of itself, whoever draws its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from adaptmix import Controller, Mixture, policies
from tests.elsewhere import made, train


def test_the_report_shows_such_runs(tmp_path: Any) -> None:
    controller, listener = made(6, steps=12, policy="erma", update_every=2)
    controller.log_to(tmp_path)
    train(controller, listener, np.random.default_rng(0))
    assert "'b'" not in controller.report(html=tmp_path / "page.html")
    assert "Trained on the sum over domains" in controller.report()
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_a_report_ends_with_the_same_lines_where_they_are_asked_for() -> None:
    mixture = Mixture({"web": [0] * 6, "code": [1] * 4}, importance={"web": 1, "code": 3})
    policy = policies.Static({"web": 0.5, "code": 0.5}, {"web": 2.0, "code": 2 / 3})
    controller = Controller(mixture, policy=policy, unit="token")
    controller.loader(2, steps=3)
    text = controller.report(lines=True)
    assert text.startswith(controller.report() + "\n\nLines to paste, as weights are now. ")
    assert "in tokens" in text
    streams = yaml.safe_load(text.split("# LLM Foundry, Streaming\n")[1].split("#")[0])["streams"]
    # The objective: importance .25 and .75, times 2 and 2/3.
    assert streams == {"web": {"proportion": 0.5}, "code": {"proportion": 0.5}}
    assert 'policy=policies.Static(\n    sampling={"web": 0.5, "code": 0.5}' in text
