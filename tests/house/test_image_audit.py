"""What `make audit` makes of pip-audit's answers: silence of the database is never taken for good news."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plimsoll.cli.image_audit import FIXABLE, NOT_AUDITED, ask, main, pins, verdict

ASKED = ["Example_Package==1.0", "torch==2.13.0"]


def answer(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def known(name: str, version: str, *findings: tuple[str, list[str]]) -> dict[str, Any]:
    vulns = [{"id": name, "fix_versions": fixed, "aliases": [], "description": ""} for name, fixed in findings]
    return {"name": name, "version": version, "vulns": vulns}


def test_packages_without_advisories_pass() -> None:
    found = verdict(ASKED, answer(known("example-package", "1.0"), known("torch", "2.13.0")))
    assert found.status == 0
    assert found.lines == ("2 packages, no known advisory",)


@pytest.mark.parametrize("output", ["", "Traceback", "[]", "{}", '{"dependencies": null}'])
def test_a_database_that_is_not_reached_is_no_good_news(output: str) -> None:
    found = verdict(ASKED, output, "…\nConnectionError: api.example\n")
    assert found.status == NOT_AUDITED
    assert "NOT AUDITED" in found.lines[0]


def test_a_mirror_that_knows_no_package_is_no_good_news() -> None:
    # pip-audit itself says "No known vulnerabilities found" here, and ends with 0.
    skipped = [{"name": one, "skip_reason": "Dependency not found on PyPI"} for one in ("example-package", "torch")]
    for packages in (skipped, [], [known("example-package", "1.0"), skipped[1]]):
        found = verdict(ASKED, answer(*packages))
        assert found.status == NOT_AUDITED
        assert "torch==2.13.0" in found.lines[0]


def test_findings_fail_where_a_version_fixes_them_and_are_shown_where_none_does() -> None:
    fixed = answer(known("example-package", "1.0", ("PYSEC-1", ["1.1"])), known("torch", "2.13.0", ("PYSEC-2", [])))
    found = verdict(ASKED, fixed)
    assert found.status == FIXABLE
    assert found.lines == ("example-package 1.0: PYSEC-1, fixed in 1.1", "torch 2.13.0: PYSEC-2, fixed in no version")
    assert verdict(ASKED[1:], answer(known("torch", "2.13.0", ("PYSEC-2", [])))).status == 0
    # A finding is not hidden by a package that was not audited.
    assert verdict([*ASKED, "third==1"], fixed).status == FIXABLE


def test_every_package_of_both_images_is_asked_about(repository: Path) -> None:
    for image in ("operator", "runtime"):
        text = (repository / f"requirements-{image}.txt").read_text()
        found = pins(text, (repository / "constraints.txt").read_text() if image == "runtime" else "")
        assert len(found) == text.count("==") + (image == "runtime")
        assert any(one.startswith("torch==") for one in found) == (image == "runtime")


def test_a_continuous_run_goes_on_where_the_database_is_not_reached(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = tmp_path / "pip-audit"
    tool.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('ConnectionError: no name api.example')\n")
    tool.chmod(0o755)
    monkeypatch.chdir(repository)
    assert main([str(tool)]) == NOT_AUDITED
    assert main([str(tool), "--if-reachable"]) == 0
    assert capsys.readouterr().out.count("NOT AUDITED") == 4
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(subprocess.TimeoutExpired("x", 1)))
    assert ask(str(tool), ASKED).status == NOT_AUDITED
