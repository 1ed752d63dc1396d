"""Images install what is written down, by version and by hash, on a base that can be named by digest."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from plimsoll.cli.image_requirements import EXTRAS, requirements

HASH = r"\n    --hash=sha256:[0-9a-f]{64}(?: \\)?"
HASHED = re.compile(rf"^([A-Za-z0-9._-]+)==(\S+)(?: ; [^\\]*)? \\$((?:{HASH})+)$", re.M)


def locked(repository: Path, image: str) -> dict[str, str]:
    """Versions by name. Every line of the file belongs to a version with its hashes."""
    text = (repository / f"requirements-{image}.txt").read_text()
    assert not HASHED.sub("", text).strip()
    return {canonicalize_name(name): version for name, version, _ in HASHED.findall(text)}


@pytest.mark.parametrize("image", EXTRAS)
def test_every_dependency_has_a_version_that_the_project_takes(repository: Path, image: str) -> None:
    found = locked(repository, image)
    tested = dict(re.findall(r"^(\w+)==(\S+)$", (repository / "constraints.txt").read_text(), re.M))
    for line in requirements(image, repository / "pyproject.toml"):
        wanted = Requirement(line)
        version = found[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), line
        assert tested.get(wanted.name, version) == version
    assert "torch" not in found


def test_what_torch_needs_on_a_cpu_has_hashes_too(repository: Path) -> None:
    found = locked(repository, "runtime")
    for line in importlib.metadata.requires("torch") or ():
        wanted = Requirement(line)
        only_cuda = wanted.name.startswith(("cuda", "nvidia", "triton"))
        if not only_cuda and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            assert wanted.specifier.contains(found[canonicalize_name(wanted.name)]), line
    dockerfile = (repository / "Dockerfile.runtime").read_text()
    assert dockerfile.index("--require-hashes") < dockerfile.index("--no-deps") < dockerfile.index("pip check")


@pytest.mark.parametrize("image", EXTRAS)
def test_an_image_checks_hashes_and_takes_its_base_by_digest(repository: Path, image: str) -> None:
    text = (repository / f"Dockerfile.{image}").read_text()
    assert f"pip install --require-hashes -r requirements-{image}.txt" in text
    assert set(re.findall(r"^FROM (\S+)", text, re.M)) == {"${BASE}"}
    (base,) = re.findall(r"^BASE_IMAGE \?= (\S+)$", (repository / "Makefile").read_text(), re.M)
    assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", base)
    assert re.search(r"^ARG BASE=(\S+)$", text, re.M).group(1) == base.partition("@")[0]  # type: ignore[union-attr]
