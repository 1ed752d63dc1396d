"""What each scenario measured, as a file and as a line of the table at the session's end."""

import json
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


class Result:
    """One scenario's figures; written when the test is over, whatever became of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.figures: dict[str, Any] = {}
        self.begun = time.monotonic()

    def note(self, **figures: Any) -> None:
        self.figures.update(figures)

    def write(self, outcome: str) -> dict[str, Any]:
        seconds = round(time.monotonic() - self.begun, 1)
        row = {"scenario": self.name, "outcome": outcome, "seconds": seconds, **self.figures}
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{self.name}.json").write_text(json.dumps(row, indent=2, ensure_ascii=False, default=str) + "\n")
        return row


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines: scenario, outcome, seconds, requests, failed, and what else the scenario said of itself."""
    lines = [f"{'scenario':<58} {'outcome':<8} {'seconds':>8} {'requests':>9} {'failed':>7}  notes"]
    for row in rows:
        traffic = row.get("traffic", {})
        lines.append(
            f"{row['scenario'][:58]:<58} {row['outcome']:<8} {row['seconds']:>8} {traffic.get('requests', ''):>9} "
            f"{traffic.get('failed', ''):>7}  {' '.join(str(row.get('words', '')).split())}"
        )
    return lines
