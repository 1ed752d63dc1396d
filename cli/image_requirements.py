"""What the dependencies of an image are, a line each: `python -I cli/image_requirements.py operator|runtime`.

Torch is left out, which comes from an index of builds for one kind of device, and matplotlib, which no pod needs. What
torch itself needs is there, so that these packages have hashes and come from pip's own index.
"""

import sys
import tomllib
from pathlib import Path

EXTRAS = {"operator": ("operator",), "runtime": ("runtime", "quant")}
#: What torch needs and no other requirement brings; Dockerfile.runtime fails if torch needs more.
TORCH_NEEDS = {"operator": (), "runtime": ("networkx>=2.5.1", "setuptools>=77.0.3", "sympy>=1.13.3")}
LEFT_OUT = ("matplotlib", "plimsoll", "torch")


def requirements(image: str, project: Path = Path("pyproject.toml")) -> list[str]:
    """As pyproject.toml has them. Raises KeyError for an image that there is not."""
    project_table = tomllib.loads(project.read_text())["project"]
    lines = [*project_table["dependencies"]]
    for extra in EXTRAS[image]:
        lines += project_table["optional-dependencies"][extra]
    return [line for line in (*lines, *TORCH_NEEDS[image]) if not line.startswith(LEFT_OUT)]


if __name__ == "__main__":
    print(*requirements(sys.argv[1]), sep="\n")
