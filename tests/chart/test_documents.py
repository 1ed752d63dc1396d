"""Examples are what the contract takes, and the documents know every word that a status can say."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from plimsoll.api.deployment import ModelDeployment
from plimsoll.api.errors import SourceChangedError
from plimsoll.api.manifest import parse_manifest, parse_objects
from plimsoll.operator import unreadable
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.settings import Settings
from plimsoll.runtime.messages import EngineStats
from plimsoll.runtime.server.errors import TYPES
from plimsoll.runtime.server.metrics import Metrics as ServerMetrics
from plimsoll.runtime.server.openapi import MEANINGS

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def deployments() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in EXAMPLES:
        for document in documents(path):
            if document.get("kind") == "ModelDeployment":
                yield path.name, document


@pytest.mark.parametrize(
    ("name", "manifest"), list(deployments()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_example_is_what_the_contract_takes(name: str, manifest: dict[str, Any]) -> None:
    parsed = parse_manifest(yaml.safe_dump(manifest), name)
    assert isinstance(parsed, ModelDeployment)


def test_manifests_that_a_page_prints_are_accepted_and_those_of_quantization_jobs_are_the_example() -> None:
    found = {
        page.name: [
            one
            for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)
            for one in yaml.safe_load_all(block)
        ]
        for page in PAGES
        if page.suffix == ".md"
    }
    example = documents(ROOT / "examples" / "quantize-and-serve.yaml")
    assert found["quantization-jobs.md"][: len(example)] == example
    every = [one for blocks in found.values() for one in blocks if isinstance(one, dict)]
    ours = [one for one in every if one.get("apiVersion") == "plimsoll.dev/v1alpha1"]
    assert len(ours) >= 2
    for manifest in ours:
        parse_objects(yaml.safe_dump(manifest), "page")


def test_every_example_belongs_to_a_kind_and_has_a_name() -> None:
    for path in EXAMPLES:
        for document in documents(path):
            if path.name != "health.yaml":  # a patch of Argo CD's configuration
                assert {"apiVersion", "kind", "metadata"} <= document.keys(), path
                assert document["metadata"]["name"], path


def constants(node: ast.AST) -> Iterator[str]:
    """Strings that an expression may turn out to be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from constants(node.body)
        yield from constants(node.orelse)


#: What takes a reason, and which of its arguments that is.
TAKES_REASON = {"Condition": 2, "Trouble": 1, "Failure": 0, "Run": 1, "Event": 1}
#: What a job's container says of its own end, beside what quantjob/failures.py has.
OF_THE_JOB = {"GateFailed"}
REASON_PAGES = ("reasons-spec.md", "reasons-pods.md")


def reasons(source: str) -> set[str]:
    """Reasons that this module of the operator can give."""
    found: set[str] = set()
    tree = ast.parse(source)
    named = {
        name.id: value.value
        for line in tree.body
        if isinstance(line, ast.Assign)
        for name, value in zip(*(getattr(side, "elts", [side]) for side in (line.targets[0], line.value)), strict=False)
        if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TAKES_REASON:
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            index = TAKES_REASON[node.func.id]
            value = node.args[index] if len(node.args) > index else given.get("reason")
            found |= set(constants(value)) if value is not None else set()
            found |= {named[value.id]} if isinstance(value, ast.Name) and value.id in named else set()
        elif isinstance(node, ast.ClassDef) and node.name == "Stage":
            values = [line.value for line in node.body if isinstance(line, ast.Assign)]
            found |= {text for value in values for text in constants(value)}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason":
            # A variable, or an error's own reason.
            found |= set(constants(node.value))
    return found


def documented() -> set[str]:
    """Reasons that a heading or a row of either page is about."""
    found: set[str] = set()
    for name in ("quantization-jobs.md", *REASON_PAGES):
        for line in (ROOT / "docs" / name).read_text().splitlines():
            if names := re.match(r"#{2,4} ((?:`\w+`(?:, )?)+)", line) or re.match(r"\| ((?:`\w+`(?:, )?)+) \|", line):
                found.update(re.findall(r"`(\w+)`", names[1]))
    return found


def ends_of_a_job() -> set[str]:
    """Reasons that a job's container gives for its end."""
    tree = ast.parse((ROOT / "quantjob" / "failures.py").read_text())
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "reason_of")
    found = {text for node in ast.walk(function) for text in constants(node)}
    return {text for text in found if re.fullmatch(r"[A-Z]\w+", text)}


def given(paths: Iterable[Path]) -> set[str]:
    """Reasons in the modules of the operator at `paths`, with those that they take from elsewhere."""
    found = {reason for path in paths for reason in reasons(path.read_text())}
    return found | {SourceChangedError.REASON, unreadable.REASON}


def test_every_reason_that_the_operator_gives_is_in_troubleshooting() -> None:
    every = given((ROOT / "operator").rglob("*.py")) | OF_THE_JOB | ends_of_a_job()
    assert {"DoesNotFit", "CrashLoop", "WaitingForDevice", "RolloutFailed", "InternalError", "Failed"} <= every
    written = documented()
    assert sorted(every - written) == []
    assert sorted(written - every) == []
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    index = page[page.index("## Reasons from A to Z") : page.index("## Requests")]
    assert re.findall(r"^\| \[?`(\w+)`", index, re.MULTILINE) == sorted(every, key=str.lower)


def test_each_reason_of_a_deployment_has_a_section_of_one_shape() -> None:
    of_jobs = {"job_admission.py", "job_run.py", "job_status.py"}
    every = given(path for path in (ROOT / "operator").rglob("*.py") if path.name not in of_jobs)
    shape = ["Message:", "Means:", "Do:", "Goes on by itself?"]
    found: list[str] = []
    for page in REASON_PAGES:
        sections = re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", (ROOT / "docs" / page).read_text(), re.M | re.S)
        names = [name for name, _ in sections]
        assert names == sorted(names, key=str.lower)
        assert [name for name, text in sections if re.findall(r"^- \*\*(.+?)\*\*", text, re.M) != shape] == []
        found += names
    assert sorted(found) == sorted(every)


def test_every_status_of_the_endpoint_is_in_troubleshooting() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    table = page[page.index("## Requests") : page.index("## Injected sidecars")]
    written = {
        int(status) for cell in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for status in cell.split(",")
    }
    assert written == {*TYPES, *map(int, MEANINGS)}
    codes = set()
    for path in (ROOT / "runtime" / "server").glob("*.py"):
        codes |= set(re.findall(r'code="(\w+)"', path.read_text()))
    assert len(codes) > 8
    assert sorted(codes - set(re.findall(r"`(\w+)`", table))) == []


def section(heading: str) -> str:
    """The text below one heading of docs/operator.md."""
    page = (ROOT / "docs" / "operator.md").read_text()
    return page.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def exported() -> set[str]:
    """Names of the operator's metrics."""
    return {f.name + ("_total" if f.type == "counter" else "") for f in Metrics().registry.collect()}


def test_every_setting_of_the_operator_is_documented() -> None:
    fields = [field.alias or name for name, field in Settings.model_fields.items()]
    assert re.findall(r"^\| `(\w+)`", section("Configuration"), re.MULTILINE) == fields


def test_every_metric_of_the_operator_is_documented() -> None:
    table = section("Metrics and alerts").split("Metrics of the operator:")[1]
    assert set(re.findall(r"`(plimsoll_\w+)`", table)) == exported()


def test_alerts_are_those_of_the_page_and_use_metrics_that_exist() -> None:
    (rule,) = documents(ROOT / "examples" / "alerts.yaml")
    alerts = {one["alert"]: one["expr"] for group in rule["spec"]["groups"] for one in group["rules"]}
    written = re.findall(r"^\| `(Plimsoll\w+)` \| `([^|]+)` \|", section("Metrics and alerts"), re.MULTILINE)
    assert dict(written) == alerts
    stats = EngineStats()
    of_pods = {metric.name for metric in ServerMetrics("m", lambda: stats, lambda: None, lambda: 0).registry.collect()}
    used = set(re.findall(r"plimsoll[:_][a-z_]+", " ".join(alerts.values())))
    assert used - exported() - of_pods - {f"{name}_total" for name in of_pods} == set()


PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *(ROOT / "charts").rglob("*.md"), *EXAMPLES])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"(?<![\w./-])((?:examples|charts|e2e|docs|crds)/[\w./-]*\w)", page.read_text())
    assert [name for name in named if not (ROOT / name).exists() and name != "e2e/results"] == []


def test_links_of_the_charts_readme_lead_somewhere() -> None:
    page = ROOT / "charts" / "plimsoll" / "README.md"
    links = re.findall(r"\]\(([^)#:]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_reasons_are_words_of_a_program() -> None:
    assert all(re.fullmatch(r"([A-Z][a-z0-9]*)+", reason) for reason in documented())
