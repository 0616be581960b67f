"""The page is valid HTML, asks nothing of a network, stays small, and says what the figures say.

Also tests ``monitoring/_charts.py``, ``monitoring/_svg.py`` and ``monitoring/_tables.py``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptmix import Controller
from adaptmix.monitoring import RunRecord, page
from adaptmix.monitoring._record import Series
from adaptmix.monitoring._texts import Caution
from tests import runs
from tests.monitoring import made

pytest.importorskip("matplotlib")

_OVERALL = (
    *("predicted_gain", "predicted_gain_error", "predicted_gain_bias"),
    *("variance_ratio", "proposed_gain"),
)
HOSTILE = '<script>alert("x")</script> & co'


def large(K: int, *, updates: int, label: str = "large", mode: str = "adapt") -> RunRecord:
    """A run of many domains and updates, which wander."""
    generator = np.random.default_rng(len(label))
    steps = np.arange(1, updates + 1) * 10
    names = tuple(f"domain-{i}" for i in range(K))

    def wander(scale: float) -> dict[str, Series]:
        walk = 1.0 + 0.02 * generator.standard_normal((K, updates)).cumsum(1) / np.sqrt(updates)
        return {name: Series(steps, scale * walk[i]) for i, name in enumerate(names)}

    quantities = ("loss", "grad_std", "grad_std_error", "noise", "epochs", "samples_seen")
    own = "proposed_" if mode == "observe" else ""
    by_domain = {quantity: wander(1.0) for quantity in quantities}
    by_domain |= {f"{own}sampling_weight": wander(1.0 / K), f"{own}loss_weight": wander(1.0)}
    by_domain["heldout_loss"] = wander(2.0)
    overall = {name: Series(steps, 1.0 + 0.1 * generator.random(updates)) for name in _OVERALL}
    return RunRecord(
        label=label,
        folder=label,
        configuration={"mode": mode, "seed": 0, "importance": [1.0 / K] * K, "unit": "sample"},
        domains=names,
        by_domain=by_domain,
        overall=overall,
    )


def several() -> dict[str, list[RunRecord]]:
    """Runs of every kind that a page is made of."""
    hostile: dict[str, Any] = {
        "names": (HOSTILE, "b", "c"),
        "cautions": [Caution("NoiseWarning", HOSTILE)],
    }
    return {
        "alone": [made.record()],
        "observed": [made.record(mode="observe", noise=[1.0, 4.0, 2.0])],
        "without gradients": [made.record(gradients=False, losses=None)],
        "seeds": [
            *made.seeds("plain", [2.0, 2.2, 2.1], mode="observe"),
            *made.seeds("mixed", [1.9, 2.08, 2.02]),
        ],
        "harmful": [made.record("plain", mode="observe"), made.record("bad", losses=[2.5] * 3)],
        "three kinds": [
            made.record("plain", mode="observe"),
            made.record("one", losses=[1.9] * 3),
            made.record("two", losses=[1.8] * 3, configuration={"policy": "joint"}),
        ],
        "hostile": [made.record("p", mode="observe", **hostile), made.record("<i>", **hostile)],
        "many": [large(300, updates=40)],
    }


@pytest.mark.parametrize("kind", list(several()))
def test_pages_are_valid_and_ask_nothing_of_a_network(kind: str) -> None:
    text = page(several()[kind]).html
    assert not re.findall(r'(?:src|href|action)="(?!#|data:,)[^"]*"', text)
    assert not re.findall(r"url\((?!#)|@import|https?://|<script", text)
    identifiers = re.findall(r'\bid="([^"]*)"', text)
    assert len(set(identifiers)) == len(identifiers)
    for reference in re.findall(r'(?:url\(|href=")#([^")]+)', text):
        assert reference in identifiers
    html5lib = pytest.importorskip("html5lib")
    html5lib.HTMLParser(strict=True).parse(text)


def test_what_users_wrote_is_escaped() -> None:
    text = page(several()["hostile"]).html
    assert "&lt;script&gt;alert" in text
    assert "<i>" not in re.sub(r'<i class="\w+">', "", text)


def test_a_page_of_a_thousand_updates_and_twenty_domains_is_small() -> None:
    records = [
        large(20, updates=1000, label="plain", mode="observe"),
        large(20, updates=1000, label="mixed!"),
    ]
    assert len(page(records).html.encode()) < 2e6


def test_of_300_domains_the_top_movers_are_drawn_and_the_rest_is_folded() -> None:
    record = large(300, updates=40)
    share = record.by_domain["sampling_weight"]["domain-123"]
    record.by_domain["sampling_weight"]["domain-123"] = Series(  # type: ignore[index]
        share.steps, share.values * np.linspace(1.0, 30.0, share.values.size)
    )
    made_page = page([record])
    assert len(made_page.html.encode()) < 2e6
    legend = re.findall(r'<li><i class="d\d"></i>([^<]*)</li>', made_page.html)
    assert "domain-123" in legend
    assert len(set(legend)) == 10
    assert "290 more domains" in made_page.html
    assert made_page.html.count("domain-299</th>") == 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("alone", "Nothing to compare with"),
        ("observed", "Worth a try"),
        ("seeds", "It helped"),
        ("harmful", "It did harm"),
        ("three kinds", "The other runs"),
        ("observed", "Proposed share of a batch"),
        ("harmful", "Change of the held-out loss"),
        ("many", "290 more domains"),
    ],
)
def test_pages_say_what_the_figures_say(kind: str, words: str) -> None:
    assert words in page(several()[kind]).html


def test_the_table_has_a_column_for_whatever_was_recorded() -> None:
    record = made.record()
    plain = page([record]).html
    names = ("noise", "helps the target by", "loss of held-out rows", "own")
    assert not any(f">{name}</th>" in plain for name in names)
    figures = {
        tag: dict.fromkeys(record.domains, made.constant(value))
        for tag, value in (("noise", 2.0), ("helps", 0.125), ("holdout_loss", 1.5), (names[3], 7.0))
    }
    text = page([replace(record, by_domain={**record.by_domain, **figures})]).html
    for name, cell in zip(names, ("2.00", "12 %", "1.50", "7.00"), strict=True):
        assert f">{name}</th>" in text
        assert f"<td>{cell}</td>" in text


def test_a_run_whose_domains_help_each_other_shows_its_objective() -> None:
    record = made.record()
    assert "Share of the objective" not in page([record]).html
    figures = {
        tag: dict.fromkeys(record.domains, made.constant(0.25)) for tag in ("helps", "objective")
    }
    text = page([replace(record, by_domain={**record.by_domain, **figures})]).html
    assert "<b>Share of the objective</b>" in text
    assert "<b>75 %</b><span>of the gradient&#39;s error taken away by other domains</span>" in text
    assert "Times less noisy" not in text


def test_lines_to_paste_stand_below_the_advice_to_paste_them() -> None:
    steady = made.record(shares=[0.5, 0.3, 0.2])
    assert "Lines to paste" in page([steady]).html
    plain = made.record("plain", mode="observe")
    harmful = page([plain, made.record("bad", attained=0.25, losses=[2.5] * 3)]).html
    assert "Lines to paste" not in harmful
    assert "<b>4.00 ×</b><span>noisier than proportional</span>" in harmful


def test_without_held_out_losses_training_losses_are_shown() -> None:
    record = made.record(losses=None)
    assert "training loss" not in page([record]).html
    losses = {name: made.constant(1.25) for name in record.domains}
    record = replace(record, by_domain={**record.by_domain, "loss": losses})
    assert ">training loss, run</th>" in page([record]).html
    assert "training loss" not in page([made.record()]).html


def test_a_page_needs_a_run() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        page([])


def test_without_the_extra_the_way_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ImportError, match="pip install jinja2 matplotlib, or pip"):
        page([made.record()])


def test_notebooks_show_the_page_in_a_frame_of_its_own() -> None:
    frame = page([made.record()])._repr_html_()
    assert frame.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert frame.count("<") == 2


@pytest.mark.filterwarnings("ignore::adaptmix.errors.AdaptMixWarning")
def test_a_controller_writes_the_page_of_its_own_run(tmp_path: Path) -> None:
    net = runs.model()
    controller = Controller(runs.mixture(), policy="joint", update_every=4, lag=2, mode="observe")
    assert controller._repr_html_() is None
    with pytest.raises(ValueError, match=r"controller\.log_to\(directory\)"):
        controller.report(html=tmp_path / "page.html")
    controller.watch(net)
    controller.log_to(tmp_path / "run")
    runs.Run(controller, net, steps=30).train()
    table = controller.report(html=tmp_path / "deep" / "page.html")
    assert table == controller.report()
    text = (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    assert "the best shares would make the gradient" in text.lower()
    assert "NoiseWarning" in text
    frame = controller._repr_html_()
    assert frame is not None
    assert frame.startswith("<iframe")
