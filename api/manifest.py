"""From the text of a manifest to our kinds of object, or to every reason why not, each with its field."""

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from plimsoll.api.deployment import API_VERSION, KIND, ModelDeployment, ModelDeploymentSpec
from plimsoll.api.errors import SpecError, flag
from plimsoll.api.quantization_job import QUANTIZATION_KIND, QuantizationJob, QuantizationJobSpec
from plimsoll.api.status import models_in

_Whole = TypeVar("_Whole", ModelDeployment, QuantizationJob)
#: etcd takes no larger object.
MAX_BYTES = 1536 * 1024
_MOST_PROBLEMS = 20

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 2

#: Pydantic's words for types, in words for people.
_WORDS = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "is empty",
    "string_unicode": "must be text",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "invalid_key": "field names must be text",
}


def parse_manifest(
    manifest: str | Mapping[str, Any], filename: str = "manifest", name: str | None = None
) -> ModelDeployment:
    """The one deployment of a manifest, or the one of several that is called `name`.

    Args:
        manifest: YAML (or JSON) text, or what it holds.
        filename: where it comes from, for errors.

    Raises:
        SpecError: not YAML, not a ModelDeployment, or fields that are unknown, missing or wrong; all are listed.
    """
    found = parse_manifests(manifest, filename)
    if name is not None:
        found = [deployment for deployment in found if deployment.metadata.name == name]
        if not found:
            raise SpecError("no deployment of this name", field=filename, value=name)
    if len(found) != 1:
        names = ", ".join(deployment.metadata.name for deployment in found)
        raise SpecError(f"holds {len(found)} deployments ({names})", field=filename, fix="Say which one by its name")
    return found[0]


def parse_manifests(manifest: str | Mapping[str, Any], filename: str = "manifest") -> list[ModelDeployment]:
    """Every deployment of a manifest, in order; never none. QuantizationJobs beside them are checked and left out.

    Raises as `parse_manifest` does.
    """
    found = [one for one in parse_objects(manifest, filename) if isinstance(one, ModelDeployment)]
    if not found:
        raise SpecError("holds no ModelDeployment", field=filename, fix=f"Add one: kind: {KIND}")
    return found


def parse_objects(
    manifest: str | Mapping[str, Any], filename: str = "manifest"
) -> list[ModelDeployment | QuantizationJob]:
    """Every object of our kinds in a manifest, in order; never none. Others beside them are passed over.

    Raises:
        SpecError: not YAML, no object of ours, or fields that are unknown, missing or wrong; all are listed.
    """
    documents = [manifest] if isinstance(manifest, Mapping) else _load(manifest, filename)
    if not documents:
        raise SpecError("is empty", field=filename, fix=f"It must hold apiVersion: {API_VERSION}, kind: {KIND}")
    found: list[ModelDeployment | QuantizationJob] = []
    for index, document in enumerate(documents):
        if _is_of_others(document) and any(_is_ours(other) for other in documents):
            continue
        found.append(_object(document, f"{filename}[{index}]" if len(documents) > 1 else filename))
    for kind, called in ((ModelDeployment, "deployments"), (QuantizationJob, "quantization jobs")):
        names = [one.metadata.name for one in found if isinstance(one, kind)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise SpecError(f"two {called} have this name", field=filename, value=twice, fix="Rename one")
    return found


def _is_ours(document: Any) -> bool:
    return isinstance(document, Mapping) and document.get("kind") in (KIND, QUANTIZATION_KIND)


def _is_of_others(document: Any) -> bool:
    """A claim or a Secret beside the deployment that uses it; a misspelt deployment is not one."""
    if not isinstance(document, Mapping) or _is_ours(document):
        return False
    group = document.get("apiVersion")
    return isinstance(group, str) and isinstance(document.get("kind"), str) and not group.startswith("plimsoll.")


class _Loader(yaml.SafeLoader):
    """Plain data alone. A key that appears twice is a mistake, and merge keys can grow without bound."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"{_short.repr(key.value)} appears twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load(text: str, filename: str) -> list[Any]:
    if len(text) > MAX_BYTES:
        raise SpecError(
            f"is larger than {MAX_BYTES} bytes", field=filename, value=len(text), fix="Split it into several files"
        )
    try:
        return [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{filename}, line {mark.line + 1}, column {mark.column + 1}" if mark else filename
        raise SpecError(f"is not valid YAML: {error.problem}", field=where) from None
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise SpecError(f"is not valid YAML: {first}", field=filename) from None
    except RecursionError:
        raise SpecError("is nested too deeply", field=filename, fix="Write it flatter: no field is as deep") from None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # Scalars with a tag or a shape that PyYAML promises to read and then cannot: !!int "", 2024-13-99.
        raise SpecError(f"holds a value that cannot be read: {str(error)[:120]}", field=filename) from None


def _object(document: Any, where: str) -> ModelDeployment | QuantizationJob:
    if not isinstance(document, Mapping):
        raise SpecError("must be a mapping of fields", field=where, value=_Shown(document))
    job = document.get("kind") == QUANTIZATION_KIND
    for field, wanted in (("kind", QUANTIZATION_KIND if job else KIND), ("apiVersion", API_VERSION)):
        value = document.get(field)
        if value != wanted:
            found = _Shown(value) if field in document else None
            message = f"is not {wanted}" if field in document else "is missing"
            raise SpecError(message, field=f"{where}: {field}", value=found, fix=f"Write {field}: {wanted}")
    applied = _as_applied(document)
    return _validated(applied, where, QuantizationJob) if job else _validated(applied, where, ModelDeployment)


def parse_spec(spec: Mapping[str, Any]) -> ModelDeploymentSpec:
    """The spec of an object that the API server holds. Raises SpecError as `parse_manifest` does."""
    return _validated({**_BARE, "kind": KIND, "spec": dict(spec)}, "the deployment", ModelDeployment).spec


def parse_job_spec(spec: Mapping[str, Any]) -> QuantizationJobSpec:
    """The same of a QuantizationJob."""
    return _validated({**_BARE, "kind": QUANTIZATION_KIND, "spec": dict(spec)}, "the job", QuantizationJob).spec


_BARE = {"apiVersion": API_VERSION, "metadata": {"name": "x"}}


def _validated(document: dict[str, Any], where: str, kind: type[_Whole]) -> _Whole:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        problems = list(_problems(error, kind, document))
    if len(problems) == 1:
        problem = problems[0]
        raise SpecError(problem.message, field=problem.field, value=problem.value, fix=problem.fix)
    shown = "\n".join(f"  {problem}" for problem in problems[:_MOST_PROBLEMS])
    more = f"\n  and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
    raise SpecError(f"{len(problems)} fields are wrong:\n{shown}{more}", field=where)


#: What an API server writes into an object's metadata, or lets controllers write.
_OF_THE_SERVER = frozenset(
    "uid resourceVersion generation creationTimestamp deletionTimestamp deletionGracePeriodSeconds managedFields "
    "ownerReferences finalizers selfLink".split()
)


def _as_applied(document: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest in an object that `kubectl get -o yaml` printed."""
    found = dict(document)
    metadata = found.get("metadata")
    if isinstance(metadata, Mapping) and metadata.keys() & _OF_THE_SERVER:
        found["metadata"] = {key: value for key, value in metadata.items() if key not in _OF_THE_SERVER}
        found.pop("status", None)
    return found


def _problems(error: ValidationError, whole: type[BaseModel], document: Any) -> Iterator[SpecError]:
    for item in error.errors(include_url=False):
        place, kind, context = item["loc"], item["type"], item.get("ctx", {})
        field = _path(place)
        if kind == "extra_forbidden":
            known = _known_fields(place[:-1], whole)
            close = difflib.get_close_matches(str(place[-1])[:80], known, 1, cutoff=0.6)
            fix = f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known)}"
            yield SpecError("unknown field", field=field, fix=fix)
            continue
        if kind in _WORDS:
            message = _WORDS[kind]
        elif kind == "literal_error":
            message = f"must be {context['expected'].replace(chr(39), '')}"
        elif kind == "value_error":
            message = str(context["error"])
        elif kind.startswith(("greater_than", "less_than")):
            relation = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
            message = "must be " + " and ".join(f"{relation[k]} {v:g}" for k, v in context.items() if k in relation)
        else:
            message = item["msg"][:1].lower() + item["msg"][1:]
        written = item["input"] if kind == "invalid_key" else _written(document, place, item["input"])
        value = None if kind == "missing" else _Shown(written)
        yield SpecError(message, field=field, value=value)


def _written(document: Any, place: Sequence[int | str], otherwise: object) -> object:
    """What the manifest has at `place`: `64Mi`, where a rule over several fields knows it as 67108864."""
    for part in place:
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            return otherwise
    return document


class _Shown:
    """A value in an error: bounded, however large or nested the manifest made it."""

    def __init__(self, value: object) -> None:
        self._text = flag(value) if isinstance(value, bool) else _short.repr(value)

    def __repr__(self) -> str:
        return self._text


def _path(place: Sequence[int | str]) -> str:
    """As people and the API server write it: `spec.pod.tolerations[0].key`."""
    found = ""
    for part in place:
        if isinstance(part, int):
            found += f"[{part}]"
        elif part != "[key]":
            found += ("." if found else "") + (part if len(part) <= 80 else f"{part[:77]}...")
    return found


def _known_fields(place: Sequence[int | str], whole: type[BaseModel]) -> list[str]:
    """Names that the mapping at `place` of `whole` may have."""
    model = whole
    for part in place:
        if isinstance(part, int):
            continue
        field = next(info for info in model.model_fields.values() if info.alias == part)
        model = next(models_in(field.annotation))
    return [info.alias or name for name, info in model.model_fields.items()]
