"""A model over several ranks of one pod: it answers as on one, shows each rank, and comes back when one dies."""

import httpx
import openai

from e2e.cluster import SERVING, eventually
from e2e.scene import Scene

RANKS = 3
PROMPTS = (
    "The capital of France is", "Once upon a time, in a small village by the sea,", "def fibonacci(n):",
    "Explain how a bicycle stays upright:", "1, 2, 3, 5, 8, 13,",
)  # fmt: skip
#: Ends the last rank that follows, as the kernel does where memory runs out.
_KILL = """
import os, signal
for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc"))), reverse=True):
    try:
        words = open(f"/proc/{pid}/cmdline").read().split("\\0")
    except OSError:
        continue
    if "plimsoll.runtime.engine.worker.rank_process" in words:
        os.kill(pid, signal.SIGKILL)
        print(pid)
        break
"""


def test_ranks_of_a_pod_answer_as_one_and_start_again_together(scene: Scene) -> None:
    cpu = {"resource": "cpu", "memory": "656Mi"}
    deployment = scene.deploy(parallelism={"tensor": RANKS}, accelerator=cpu, pod={"cpu": None}, precision="float32")
    deployment.ready()
    client = openai.OpenAI(base_url=f"{scene.url(deployment)}/v1", api_key="none", max_retries=0)
    eventually(lambda: deployment.routable() == 1, 30, "the pod is behind the Service")

    def answer() -> str:
        question = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
        found = client.chat.completions.create(model=deployment.name, messages=question, max_tokens=24, temperature=0)  # type: ignore[call-overload]
        return str(found.choices[0].message.content)

    said = answer()
    assert "Paris" in said
    alone = scene.deploy("alone", accelerator={"resource": "cpu", "memory": "1Gi"}, pod={"cpu": None},
                         precision="float32")  # fmt: skip
    alone.ready()
    one = openai.OpenAI(base_url=f"{scene.url(alone)}/v1", api_key="none", max_retries=0)
    eventually(lambda: alone.routable() == 1, 30, "the pod of one rank is behind its Service")
    assert alone.status["budget"]["tensor"] == 1
    for prompt in PROMPTS:
        texts = [
            peer.completions.create(model=name, prompt=prompt, max_tokens=48, temperature=0).choices[0].text
            for peer, name in ((client, deployment.name), (one, alone.name))
        ]
        assert texts[0] == texts[1], prompt
    scene.cluster.kubectl("delete", "modeldeployment", alone.name, "-n", scene.namespace)

    def measured() -> list[dict[str, int]] | None:
        ranks = (deployment.status.get("observed") or {}).get("ranks") or []
        return ranks if len(ranks) == RANKS and all("peak" in rank for rank in ranks) else None

    observed = eventually(measured, 60, "every rank is in status.observed")
    budget = deployment.status["budget"]
    scene.result.note(observed=observed, budget=budget["ranks"])
    assert budget["tensor"] == RANKS
    for rank, (found, planned) in enumerate(zip(observed, budget["ranks"], strict=True)):
        assert (found["rank"], planned["rank"]) == (rank, rank)
        assert found["weights"] == planned["weights"]
        # The operator allows for kernels that need more workspace: the pod's own sum leaves more to the cache.
        assert found["kvCache"] >= planned["kvCache"]
        assert found["peak"] <= planned["total"]
    (pod,) = deployment.pods()
    server = next(one for one in pod["spec"]["containers"] if one["name"] == "server")
    assert server["resources"]["limits"]["memory"] == f"{RANKS * 656 + 384}Mi"

    name = pod["metadata"]["name"]
    stream = client.completions.create(model=deployment.name, prompt="One, two,", max_tokens=900, stream=True)
    next(iter(stream))
    killed = scene.cluster.kubectl("exec", name, "-n", scene.namespace, "-c", "server", "--", "python3", "-c", _KILL)
    assert killed.strip().isdigit()
    try:
        for _ in stream:
            pass
    except (openai.APIError, httpx.HTTPError) as error:
        scene.result.note(stream=str(error))
    else:
        raise AssertionError("an answer of 900 tokens came whole from a group that had lost a rank")

    def again() -> bool:
        try:
            return answer() == said
        except openai.InternalServerError as error:
            # Any other answer than 503 is raised.
            if error.status_code != 503:
                raise
            return False

    eventually(again, SERVING, "the group answers again, as before")
    assert deployment.restarts() == 0
