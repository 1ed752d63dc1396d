"""The CRD: what is checked in is what the types say, and the types and the API server's schema agree.

CEL needs an API server; e2e/test_crd.py asks one the same questions.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plimsoll.api.crd import DEPLOYMENTS, KINDS, Kind, as_yaml, definition, object_schema
from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.errors import SpecError
from plimsoll.api.manifest import parse_manifest
from plimsoll.api.reference import reference
from plimsoll.api.status import PHASES, known
from tests.support.manifests import ENDPOINTS, ON_CPU, ON_GPU, SOURCES, Wrong, manifest, wrong_manifests

SCHEMA = object_schema()
SPEC, STATUS = SCHEMA["properties"]["spec"], SCHEMA["properties"]["status"]


def test_what_is_checked_in_is_what_the_types_say(repository: Path) -> None:
    for kind in KINDS:
        for folder in ("crds", "charts/plimsoll/files/crds"):
            assert (repository / folder / kind.file).read_text() == as_yaml(definition(kind)), "run `make crds`"
        described = (repository / "docs" / kind.page).read_text()
        assert described == reference(definition(kind)), "run `make crds`"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_it_is_small(repository: Path, kind: Kind) -> None:
    assert (repository / "crds" / kind.file).stat().st_size < 72_000


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


@pytest.mark.parametrize("part", ["spec", "status"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_field_says_what_it_is_for_and_has_one_type(kind: Kind, part: str) -> None:
    for path, node in nodes(object_schema(kind)["properties"][part], part):
        assert not {"$ref", "anyOf", "oneOf", "allOf", "title", "const", "$defs"} & set(node), path
        assert ("type" in node) != bool(node.get("x-kubernetes-int-or-string")), path
        if not path.endswith("[]"):
            assert len(node.get("description", "")) > 8, path
        if node.get("type") == "array":
            assert node["x-kubernetes-list-type"] in ("atomic", "map"), path
        # What rules are applied to is bounded, so that the API server lets them in.
        if "x-kubernetes-validations" in node and node.get("type") == "string":
            assert node["maxLength"] <= 1024, path


def test_fields_of_one_machine_are_left_out_and_no_others() -> None:
    def fields(model: Any, path: str) -> Iterator[str]:
        for info in model.model_fields.values():
            yield f"{path}.{info.alias}"
            if info.alias == "affinity":
                # Taken whole, and checked by the operator: its schema would be longer than all others of a pod.
                continue
            for inner in (info.annotation, *getattr(info.annotation, "__args__", ())):
                if hasattr(inner, "model_fields"):
                    yield from fields(inner, f"{path}.{info.alias}")

    inside = {path.replace("[]", "") for path, _ in nodes(SPEC, "spec")} - {"spec"}
    assert set(fields(ModelDeploymentSpec, "spec")) ^ inside == {"spec.serving.apiKeysFile"}


def test_a_list_shows_ready_phase_since_load_place_and_reason() -> None:
    version = definition(DEPLOYMENTS)["spec"]["versions"][0]
    narrow = [column["name"] for column in version["additionalPrinterColumns"] if not column["priority"]]
    assert narrow == ["Ready", "Phase", "Since", "Load", "Endpoint", "Age", "Message"]
    assert version["subresources"]["scale"]["specReplicasPath"] == ".spec.replicas"


def filled(schema: dict[str, Any], value: Any) -> Any:
    """What the API server makes of `value`: defaults put in, unknown fields dropped."""
    if schema.get("type") == "object" and "properties" in schema and isinstance(value, dict):
        found = {}
        for name, inner in schema["properties"].items():
            if name in value or "default" in inner:
                found[name] = filled(inner, copy.deepcopy(value.get(name, inner.get("default"))))
        return found
    if schema.get("type") == "array" and isinstance(value, list):
        return [filled(schema["items"], item) for item in value]
    return value


@pytest.mark.parametrize("spec", [ON_CPU, ON_GPU, {"model": {"source": "pvc://a"}, "accelerator": {"resource": "cpu"}}])
def test_defaults_of_the_schema_are_the_defaults_of_the_types(spec: dict[str, Any]) -> None:
    stored = filled(SPEC, spec)
    assert {"ratio", "precision", "blockSize", "prefixCaching"} <= set(stored["kvCache"])
    assert ModelDeploymentSpec.model_validate(stored) == ModelDeploymentSpec.model_validate(spec)


def as_json_schema(node: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI v3 as the API server reads it, in the dialect of a validator that is at hand; rules are left out."""
    found = {
        key: node[key] for key in node if not key.startswith("x-") and key not in ("default", "description", "format")
    }
    if node.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    if found.pop("exclusiveMinimum", False):
        found["exclusiveMinimum"] = found.pop("minimum")
    if "properties" in node:
        found["properties"] = {name: as_json_schema(inner) for name, inner in node["properties"].items()}
        found["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            found[key] = as_json_schema(node[key])
    return found


VALIDATOR = jsonschema.Draft202012Validator(as_json_schema(SPEC))
WRONG = [wrong for wrong in wrong_manifests() if "spec" in wrong.manifest]


def schema_takes(spec: Any) -> bool:
    return VALIDATOR.is_valid(spec)


def types_take(spec: Any) -> bool:
    try:
        parse_manifest(manifest({}) | {"spec": spec})
    except SpecError:
        return False
    return True


#: Where the types take more: numbers of seconds, which the operator hands on to pods, and 1.5 in place of "1.5".
SECONDS = ("requestTimeout", "restartTimeout", "hangTimeout", "drainTimeout", "progressDeadline")
LENIENT = (*SECONDS, "memory", "cpu")


def more_than_the_schema(wrong: Wrong) -> bool:
    """Numbers of seconds, and paths of one machine."""
    return wrong.what == "a path of one machine" or (wrong.field.endswith(SECONDS) and wrong.what.endswith("'5'"))


def test_two_hundred_faults_are_there_to_be_found() -> None:
    assert len({wrong.what for wrong in wrong_manifests()}) >= 250


def test_what_the_schema_alone_refuses_the_types_refuse_too() -> None:
    refused = [wrong for wrong in WRONG if not schema_takes(wrong.manifest["spec"])]
    assert len(refused) > 200
    assert not [w.what for w in refused if types_take(w.manifest["spec"]) and not more_than_the_schema(w)]


@pytest.mark.parametrize("wrong", list(wrong_manifests()), ids=lambda wrong: wrong.what)
def test_the_types_name_the_field_of_each_fault(wrong: Wrong) -> None:
    if more_than_the_schema(wrong):
        parse_manifest(wrong.manifest)
        return
    with pytest.raises(SpecError) as caught:
        parse_manifest(wrong.manifest)
    assert wrong.field in str(caught.value)


NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
NUMBER = st.integers(1, 10**6)
QUANTITIES = st.one_of(
    NUMBER, st.builds("{}{}".format, NUMBER, st.sampled_from(["", "k", "M", "G", "Ki", "Mi", "Gi"])),
    st.builds("{}.{}{}".format, NUMBER, st.integers(0, 999), st.sampled_from(["M", "Mi", "Gi"])),
    st.builds("{}e{}".format, st.integers(1, 99), st.integers(0, 9)),
)  # fmt: skip
DURATIONS = st.one_of(
    st.builds("{}s".format, st.integers(1, 86400)), st.builds("{}m{}s".format, st.integers(1, 600), st.integers(0, 59)),
    st.builds("{}h".format, st.integers(1, 23)), st.just("1.5s"),
)  # fmt: skip
TEXTS = st.text("abcXYZ0189-._ /é", min_size=1, max_size=20)


def optional(**fields: Any) -> Any:
    return st.fixed_dictionaries({}, optional=fields)


MODELS = st.one_of(
    st.fixed_dictionaries(
        {"source": st.sampled_from([s for s in SOURCES if s.startswith(("hf:", "s3:"))])},
        optional={
            "servedName": TEXTS, "credentialsSecret": NAMES, "cacheClaim": NAMES,
            "endpoint": st.sampled_from(ENDPOINTS),
        },
    ),
    st.fixed_dictionaries({"source": st.sampled_from(SOURCES)}, optional={"servedName": TEXTS}),
)  # fmt: skip
TOLERATIONS = st.fixed_dictionaries(
    {"key": NAMES}, optional={"value": NAMES, "effect": st.sampled_from(["NoSchedule", "NoExecute"])}
)
SPECS = st.fixed_dictionaries(
    {
        "model": MODELS,
        "accelerator": st.fixed_dictionaries(
            {"resource": st.sampled_from(["cpu", "nvidia.com/gpu", "nvidia.com/mig-3g.40gb"])},
            optional={"memory": QUANTITIES},
        ),
    },
    optional={
        "parallelism": optional(tensor=st.just("auto") | st.integers(1, 64)),
        "precision": st.sampled_from(["auto", "bfloat16", "float16", "float32", "w8a16", "w4a16"]),
        "kvCache": optional(
            ratio=st.floats(1e-6, 1) | st.just(1),
            precision=st.sampled_from(["auto", "float", "int8", "int4"]),
            blockSize=st.sampled_from([16, 32, 64, 128, 256]),
            prefixCaching=st.booleans(),
        )
        | optional(hostMemory=QUANTITIES, prefixCaching=st.just(True)),
        "context": optional(
            maxLength=NUMBER,
            rope=st.fixed_dictionaries(
                {"type": st.sampled_from(["linear", "dynamic", "yarn", "llama3"]), "factor": st.floats(1, 1024)}
            ),
        ),
        "serving": optional(
            maxRunningRequests=NUMBER,
            maxBatchedTokens=st.integers(16, 1 << 20),
            maxQueuedRequests=NUMBER,
            maxQueuedTokens=NUMBER,
            requestTimeout=DURATIONS,
            restartTimeout=DURATIONS,
            schedulingPolicy=st.sampled_from(["fcfs", "priority"]),
            hangTimeout=DURATIONS,
            apiKeysSecret=NAMES,
        ),
        "replicas": st.integers(0, 1000),
        "rollout": optional(
            strategy=st.sampled_from(["Auto", "Surge", "Replace"]), drainTimeout=DURATIONS, progressDeadline=DURATIONS
        ),
        "pod": optional(
            cpu=st.integers(1, 1024) | st.sampled_from(["500m", "2.5", "4"]),
            image=st.sampled_from(["plimsoll.dev/runtime:dev", f"registry:5000/a@{'sha256:' + 'a' * 64}"]),
            nodeSelector=st.dictionaries(NAMES, NAMES, max_size=4),
            tolerations=st.lists(TOLERATIONS, max_size=3),
            priorityClassName=NAMES,
            serviceAccountName=NAMES,
            imagePullSecrets=st.lists(NAMES, max_size=3),
            labels=st.dictionaries(NAMES, NAMES, max_size=4),
            annotations=st.dictionaries(NAMES, TEXTS, max_size=4),
        ),
    },
)
JUNK = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.just([])
    | st.just({})
)


@settings(max_examples=80, deadline=None)
@given(SPECS)
def test_what_the_types_take_the_schema_takes(spec: dict[str, Any]) -> None:
    assert types_take(spec)
    assert schema_takes(spec)


@settings(max_examples=120, deadline=None)
@given(SPECS, st.data())
def test_a_spec_bent_anywhere_is_refused_by_the_types_where_the_schema_refuses_it(
    spec: dict[str, Any], data: st.DataObject
) -> None:
    places = [path for path in walk(spec) if path]
    place = data.draw(st.sampled_from(places))
    owner: Any = spec
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = data.draw(JUNK)
    value = owner[place[-1]]
    # To the types nothing is the default; the API server drops it only where there is a default.
    assume(value is not None and not (place[-1] in LENIENT and isinstance(value, int | float)))
    assert schema_takes(spec) or not types_take(spec)


def walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from walk(inner, (*path, key))


def test_a_status_keeps_only_what_the_crd_has() -> None:
    status = {
        "phase": "Loading", "elsewhere": 1, "observed": {"weights": 5, "cuda": 6}, "budget": {"rejected": []},
        "startup": {"load": {"bytes": 1, "speed": 2}}, "conditions": [{"type": "Ready", "colour": "red"}],
    }  # fmt: skip
    assert known(status) == {
        "phase": "Loading", "observed": {"weights": 5}, "budget": {"rejected": []},
        "startup": {"load": {"bytes": 1}}, "conditions": [{"type": "Ready"}],
    }  # fmt: skip
    assert tuple(STATUS["properties"]["phase"]["enum"]) == PHASES
