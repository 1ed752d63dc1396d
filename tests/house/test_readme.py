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


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", re.sub(r"\]\([^)]*\)", "", heading.lower())).replace(" ", "-") for heading in headings
    }


def test_anchors_in_the_documents_are_headings(repository: Path) -> None:
    broken = []
    for page in [*repository.glob("*.md"), *(repository / "docs").glob("*.md"), *(repository / "charts").rglob("*.md")]:
        for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            if anchor not in anchors(page.parent / link if link else page):
                broken.append(f"{page.name}: {link}#{anchor}")
    assert not broken


def test_quantize_is_spelled_alike_everywhere(repository: Path) -> None:
    texts = [
        path for folder in ("api", "cli", "docs", "charts", "crds", "examples", "operator", "quantjob", "runtime")
        for path in (repository / folder).rglob("*") if path.suffix in (".py", ".md", ".yaml", ".c", ".h")
    ]  # fmt: skip
    assert len(texts) > 300
    assert not [path for path in [*texts, *repository.glob("*.md")] if "uantis" in path.read_text()]
