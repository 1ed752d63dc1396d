"""Every example on CPUs starts on the smallest machine that docs/quickstart-kind.md names: 4 processors and 8 GB."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from plimsoll.api.quantization_job import QuantizationJobSpec
from plimsoll.operator.plan.capacity import need_of
from tests.support.built import DIGEST, replica_set

ROOT = Path(__file__).parents[3]
#: What pods of ours may ask for: the cluster's own pods and the operator take about one processor and 2 GB.
PROCESSORS, MEMORY = 3000, 6 << 30
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def asked(document: dict[str, Any]) -> tuple[int, int]:
    """Thousandths of a processor and bytes of all replicas; (0, 0) of what runs on GPUs or is no model."""
    spec = document["spec"]
    if document["kind"] == "QuantizationJob":
        wish = QuantizationJobSpec.model_validate(spec)
        return 1000 * (wish.pod.cpu or 1), wish.accelerator.memory or 0
    if document["kind"] != "ModelDeployment" or spec["accelerator"]["resource"] != "cpu":
        return 0, 0
    if not spec["model"].get("source"):
        spec = {**spec, "model": {"source": "pvc://models/a"}}
    if spec["model"]["source"].startswith("oci://"):
        spec = {**spec, "model": {"source": f"oci://r.example/m@{DIGEST}"}}
    found = replica_set(spec)["spec"]
    need = need_of(found["template"])
    return found["replicas"] * need["cpu"], found["replicas"] * need["memory"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_fits_on_the_smallest_machine(path: Path) -> None:
    documents = [one for one in yaml.safe_load_all(path.read_text()) if one]
    if any("file://" in str(one) for one in documents):
        return  # for `plimsoll up`, which takes what the machine has
    needs = [asked(one) for one in documents]
    assert sum(cpu for cpu, _ in needs) <= PROCESSORS
    assert sum(memory for _, memory in needs) <= MEMORY


def test_the_quickstart_names_that_machine() -> None:
    assert "4 processors and 8 GB" in (ROOT / "docs" / "quickstart-kind.md").read_text()
