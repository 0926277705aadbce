from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.domain.totals import Totals
from actors.metrics_ports import Business, Delays, MailFigures, Metrics
from service.telemetry.exposition import COUNTERS, LEVELS, exposition

DEPLOY = Path(__file__).resolve().parents[2] / "ops" / "deploy"
NAME = re.compile(r"\bvestibule_[a-z_]+")
MATCHER = re.compile(r"(vestibule_[a-z_]+)\{([^}]*)\}")
GROUPED = re.compile(r"by \(([a-z, ]+)\)")


def exported() -> dict[str, set[str]]:
    """Return every exported sample's name with its labels."""
    counted = Totals("w")
    counted.count([("GET /", 200, 1.0)], 0)
    totals = counted.totals() | {f"{name}|x": 1 for name in COUNTERS}
    levels = {"w": {f"{name}|x": 1.0 for name in LEVELS}}
    mail = MailFigures(1, 1, 1, {"550": 1}, Delays(1, 1, 1, 1))
    text = exposition(Metrics(totals, levels, {}, Business(1, 1, 1, 1, 1), mail, 1), openmetrics=False).decode()
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, labels = line.partition("{")
            found.setdefault(name.split(" ")[0], set()).update(re.findall(r'([a-z_]+)="', labels))
    return found


def rules() -> list[dict[str, Any]]:
    """Return the alert rules."""
    groups = yaml.safe_load((DEPLOY / "prometheus-rules.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels."""
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
    return found


EXPRESSIONS = [
    *((rule["alert"], rule["expr"], " ".join(rule["annotations"].values())) for rule in rules()),
    *((panel["title"], each["expr"], each["legendFormat"]) for panel in panels() for each in panel["targets"]),
]


@pytest.mark.parametrize(("title", "expression", "text"), EXPRESSIONS)
def test_every_expression_asks_for_what_is_exported(title: str, expression: str, text: str) -> None:
    """Names, matched and grouped labels, and labels in texts exist in what the service exports."""
    known = exported()
    names = NAME.findall(expression)
    assert set(names) <= set(known), title
    assert names or expression.startswith("up{"), title
    for name, matchers in MATCHER.findall(expression):
        assert set(re.findall(r"([a-z_]+)[=!]", matchers)) <= known[name]
    labels = set().union(*(known[name] for name in names))
    for group in GROUPED.findall(expression):
        assert {label.strip() for label in group.split(",")} <= labels
    assert set(re.findall(r"\{\{ ?(?:\$labels\.)?([a-z_]+) ?\}\}", text)) <= labels


def test_every_exported_metric_but_sums_and_capacities_is_on_the_dashboard() -> None:
    """Nothing is exported that nobody would see."""
    shown = {name for panel in panels() for each in panel["targets"] for name in NAME.findall(each["expr"])}
    unseen = {name for name in exported() if not name.endswith(("_sum", "_count"))} - shown
    assert unseen == set()


def test_panels_neither_overlap_nor_leave_the_grid() -> None:
    """Each cell of the 24 columns belongs to one panel, and ids are unique."""
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels())
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_every_alert_has_a_severity_and_a_sentence() -> None:
    """Who is woken knows what is wrong."""
    for rule in rules():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"].endswith(".")
