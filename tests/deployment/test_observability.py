"""Every metric and label that the board and the rules name is one that a server has."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
from curvserve_client import Client
from curvserve_client.errors import PROBLEMS
from prometheus_client.parser import text_string_to_metric_families

from curvserve.api_keys import new_key
from tests.deployment.files import COMPOSE, DOCKER, read
from tests.server.process import ROOT, serving
from tests.server.tiny import REFERENCE, batch

BOARD = json.loads((DOCKER / "grafana" / "dashboards" / "curvserve.json").read_text())
PROMETHEUS = DOCKER / "prometheus"
RULES = [rule for group in read(PROMETHEUS / "rules.yaml")["groups"] for rule in group["rules"]]
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]

SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds to what it scrapes."""

GRAFANAS = {"$__rate_interval": "5m"}


def expressions() -> Iterator[Any]:
    for rule in RULES:
        yield pytest.param(rule["expr"], id=rule.get("alert") or rule["record"])
    for panel in PANELS:
        for target in panel["targets"]:
            yield pytest.param(target["expr"], id=f"panel-{panel['id']}{target['refId']}")


@dataclass(frozen=True)
class Named:
    """A metric that an expression names, with the labels that it names of it."""

    name: str
    labels: dict[str, str]


def parsed(expression: str) -> tuple[list[Named], set[str]]:
    """Return the metrics of an expression, and the labels that it groups by."""
    for variable, value in GRAFANAS.items():
        expression = expression.replace(variable, value)
    selectors, grouped = [], set()

    def look(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = {m.name: m.value for m in node.matchers.matchers}
            selectors.append(Named(node.name, matchers))
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(expression), look)
    return selectors, grouped


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Sample -> labels, of a server that keeps its sessions and has taken a step."""
    folder = tmp_path_factory.mktemp("data")
    key, entry = new_key("board", ["train"])
    (folder / "keys.toml").write_text(entry.to_toml())
    kept = ("--data-dir", str(folder / "data"), "--api-keys", str(folder / "keys.toml"))
    with (
        serving("--model", REFERENCE, *kept, "--log-level", "error") as server,
        Client(server.address, api_key=key) as client,
    ):
        given = batch()
        client.session("tiny").step(given["inputs"], given["targets"])
        asked = {"authorization": f"Bearer {key}"}
        text = httpx.get(f"{server.address}/metrics", headers=asked).text
    found = {"up": set(SCRAPED)}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set(SCRAPED)).update(sample.labels)
    for name, expression in RECORDED.items():
        found[name] = parsed(expression)[1]
    return found


@pytest.mark.parametrize("expression", list(expressions()))
def test_what_an_expression_names_is_there(expression: str, exposed: dict[str, set[str]]) -> None:
    selectors, grouped = parsed(expression)
    assert selectors
    for named in selectors:
        assert named.name in exposed
        assert set(named.labels) <= exposed[named.name], named
    assert all(grouped <= exposed[named.name] for named in selectors)
    for named in selectors:
        codes = named.labels.get("code", "internal").split("|")
        assert set(codes) <= set(PROBLEMS)


def test_a_metric_that_is_misspelt_would_be_found(exposed: dict[str, set[str]]) -> None:
    (named,), grouped = parsed('sum by (sesion) (curvserve_step_total{model="a"})')
    assert named.name not in exposed and grouped == {"sesion"}


def test_the_documented_metrics_are_those_of_a_server(exposed: dict[str, set[str]]) -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    documented = dict(re.findall(r"^\| `(curvserve_\w+)` \|([^|]*)\|", page, re.MULTILINE))
    endings = ("_bucket", "_sum", "_count", "_created")
    own = {name for name in exposed if name.startswith("curvserve_") and ":" not in name}
    assert {name for name in own if not name.endswith(endings)} | {
        name.removesuffix("_bucket") for name in own if name.endswith("_bucket")
    } == set(documented)
    for name, labels in documented.items():
        there = exposed.get(name) or exposed[f"{name}_bucket"]
        assert there - SCRAPED - {"le"} == set(filter(None, labels.strip().split(", "))), name


@pytest.mark.parametrize("text", [*(a["annotations"]["summary"] for a in ALERTS.values())])
def test_a_summary_names_labels_that_its_alert_has(text: str, exposed: dict[str, set[str]]) -> None:
    (rule,) = [rule for rule in ALERTS.values() if rule["annotations"]["summary"] == text]
    selectors, grouped = parsed(rule["expr"])
    has = grouped or set.intersection(*(exposed[named.name] for named in selectors))
    assert set(re.findall(r"\$labels\.(\w+)", text)) <= has


def test_every_alert_has_a_severity_and_a_row_of_what_to_do() -> None:
    assert {rule["labels"]["severity"] for rule in ALERTS.values()} == {
        "critical", "warning", "info",
    }  # fmt: skip
    page = (ROOT / "docs" / "operating.md").read_text()
    told = set(re.findall(r"`(Curvserve\w+)`", page))
    assert told == set(ALERTS)


def test_every_problem_has_a_row_of_what_an_operator_does() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    _, _, incidents = page.partition("## When something is wrong")
    told = set(re.findall(r"`([a-z_]+)`", incidents))
    assert set(PROBLEMS) <= told


def test_the_boards_panels_are_whole_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    identifiers = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24 and not cells & taken
        taken |= cells
    variables = {variable["name"] for variable in BOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(BOARD["panels"])))
    assert used == variables == {"datasource", "instance", "session"}
    assert all(panel["description"] and panel["targets"] for panel in PANELS)


def test_the_boards_variables_are_had_from_metrics_that_there_are(
    exposed: dict[str, set[str]],
) -> None:
    queries = [v["query"]["query"] for v in BOARD["templating"]["list"] if v["type"] == "query"]
    for query in queries:
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
        assert match
        ((named,), _) = parsed(match[1])
        assert {match[2], *named.labels} <= exposed[named.name]


def test_prometheus_and_grafana_find_their_files() -> None:
    services = read(COMPOSE)["services"]
    mounted = {
        inside: DOCKER / outside
        for service in services.values()
        for outside, inside, *_ in (volume.split(":") for volume in service.get("volumes", []))
    }
    config = read(PROMETHEUS / "prometheus.yaml")
    assert all(mounted[file].exists() for file in config["rule_files"])
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "curvserve"
    assert job["static_configs"] == [{"targets": ["curvserve:8000"]}] and "curvserve" in services
    secret = job["authorization"]["credentials_file"].removeprefix("/run/secrets/")
    assert secret in services["prometheus"]["secrets"]
    provisioning = DOCKER / "grafana" / "provisioning"
    (provider,) = read(provisioning / "dashboards" / "curvserve.yaml")["providers"]
    assert (mounted[provider["options"]["path"]] / "curvserve.json").exists()
    (source,) = read(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool here")
@pytest.mark.parametrize(
    "arguments", [("check", "rules", "rules.yaml"), ("test", "rules", "tests.yaml")], ids=" ".join
)
def test_prometheus_itself_takes_the_rules_and_alerts_as_they_say(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
