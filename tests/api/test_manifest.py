"""Manifests: defaults, and every way of being wrong said in plain words."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plimsoll.api.deployment import ModelDeployment
from plimsoll.api.errors import SpecError
from plimsoll.api.manifest import parse_manifest, parse_manifests

HEAD = """\
apiVersion: plimsoll.dev/v1alpha1
kind: ModelDeployment
metadata: {name: demo}
"""
SMALLEST = HEAD + "spec:\n  model: {source: 'hf://org/name@main'}\n  accelerator: {resource: cpu, memory: 1.5Gi}\n"


def refusal(text: str | dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        parse_manifest(text, "demo.yaml")
    return str(caught.value)


def test_the_smallest_manifest_gets_the_documented_defaults() -> None:
    found = parse_manifest(SMALLEST)
    spec = found.spec
    assert (found.served_name, found.metadata.namespace) == ("demo", "default")
    assert spec.accelerator.memory == 3 << 29
    assert (spec.precision, spec.parallelism.tensor, spec.kv_cache.ratio, spec.kv_cache.block_size) == (
        "auto", "auto", 0.8, 64,
    )  # fmt: skip
    assert spec.kv_cache.prefix_caching
    assert spec.context.max_length is None
    assert (spec.serving.request_timeout, spec.rollout.drain_timeout) == (600, 120)


def test_every_example_is_valid(repository: Path) -> None:
    files = sorted((repository / "examples").rglob("*.yaml"))
    deployments = [file for file in files if "\nkind: ModelDeployment\n" in file.read_text()]
    assert deployments
    for file in deployments:
        parse_manifests(file.read_text(), file.name)


def test_the_example_of_every_setting_has_every_setting(repository: Path) -> None:
    spec = yaml.safe_load((repository / "examples/settings.yaml").read_text())["spec"]

    def missing(model: Any, given: dict[str, Any], path: str) -> list[str]:
        found = []
        for info in model.model_fields.values():
            if info.alias not in given:
                found.append(f"{path}{info.alias}")
            elif isinstance(given[info.alias], dict) and info.alias != "affinity":  # that is Kubernetes' own
                kinds = [info.annotation, *getattr(info.annotation, "__args__", ())]
                inner = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
                found += missing(inner, given[info.alias], f"{path}{info.alias}.") if inner else []
        return found

    # Shown as comments: what stands in a source's place, goes with one machine alone, or with GPUs.
    shown = ["model.quantizationJob", "parallelism.topologyKey", "parallelism.exclusiveTopology"]
    shown += ["serving.torchRows", "serving.apiKeysFile"]
    shown += ["pod.securityContext.assignedByCluster", "pod.memory"]
    assert missing(ModelDeployment.model_fields["spec"].annotation, spec, "") == shown


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("  kvcache: {}", "spec.kvcache: unknown field. Did you mean kvCache?"),
        (
            "  pod: {affinity: {nodeAffinity: {preferred: []}}}",
            "nodeAffinity.preferred: unknown field. Known here: r",
        ),
        ("  kvCache: {precison: int8}", "spec.kvCache.precison: unknown field. Did you mean precision?"),
        ("  context: {rope: {kind: yarn, factor: 2}}", "spec.context.rope.kind: unknown field"),
        ("  quantizationJob: q", "Known here: model, accelerator, parallelism"),
        ("  kvCache: {ratio: 2}", "spec.kvCache.ratio: must be at most 1 (found 2)"),
        ("  kvCache: {ratio: 0}", "spec.kvCache.ratio: must be above 0 (found 0)"),
        ("  kvCache: {ratio: .nan}", "spec.kvCache.ratio: must be a finite number (found nan)"),
        ("  kvCache: {blockSize: 65}", "must be 16, 32, 64, 128 or 256 (found 65)"),
        (
            "  kvCache: {hostMemory: 64Mi, prefixCaching: false}",
            "spec.kvCache.hostMemory: goes with prefixCaching: true. Remove one of them (found '64Mi')",
        ),
        ("  serving: {torchRows: true}", "spec.serving.torchRows: must be a whole number (found true)"),
        ("  kvCache: {prefixCaching: 'yes'}", "must be true or false (found 'yes')"),
        ("  precision: fp8", "must be auto, bfloat16, float16, float32, w8a16 or w4a16 (found 'fp8')"),
        ("  parallelism: {tensor: 0}", "must be auto or a whole number from 1 to 64 (found 0)"),
        ("  parallelism: {tensor: true}", "spec.parallelism.tensor"),
        ("  context: {maxLength: '8'}", "spec.context.maxLength: must be a whole number (found '8')"),
        ("  context: {rope: {type: ntk, factor: 2}}", "must be linear, dynamic, yarn or llama3 (found 'ntk')"),
        ("  context: {rope: {type: yarn}}", "spec.context.rope.factor: is missing"),
        ("  rollout: {drainTimeout: 1x}", "must be a duration such as 120s, 2m or 1h30m, at most 24h (found '1x')"),
        ("  pod: {cpu: -1}", "spec.pod.cpu"),
        ("  serving: []", "spec.serving: must be a mapping (found [])"),
        ("  1: 2", "field names must be text (found 1)"),
        ("  precision: [", "line 8, column 1: is not valid YAML"),
        ("  pod: {cpu: 1, cpu: 2}", "line 7, column 17: is not valid YAML: 'cpu' appears twice"),
        ("  pod: {<<: {cpu: 1}}", "merge keys"),
        ("  pod: {cpu: !!int ''}", "cannot be read"),
        ("  pod: !!python/object:os.system x", "could not determine a constructor"),
        ("  pod: {cpu: 2024-99-99}", "cannot be read"),
    ],
)
def test_a_wrong_line_is_answered_with_field_value_and_fix(lines: str, said: str) -> None:
    assert said in refusal(f"{SMALLEST}{lines}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "demo.yaml: is empty"),
        ("---\n---\n", "is empty"),
        ("[]", "must be a mapping of fields (found [])"),
        ("just words", "must be a mapping"),
        (SMALLEST.replace("ModelDeployment", "Deployment"), "kind: is not ModelDeployment (found 'Deployment')"),
        (SMALLEST.replace("v1alpha1", "v1"), "Write apiVersion: plimsoll.dev/v1alpha1"),
        (SMALLEST.replace("kind: ModelDeployment\n", ""), "kind: is missing"),
        (SMALLEST.replace("name: demo", "name: De_mo"), "metadata.name"),
        (SMALLEST.replace("hf:", "ftp:"), "Write hf://ORG/NAME@REVISION, s3://BUCKET/PREFIX, pvc://CLAIM/PATH"),
        (SMALLEST.replace("1.5Gi", "lots"), "must be a quantity such as 24Gi"),
        (SMALLEST.replace("resource: cpu", "resource: gpu"), "must be cpu, nvidia.com/gpu or a MIG profile"),
        (HEAD, "spec: is missing"),
        ("\0", "is not valid YAML"),
        ("[" * 1200, "nested too deeply. Write it flatter"),
        ("a: &a [*a]\nkind: *a", "kind: is not ModelDeployment (found [[[...]]])"),
        ("x" * 2_000_000, "(found 2000000). Split it"),
    ],
)
def test_a_wrong_file_is_said_plainly(text: str, said: str) -> None:
    assert said in refusal(text)


def test_all_problems_are_listed_at_once() -> None:
    said = refusal(SMALLEST + "  kvCache: {ratio: 2, blockSize: 3}\n  precision: x\n")
    assert said.startswith("demo.yaml: 3 fields are wrong")
    assert all(field in said for field in ("spec.kvCache.ratio", "spec.kvCache.blockSize", "spec.precision"))


def test_a_field_with_nothing_under_it_is_the_default() -> None:
    assert parse_manifest(SMALLEST + "  kvCache:\n  context: {maxLength: }\n") == parse_manifest(SMALLEST)


def test_several_deployments_are_told_apart_by_name() -> None:
    both = SMALLEST + "---\n" + SMALLEST.replace("demo", "other")
    assert [found.metadata.name for found in parse_manifests(both)] == ["demo", "other"]
    assert parse_manifest(both, name="other").metadata.name == "other"
    assert "holds 2 deployments (demo, other)" in refusal(both)
    assert "two deployments have this name" in refusal(SMALLEST + "---\n" + SMALLEST)
    with pytest.raises(SpecError, match="no deployment of this name"):
        parse_manifest(both, name="third")


def test_what_a_cluster_prints_is_read_as_what_was_applied() -> None:
    printed = yaml.safe_load(SMALLEST)
    printed["metadata"] |= {
        "uid": "1",
        "resourceVersion": "7",
        "generation": 2,
        "managedFields": [{"manager": "kubectl"}],
    }
    printed["status"] = {"phase": "Ready"}
    assert parse_manifest(printed) == parse_manifest(SMALLEST)
    assert "status: unknown field" in refusal(SMALLEST + "status: {phase: Ready}\n")
    assert "metadata.uuid: unknown field" in refusal(SMALLEST.replace("{name: demo}", "{name: demo, uid: a, uuid: b}"))


def test_other_kinds_of_object_beside_a_deployment_are_passed_over() -> None:
    claim = "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: models}\n---\n"
    assert parse_manifest(claim + SMALLEST) == parse_manifest(SMALLEST)
    assert "kind: is not ModelDeployment (found 'PersistentVolumeClaim')" in refusal(claim)
    misspelt = SMALLEST.replace("kind: ModelDeployment", "kind: ModelDeploymnet")
    assert "kind: is not ModelDeployment (found 'ModelDeploymnet')" in refusal(f"{SMALLEST}---\n{misspelt}")


def test_a_place_in_a_list_is_written_as_the_api_server_writes_it() -> None:
    lines = "  pod: {tolerations: [{key: a}, {kee: b, operator: Exists}]}\n"
    assert "spec.pod.tolerations[1].kee: unknown field. Did you mean key?" in refusal(SMALLEST + lines)


def test_aliases_that_multiply_cost_nothing() -> None:
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert "metadata.labels.x: must be text" in refusal(
        "a0: &a0 x\n" + levels + SMALLEST.replace("{name: demo}", "{name: demo, labels: {x: *a11}}")
    )


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        [found for key, item in value.items() for found in paths(item, (*path, key))] if isinstance(value, dict) else []
    )
    return [path, *inner]


def parse_or_refuse(manifest: Any) -> None:
    said = "parsed"
    try:
        parse_manifest(manifest)
    except SpecError as error:
        said = str(error)
    assert 0 < len(said) < 10_000


@pytest.fixture(scope="module")
def full(repository: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((repository / "examples/settings.yaml").read_text())
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damaged_manifest_gets_more_than_a_refusal(full: dict[str, Any], data: st.DataObject) -> None:
    manifest = copy.deepcopy(full)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(paths(manifest)[1:] or [("spec",)]))
        owner = manifest
        for key in path[:-1]:
            owner = owner[key]
        action = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "remove":
            owner.pop(path[-1], None)
        else:
            owner[path[-1] if action == "replace" else data.draw(st.text(max_size=12))] = data.draw(JUNK)
    parse_or_refuse(manifest)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_damaged_text_gets_more_than_a_refusal(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(SMALLEST)))
    stop = data.draw(st.integers(start, min(len(SMALLEST), start + 10)))
    text = (
        SMALLEST[:start] + data.draw(st.text("{}[]:,&*!|>-?'\"%@`# \n\tab01~<\0\ud800é", max_size=8)) + SMALLEST[stop:]
    )
    parse_or_refuse(text)
