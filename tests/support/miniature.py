"""A cluster in miniature for the planner: what it applies comes back in the next snapshot."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from plimsoll.api.facts import facts_from_config
from plimsoll.api.inspection import Inspection
from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.api.model import TensorFact
from plimsoll.operator import names, parse
from plimsoll.operator.actions import (
    Apply,
    Delete,
    Label,
    MakeKey,
    MarkFailed,
    MarkProven,
    Plan,
    Record,
    Renumber,
    Scale,
)
from plimsoll.operator.plan import plan
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import (
    Container,
    Deployment,
    Inspecting,
    Node,
    Output,
    Pod,
    Quantizing,
    ReplicaSet,
    Snapshot,
    StatefulSet,
)

GIB = 1 << 30
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 100000.0,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def inspection(**config: Any) -> Inspection:
    facts = facts_from_config({**CONFIG, **config})
    tensors = {
        name: TensorFact(name, shape, "BF16", 2 * prod(shape)) for name, shape in expected_tensors(facts).items()
    }
    facts = replace(facts, tensors=tensors)
    return Inspection("sha256:" + "ab" * 32, "main", 269_000_000, "", facts)


def spec(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model": {"source": "pvc://models/smollm2"},
        "accelerator": {"resource": "cpu", "memory": "2Gi"},
        "replicas": 1,
    }
    return {**found, **changes}


@dataclass
class Cluster:
    """Carries plans out as the API server and its controllers would."""

    spec: dict[str, Any] = field(default_factory=spec)
    nodes: tuple[Node, ...] | None = (Node("n1", allocatable={"cpu": 8000, "memory": 16 * GIB, "pods": 110}),)
    devices: int = 3
    version: str = "1"
    found: Inspection | None = field(default_factory=inspection)
    settings: Settings = field(default_factory=Settings)
    now: float = 1_000_000.0
    generation: int = 1
    status: Mapping[str, Any] = field(default_factory=lambda: {"observedGeneration": 0})  # by the CRD
    sets: dict[str, ReplicaSet] = field(default_factory=dict)
    groups: dict[str, StatefulSet] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    """Names of Secrets."""
    pods: list[Pod] = field(default_factory=list)
    children: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    inspector: Pod | None = None
    recorded: bool = False
    writes: int = 0
    count: int = 0
    bad: set[str] = field(default_factory=set)
    quantizing: Quantizing | None = None
    taken: Mapping[str, int] = field(default_factory=dict)
    """Bytes by node that pods of others ask for."""
    draining: bool = False
    """Pods that are told to go have requests that never end."""

    def change(self, **changes: Any) -> None:
        self.spec = {**self.spec, **changes}
        self.generation += 1

    def snapshot(self, room: Callable[[Any], int] | None = None) -> Snapshot:
        deployment = Deployment("ns", "demo", "uid-1", self.generation, self.spec, self.status)
        found = self.found if self.recorded or (self.inspector and self.inspector.phase == "Succeeded") else None
        error = None
        if self.inspector and self.inspector.phase == "Failed":
            error = self.inspector.containers[0].message
        return Snapshot(
            deployment, self.now, Inspecting("key", found, error, self.inspector), tuple(self.sets.values()),
            tuple(self.pods), dict(self.children), self.nodes, room, quantizing=self.quantizing,
            stateful_sets=tuple(self.groups.values()),
        )  # fmt: skip

    def look(self) -> Plan:
        snapshot = self.snapshot()
        found = plan(snapshot, self.settings, self.version)
        if found.needs_usage:
            informed = replace(self.snapshot(self.room), taken=dict(self.taken))
            found = plan(informed, self.settings, self.version)
            assert not found.needs_usage
        return found

    def placed(self, group: str) -> int:
        """Pods of a group that have a node."""
        return sum(pod.group == group and pod.node is not None and not pod.deleting for pod in self.pods)

    def room(self, template: Mapping[str, Any], among: Any = None) -> int:
        """Pods of `template` that the free devices take. Its own that wait for one are the planner's to count."""
        revision = template["metadata"]["labels"][names.REVISION]
        held = sum(pod.node is not None and not pod.ended for pod in self.pods)
        unplaced = [pod for pod in self.pods if pod.node is None and not pod.deleting]
        free = max(0, self.devices - held - len(unplaced))
        if self.nodes is not None and not any(node.usable for node in self.nodes):
            free = 0
        return free + sum(pod.revision == revision for pod in unplaced)

    def act(self) -> Plan:
        found = self.look()
        for action in found.actions:
            self.writes += 1
            self.carry_out(action)
        if found.status and found.status != self.status:
            self.writes += 1
            self.status = json.loads(json.dumps(found.status))
        return found

    def carry_out(self, action: object) -> None:
        match action:
            case Apply(object=one) if one["kind"] == "ReplicaSet":
                name = one["metadata"]["name"]
                notes = one["metadata"]["annotations"]
                replicas = int(notes.get(names.GROUPS, one["spec"]["replicas"]))
                self.children[("ReplicaSet", name)] = one
                was = self.sets.get(name) or ReplicaSet(
                    name, f"uid-{name}", one["metadata"]["labels"][names.REVISION], 0
                )
                self.sets[name] = replace(
                    was, replicas=replicas, shape=parse.replica_set(one).shape, number=int(notes[names.NUMBER]),
                    built_by=notes[names.BUILT_BY], source=json.loads(notes[names.INSPECTED]),
                    budget=json.loads(notes[names.BUDGET]),
                    output=Output(**json.loads(notes[names.OUTPUT])) if names.OUTPUT in notes else None,
                )  # fmt: skip
            case Apply(object=one) if one["kind"] == "Pod":
                self.inspector = replace(parse.pod(one), created=self.now, node="n1")
            case Apply(object=one) if one["kind"] == "StatefulSet":
                name = one["metadata"]["name"]
                self.children[("StatefulSet", name)] = one
                assert name not in self.groups, "a group never changes"
                assert not any(pod.group == name for pod in self.pods), "its name is held by a pod"
                assert one["spec"]["selector"]["matchLabels"].items() <= (
                    one["spec"]["template"]["metadata"]["labels"].items()
                )
                secret = next(v["secret"] for v in one["spec"]["template"]["spec"]["volumes"] if v["name"] == "group")
                assert secret["secretName"] in self.keys
                self.count += 1
                revision = one["metadata"]["labels"][names.REVISION]
                self.groups[name] = StatefulSet(
                    name, f"uid-{name}-{self.count}", revision, one["spec"]["replicas"], self.now
                )
            case MakeKey(object=one):
                self.keys.add(one["metadata"]["name"])
            case Label(pod=name, labels=labels):
                self.pods = [replace(pod, index=labels[names.INDEX]) if pod.name == name else pod for pod in self.pods]
            case Delete(kind="StatefulSet", name=name):
                gone = self.groups.pop(name)
                del self.children[("StatefulSet", name)]
                # The garbage collector; what is on a node that is lost stays.
                self.pods = [
                    replace(pod, deleting=True, routable=False, ends_by=self.now + 30) if pod.owner == gone.uid else pod
                    for pod in self.pods
                ]
            case Delete(kind="NetworkPolicy", name=name):
                del self.children[("NetworkPolicy", name)]
            case Apply(object=one) if one["kind"] == "Service":
                # The API server keeps no false of this field.
                kept = {key: value for key, value in one["spec"].items() if value is not False}
                self.children[("Service", one["metadata"]["name"])] = {**one, "spec": kept}
            case Apply(object=one):
                kept = {key: value for key, value in one["spec"].items() if value is not None}
                self.children[(one["kind"], one["metadata"]["name"])] = {**one, "spec": kept}
            case Scale(name=name, replicas=replicas, kind="StatefulSet"):
                self.groups[name] = replace(self.groups[name], pods=replicas)
            case Scale(name=name, replicas=replicas):
                self.sets[name] = replace(self.sets[name], replicas=replicas)
                live = dict(self.children[("ReplicaSet", name)])
                if self.sets[name].shape is not None:
                    notes = {**live["metadata"]["annotations"], names.GROUPS: str(replicas)}
                    live["metadata"] = {**live["metadata"], "annotations": notes}
                else:
                    live["spec"] = {**live["spec"], "replicas": replicas}
                self.children[("ReplicaSet", name)] = live
            case MarkFailed(name=name, failure=failure):
                self.sets[name] = replace(self.sets[name], failure=failure)
            case MarkProven(name=name):
                self.sets[name] = replace(self.sets[name], proven=True)
            case Renumber(name=name, number=number):
                self.sets[name] = replace(self.sets[name], number=number)
                live = dict(self.children[("ReplicaSet", name)])
                meta = {
                    **live["metadata"],
                    "annotations": {**live["metadata"]["annotations"], names.NUMBER: str(number)},
                }
                self.children[("ReplicaSet", name)] = {**live, "metadata": meta}
            case Delete(kind="ReplicaSet", name=name):
                del self.sets[name]
            case Delete(kind="Pod", name=name):
                if self.inspector is not None and self.inspector.name == name:
                    self.inspector = None
            case Record():
                self.recorded, self.inspector = True, None
            case _:
                raise AssertionError(f"nobody carries out {action}")

    def others_move(self, choice: int = 0) -> None:
        """Controllers, scheduler and kubelet, one pod at a time."""
        self.now += 1
        self.make_pods_of_groups()
        self.broken()
        for name, one in self.sets.items():
            if one.shape is not None:
                continue
            mine = [pod for pod in self.pods if pod.owner == one.uid and not pod.deleting and not pod.ended]
            for _ in range(one.replicas - len(mine)):
                self.count += 1
                self.pods.append(
                    Pod(f"{name}-{self.count}", revision=one.revision, owner=one.uid, created=self.now, index="0")
                )
            spare = sorted(mine, key=lambda pod: (pod.ready, pod.node is not None))[: max(0, len(mine) - one.replicas)]
            self.pods = [replace(pod, deleting=True, routable=False) if pod in spare else pod for pod in self.pods]
        usable = ["n1"] if self.nodes is None else [node.name for node in self.nodes if node.usable]
        for index, pod in enumerate(self.pods):
            if pod.node is None and not pod.deleting:
                fits = bool(usable) and sum(bool(p.node) and not p.ended for p in self.pods) < self.devices
                place = usable[0] if fits else None
                self.pods[index] = replace(pod, node=place, unschedulable=None if fits else "0/1")
        movable = [
            pod
            for pod in self.pods
            if (pod.deleting and not self.draining)
            or (pod.node and not pod.ready and not pod.containers and not pod.ended)
        ]
        if movable:
            pod = movable[choice % len(movable)]
            if pod.deleting:
                self.pods.remove(pod)
            elif pod.revision in self.bad:
                crash = Container("server", state="waiting", reason="CrashLoopBackOff", restarts=3, last_exit_code=1,
                                  last_message="the checkpoint is damaged")  # fmt: skip
                self.pods[self.pods.index(pod)] = replace(pod, containers=(crash,))
            elif not pod.group:
                self.pods[self.pods.index(pod)] = replace(pod, ready=True, routable=True)
            else:
                # Readiness of a group comes at once, when all of it is there.
                own = [one for one in self.pods if one.owner == pod.owner and one.node and not one.deleting]
                if len(own) == self.groups[pod.group].pods:
                    for one in own:
                        leads = one.index == "0"
                        self.pods[self.pods.index(one)] = replace(one, ready=True, routable=leads)
        if self.inspector is not None and self.inspector.phase == "Pending":
            self.inspector = replace(self.inspector, phase="Succeeded" if self.found else "Failed",
                                     containers=(Container("inspect", message="no such claim"),))  # fmt: skip

    def make_pods_of_groups(self) -> None:
        """The StatefulSet controller: pods in parallel, each under its own name, which one that ends still holds."""
        for name, one in self.groups.items():
            there = {pod.name for pod in self.pods}
            for at in range(one.pods):
                if f"{name}-{at}" not in there:
                    pod = Pod(f"{name}-{at}", revision=one.revision, owner=one.uid, created=self.now, group=name)
                    self.pods.append(replace(pod, index=str(at)))

    def broken(self) -> None:
        """The engine: a group that lacks a pod serves no more."""
        for one in self.groups.values():
            own = [pod for pod in self.pods if pod.owner == one.uid and pod.ready and not pod.deleting]
            if len(own) < one.pods:
                self.pods = [
                    replace(pod, ready=False, routable=False) if pod.owner == one.uid else pod for pod in self.pods
                ]

    def settle(self, rounds: int = 120) -> Plan:
        for choice in range(rounds):
            self.act()
            self.others_move(choice)
        return self.act()

    def condition(self, kind: str) -> Mapping[str, Any]:
        return next(c for c in self.status["conditions"] if c["type"] == kind)
