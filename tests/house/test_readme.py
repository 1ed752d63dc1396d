"""What the README and the CI entry promise exists."""

import re
from pathlib import Path


def test_the_readmes_commands_are_targets_of_the_makefile(repository: Path) -> None:
    readme, makefile = (repository / "README.md").read_text(), (repository / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)$", readme, re.MULTILINE)) == {"quickstart", "test"}
    assert {"quickstart", "test", "lint", "bench"} <= targets


def test_the_ci_entry_runs_the_readmes_test_command(repository: Path) -> None:
    entry = repository / ".ci" / "run"
    assert "\nmake test\n" in entry.read_text()
    assert entry.stat().st_mode & 0o111


def test_links_in_the_documents_lead_somewhere(repository: Path) -> None:
    broken = []
    for page in [*repository.glob("*.md"), *(repository / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / link).exists():
                broken.append(f"{page.name}: {link}")
    assert not broken
