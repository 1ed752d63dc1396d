"""Text of strangers is never read as markup: every console and every column of a bar says so where it is made."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("api", "benchmarks", "checkpoint", "cli", "operator", "quantjob", "runtime")
#: What Rich makes that reads markup unless it is given these.
LITERAL = {"Console": {"markup", "emoji"}, "TextColumn": {"markup"}}


def makers(source: str) -> list[tuple[int, str]]:
    """(line, problem) of each call that would read markup."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        off = {key for key, value in given.items() if isinstance(value, ast.Constant) and value.value is False}
        if missing := LITERAL.get(name, set()) - off:
            found.append((node.lineno, f"{name} without {', '.join(sorted(f'{one}=False' for one in missing))}"))
        if name in ("print", "log", "rule", "from_markup") and ("markup" in given or name == "from_markup"):
            found.append((node.lineno, f"{name} reads markup"))
    return found


def test_no_console_reads_markup() -> None:
    files = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
    found = [f"{path.relative_to(ROOT)}:{line}: {why}" for path in files for line, why in makers(path.read_text())]
    assert not found, "\n".join(found)


def test_the_rule_sees_what_it_forbids() -> None:
    assert makers("Console()") == [(1, "Console without emoji=False, markup=False")]
    assert makers("rich.console.Console(markup=False)") == [(1, "Console without emoji=False")]
    assert makers("TextColumn('{task.description}')") == [(1, "TextColumn without markup=False")]
    assert makers("screen.print(x, markup=True)") == [(1, "print reads markup")]
    assert makers("Console(markup=False, emoji=False).print(x)") == []
