"""Known advisories about what the images install: `python -I cli/image_audit.py PIP_AUDIT [--if-reachable]`.

pip-audit (the path PIP_AUDIT) asks the database of advisories. It also ends well where the database knows none of the
packages, as behind a mirror that serves files alone; a package without an answer counts as not audited here.

Exit status: 0 without findings that a newer version fixes; 1 with such findings; 3 where a package was not audited,
unless `--if-reachable` is given.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

IMAGES = ("operator", "runtime")
FIXABLE, NOT_AUDITED = 1, 3
LIMIT = 60
"""Seconds for the answers about one image."""
SHOWN = 5


class Verdict(NamedTuple):
    """What is known about the packages of one image."""

    lines: tuple[str, ...]
    """Sentences for the reader."""
    status: int
    """0, FIXABLE or NOT_AUDITED."""


def pins(requirements: str, constraints: str = "") -> list[str]:
    """`NAME==VERSION` of each line of a requirements file with hashes, and of torch from `constraints`."""
    found = re.findall(r"^([\w.-]+==[^\s;\\]+)", requirements, re.M)
    return found + re.findall(r"^(torch==\S+)", constraints, re.M)


def verdict(asked: Sequence[str], answer: str, error: str = "") -> Verdict:
    """Reads pip-audit's JSON about `asked`; `error` is what it wrote to standard error."""
    try:
        packages: list[dict[str, Any]] = list(json.loads(answer)["dependencies"])
    except (ValueError, KeyError, TypeError):
        last = error.strip().splitlines()[-1:] or ["pip-audit wrote no report"]
        return Verdict((f"NOT AUDITED: the database of advisories was not reached: {last[0]}",), NOT_AUDITED)
    lines, fixable = [], False
    for package in packages:
        for finding in package.get("vulns", []):
            fixed = ", ".join(finding["fix_versions"])
            fixable = fixable or bool(fixed)
            lines.append(f"{package['name']} {package['version']}: {finding['id']}, fixed in {fixed or 'no version'}")
    known = {f"{_normal(one['name'])}=={one['version']}" for one in packages if "vulns" in one}
    missing = [one for one in asked if f"{_normal(one.partition('==')[0])}=={one.partition('==')[2]}" not in known]
    if missing:
        some = ", ".join(missing[:SHOWN]) + (", …" if len(missing) > SHOWN else "")
        lines.append(
            f"NOT AUDITED: the database of advisories did not answer for {len(missing)} of {len(asked)}: {some}"
        )
    elif not lines:
        lines.append(f"{len(asked)} packages, no known advisory")
    return Verdict(tuple(lines), FIXABLE if fixable else NOT_AUDITED if missing else 0)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def ask(pip_audit: str, asked: Sequence[str]) -> Verdict:
    """Asks the database within LIMIT seconds. `PIP_AUDIT_VULNERABILITY_SERVICE=osv` names another one."""
    command = [pip_audit, "--no-deps", "--disable-pip", "-r", "/dev/stdin", "-f", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, input="\n".join(asked), capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return verdict(asked, "", f"no answer within {LIMIT} seconds")
    return verdict(asked, done.stdout, done.stderr)


def main(arguments: Sequence[str]) -> int:
    """Check each image's packages for known advisories; returns the exit status."""
    worst = 0
    for image in IMAGES:
        torch = Path("constraints.txt").read_text() if image == "runtime" else ""
        found = ask(arguments[0], pins(Path(f"requirements-{image}.txt").read_text(), torch))
        for line in found.lines:
            print(f"audit: image {image}: {line}")
        if found.status and worst != FIXABLE:
            worst = found.status
    if worst == NOT_AUDITED and "--if-reachable" in arguments:
        return 0
    if worst == FIXABLE:
        print("audit: take the fixed versions: make requirements")
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
