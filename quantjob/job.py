"""One quantization from a source to an output folder that is there whole or not: preflight, text, walk, evaluation,
gate, manifest.

Work goes on in OUT/.partial. The finished files are renamed into OUT and the manifest follows them, so that a folder
with a manifest is a whole one; a job killed between two renames finishes them when it is started again.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import plimsoll
from plimsoll.api.errors import SpecError
from plimsoll.api.job_budget import largest_group, measured_caches, undivided
from plimsoll.api.job_progress import Output
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.checkpoint.complete import sync_folder
from plimsoll.checkpoint.lock import FolderLock
from plimsoll.checkpoint.quantized.manifest import (
    MANIFEST_NAME,
    Manifest,
    hash_files,
    read_manifest,
    write_manifest,
)
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.quantjob.crew import Crew
from plimsoll.quantjob.data import Tokens
from plimsoll.quantjob.devices import devices_of
from plimsoll.quantjob.evaluation import Comparison, compare
from plimsoll.quantjob.failures import BusyError, OutputTakenError, damaged, writing
from plimsoll.quantjob.generation_config import valid_generation_config
from plimsoll.quantjob.job_options import JobOptions
from plimsoll.quantjob.kept_evaluation import KeptEvaluation
from plimsoll.quantjob.outlook import Outlook
from plimsoll.quantjob.papers import write_papers
from plimsoll.quantjob.preflight import Preflight, check_room, check_weights, preflight
from plimsoll.quantjob.progress import Tracker
from plimsoll.quantjob.report import ASIDE as REPORT_ASIDE
from plimsoll.quantjob.report import NAMES as REPORT_NAMES
from plimsoll.quantjob.report import Report, write_report
from plimsoll.quantjob.rounding import Rounding
from plimsoll.quantjob.state import METHOD_VERSION, State, layers_done, weights_digest
from plimsoll.quantjob.streamed import StreamedModel
from plimsoll.quantjob.tokens import Pair, token_sets
from plimsoll.quantjob.verdict import evaluation_of, reasons_of, verdict_of
from plimsoll.quantjob.walk import Walk
from plimsoll.quantjob.workers import Workers

PARTIAL = ".partial"
#: What a volume may hold before anything is written to it.
_NOTHING = ("lost+found", PARTIAL)
#: Seconds to wait for another process that works in the folder, or for its lock to be known as abandoned.
PATIENCE = 45.0
#: What a disk that is not slow gives; for the bar alone.
_BYTES_A_SECOND = 1e9
OUTPUT, NEAREST = "output", "round to nearest"


@dataclass(frozen=True)
class Outcome:
    """The output as its manifest has it, and why its gate failed, if it did."""

    manifest: Manifest
    reasons: tuple[str, ...]


class QuantizeJob:
    """`run` makes the output, or goes on with it, or says that it is there."""

    def __init__(self, options: JobOptions, tracker: Tracker, say: Callable[[str], None]) -> None:
        """Args: say: called with what a person should know besides the progress."""
        self.options = options
        self.partial = options.out / PARTIAL
        self._evaluation = self.partial / "evaluation"
        self._tracker = tracker
        self._say = say
        self._workers = Workers(options.threads)
        self._crew = Crew(1, self._workers)
        self._devices: tuple[str, ...] = ()
        self._outlook: Outlook | None = None

    def run(self) -> Outcome:
        """Raises PlimsollError: nothing stands in the output folder then but what a later run goes on with."""
        try:
            with self._tracker.beating():
                return self._run()
        finally:
            self._crew.rest()
            self._workers.close()

    def _run(self) -> Outcome:
        if self.options.limits.any and not self.options.plan.held_out:
            raise SpecError(
                "measures nothing, and a limit is set", field="--eval-samples", value=0, fix="Measure on some"
            )
        with writing(self.options.out):
            self._check_folder()
        checkpoint = open_checkpoint(self.options.source)
        self._fit(checkpoint)
        options = self.options
        options.plan.check(checkpoint.facts)
        self._devices = devices_of(options)
        ready = preflight(
            checkpoint.facts, options.recipe, options.plan.samples, options.plan.length, options.plan.held_out,
            memory=options.memory, batch=options.batch, threads=self._workers.count, workers=options.workers or 1,
            devices=self._devices, device_memory=options.device_memory,
        )  # fmt: skip
        changed = valid_generation_config(checkpoint.generation_config)[1]
        for note in (*checkpoint.notices, *ready.notes, *options.plan.notes(), *changed):
            self._say(note)
        size = sum(path.stat().st_size for path in checkpoint.files())
        self._tracker.expect({"Preparing": 5 + 3 * size / _BYTES_A_SECOND})
        self._tracker.move("Preparing", 0.05, upto=0.4, of=checkpoint.facts.num_layers)
        request = self._request(checkpoint)
        with writing(options.out):
            return self._finished(request) or self._in_folder(checkpoint, ready, request)

    def _fit(self, checkpoint: Checkpoint) -> None:
        """Defaults that this model cannot have give way, and a sentence says so."""
        options, facts = self.options, checkpoint.facts
        recipe, plan = options.recipe, options.plan
        if "group_size" in options.fitted and recipe.group_size:
            size = largest_group(facts, recipe.group_size)
            if size != recipe.group_size:
                widths = " and ".join(map(str, undivided(facts, recipe.group_size)))
                self._say(f"groups of {size}: {recipe.group_size} does not divide the {widths} columns of this model")
                recipe = replace(recipe, group_size=size)
        if "length" in options.fitted and plan.length > facts.max_position:
            self._say(f"windows of {facts.max_position} tokens: this model has no more positions")
            plan = replace(plan, length=facts.max_position)
        self.options = replace(options, recipe=recipe, plan=plan)

    def _in_folder(self, checkpoint: Checkpoint, ready: Preflight, request: Mapping[str, Any]) -> Outcome:
        with self._locked() as lock:
            # Another run may have finished while this one waited, and may have removed the folder of the lock.
            finished = self._finished(request)
            if finished is not None:
                return finished
            self._tracker.keep_in(self.partial)
            done = read_manifest(self.partial)
            if done is None:
                done = self._make(checkpoint, ready, request, lock)
            elif done.source.get("request") != request:
                raise self._taken("finished work of another kind")
            self._publish(done)
            return self._outcome(done)

    def _make(self, checkpoint: Checkpoint, ready: Preflight, request: Mapping[str, Any], lock: FolderLock) -> Manifest:
        """Everything but the last renames."""
        options = self.options
        self._check_disk(ready)

        def proceed() -> None:
            if lock.lost.is_set():
                raise _busy(self.partial)

        self._crew = crew = Crew(ready.workers, self._workers, self._say, self._devices)
        self._tracker.others = lambda: crew.peak_bytes
        calibration, held_out = self._tokens(checkpoint, crew, request)
        outlook = self._outlook
        walk = Walk(
            checkpoint, options.recipe, calibration, self.partial, ready.plan, self._workers, request["weights"],
            () if outlook is None else outlook.layer_steps, options.shard_bytes, crew,
        )  # fmt: skip

        def on_layer(done: int, of: int, seconds: float) -> None:
            self._tracker.move("Quantizing", done / of, layer=done, of=of)

        state = walk.run(
            on_layer, proceed, lambda share, upto: self._tracker.move("Quantizing", share, upto=upto)
        )  # fmt: skip
        crew.rest()
        output = self.partial / "output"
        names = write_papers(output, checkpoint, options.recipe, state.shards)
        files = hash_files(output, names)
        written = {file.name: file.sha256 for file in files}
        for shard in state.shards:
            if written[shard.name] != shard.sha256:
                raise damaged(output / shard.name, self.partial, "is not what was written")
        compared = None
        if held_out is not None:
            key = {"walk": state.fingerprint, "output": [file.sha256 for file in files], "held out": held_out.digest}
            compared = self._evaluate(checkpoint, held_out, ready, json.dumps(key, sort_keys=True), proceed)
        evaluation = None if compared is None else compared.evaluation(OUTPUT, self._nearest(compared))
        reasons = reasons_of(evaluation, options.limits)
        manifest = Manifest(
            files=files, gate=verdict_of(reasons, options.limits),
            gate_message="; ".join(reasons) or None, recipe=options.recipe.described(),
            tokens=None if calibration is None else calibration.digest,
            source={"name": options.name, "request": dict(request)},
            evaluation=evaluation.model_dump(mode="json", by_alias=True, exclude_none=True) if evaluation else {},
        )  # fmt: skip
        if compared is not None:
            self._report(manifest, compared, calibration, held_out, reasons, state)
        # From here on a later run has nothing to do but rename.
        write_manifest(self.partial, manifest)
        return manifest

    def _tokens(self, checkpoint: Checkpoint, crew: Crew, request: Mapping[str, Any]) -> Pair:
        """Texts are read each time, to see whether they have changed; drawn windows are kept for a later run."""

        def ready() -> None:
            done = layers_done(self.partial)
            if done is None:
                # All of it is read once: a weight that is no number is found now, and not after hours.
                check_weights(checkpoint, self.options.recipe, self._workers, partial(self._prepared, 0.4, 0.8))
            self._prepared(0.8, 1.0, 0.0, 1.0)
            # A walk that is over shares nothing any more.
            left = done is None or done < checkpoint.facts.num_layers
            self._outlook = Outlook(
                StreamedModel(checkpoint, workers=self._workers), self.options.recipe, self.options.plan, self.partial,
                self._tracker, self._say, crew if left else None,
            )  # fmt: skip
            if self.options.plan.sampled:
                # The engine needs the memory.
                crew.rest()
            if left:
                self._outlook.announce(done or 0)

        def drawn(done: int, of: int) -> None:
            assert self._outlook is not None
            self._outlook.drawn(done, of)

        return token_sets(
            self.options.plan, self.options.source, checkpoint.facts, load_tokenizer(checkpoint),
            memory=self.options.memory, threads=self._workers.count, progress=drawn, folder=self.partial,
            key=json.dumps([request["checkpoint"], request["weights"], request["version"]]), ready=ready,
        )  # fmt: skip

    def _prepared(self, first: float, last: float, share: float, upto: float) -> None:
        self._tracker.move("Preparing", first + share * (last - first), upto=first + upto * (last - first))

    def _evaluate(
        self, checkpoint: Checkpoint, held_out: Tokens, ready: Preflight, key: str, proceed: Callable[[], None]
    ) -> Comparison:
        recipe, workers = self.options.recipe, self._workers
        made = open_checkpoint(self.partial / "output")
        others = {OUTPUT: StreamedModel(made, workers=workers)}
        if recipe.method == "awq":
            nearest = Rounding(recipe.bits, recipe.group_size)
            others[NEAREST] = StreamedModel(checkpoint, round_to=nearest, workers=workers)
        caches = {one: StreamedModel(made, workers=workers, cache=one) for one in measured_caches(checkpoint.facts)}
        # Of the model as it was and of each of the others.
        models = 1 + len(others) + len(caches)
        states = models * 4 * held_out.windows.size * checkpoint.facts.hidden_size
        held = ready.needs.evaluation + states <= self.options.memory
        return compare(
            StreamedModel(checkpoint, workers=workers), others, held_out, caches=caches, cached=OUTPUT,
            batch=ready.plan.batch, scratch=None if held else self.partial,
            kept=KeptEvaluation(self._evaluation, key, models, proceed),
            progress=lambda share, upto: self._tracker.move("Evaluating", share, upto=upto),
            lengths=None if self._outlook is None else self._outlook.compared,
        )  # fmt: skip

    @staticmethod
    def _nearest(compared: Comparison) -> str | None:
        return NEAREST if NEAREST in compared.others else None

    def _report(
        self, manifest: Manifest, compared: Comparison, calibration: Tokens | None, held_out: Tokens | None,
        reasons: list[str], state: State,
    ) -> None:  # fmt: skip
        tokens = {"calibration": calibration, "held out": held_out}
        fallen = [
            f"layer {entry['layer']}: {' '.join(group['roles'])} rounded to nearest, which was better"
            for entry in state.report
            for group in entry["groupings"]
            if group["scale"] == "fallback"
        ]
        report = Report(
            title=f"{self.options.name}, quantized", reference=self.options.name, comparison=compared, judged=OUTPUT,
            nearest=self._nearest(compared), verdict=manifest.gate, reasons=reasons,
            tokens={use: found for use, found in tokens.items() if found is not None},
            settings=self.options.recipe.described(), manifest=manifest.digest, notes=fallen,
        )  # fmt: skip
        write_report(self.options.out, report)

    def _publish(self, manifest: Manifest) -> None:
        """The files under their final names, then the manifest; harmless to begin again at any point."""
        out = self.options.out
        for file in manifest.files:
            made, final = self.partial / "output" / file.name, out / file.name
            if made.exists():
                os.replace(made, final)
            elif not final.is_file() or final.stat().st_size != file.bytes:
                raise damaged(final, self.partial, "was written and has gone")
        sync_folder(out)
        os.replace(self.partial / MANIFEST_NAME, out / MANIFEST_NAME)
        sync_folder(out)

    def _finished(self, request: Mapping[str, Any]) -> Outcome | None:
        """The output if it is there already, its gate held against the limits that are asked for now."""
        manifest = read_manifest(self.options.out)
        if manifest is None:
            return None
        if manifest.source.get("request") != request:
            raise self._taken("another output")
        self._clear()
        reasons = reasons_of(evaluation_of(manifest), self.options.limits)
        verdict = verdict_of(reasons, self.options.limits)
        message = "; ".join(reasons) or None
        if (verdict, message) != (manifest.gate, manifest.gate_message):
            fields = {name: getattr(manifest, name) for name in ("files", "recipe", "tokens", "source", "evaluation")}
            manifest = Manifest(gate=verdict, gate_message=message, **fields)
            write_manifest(self.options.out, manifest)
        return self._outcome(manifest)

    def _outcome(self, manifest: Manifest) -> Outcome:
        self._clear()
        evaluation = evaluation_of(manifest)
        reasons = tuple(reasons_of(evaluation, self.options.limits))
        ended: dict[str, Any] = {"reason": "GateFailed", "message": "; ".join(reasons)} if reasons else {}
        self._tracker.move(
            "Failed" if reasons else "Complete", 1.0, layer=self._tracker.now.of, evaluation=evaluation,
            output=Output(digest=manifest.digest, bytes=manifest.bytes), **ended,
        )  # fmt: skip
        return Outcome(manifest, reasons)

    def _clear(self) -> None:
        """Remove all but the lock, which its holder releases."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _request(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What tells this job from another that would write other bytes or measure other text."""
        kind = "/cuda" if self._devices else ""
        return {
            "checkpoint": checkpoint.digest(), "weights": weights_digest(checkpoint, self._workers),
            "recipe": self.options.recipe.described(), "text": asdict(self.options.plan),
            "shards": self.options.shard_bytes, "version": f"{plimsoll.__version__}/{METHOD_VERSION}{kind}",
        }  # fmt: skip

    def _check_folder(self) -> None:
        out = self.options.out
        if out.exists() and not out.is_dir():
            raise OutputTakenError("is a file", field="--work-dir", value=str(out), fix="Name a folder")
        held = sorted(path.name for path in out.iterdir()) if out.exists() else []
        strange = [name for name in held if name not in (*_NOTHING, *REPORT_NAMES, *REPORT_ASIDE)]
        if strange and MANIFEST_NAME not in held and not (self.partial / MANIFEST_NAME).exists():
            raise self._taken(f"other files ({', '.join(strange[:3])})")

    def _taken(self, what: str) -> OutputTakenError:
        return OutputTakenError(
            f"holds {what}",
            field="--work-dir",
            value=str(self.options.out),
            fix="Name another folder, or empty this one",
        )

    def _check_disk(self, ready: Preflight) -> None:
        if self._evaluation.exists():
            # The walk is over, and its hidden states, which are most of what was asked for, are needed no more.
            return
        done = sum(path.stat().st_size for path in self.partial.rglob("*") if path.is_file())
        usage = shutil.disk_usage(self.partial)
        # Some filesystems do not tell.
        note = check_room(ready, self.options.out, usage.free, done) if usage.total else None
        if note is not None:
            self._say(note)

    @contextmanager
    def _locked(self) -> Iterator[FolderLock]:
        lock = FolderLock(self.partial / "lock")
        waited = time.monotonic()
        while not self._acquired(lock):
            if time.monotonic() - waited > PATIENCE:
                raise _busy(self.partial)
            time.sleep(0.5)
        try:
            yield lock
        finally:
            lock.release()

    def _acquired(self, lock: FolderLock) -> bool:
        """The run that held the lock removes its folder when it is done, perhaps at this very moment."""
        self.partial.mkdir(parents=True, exist_ok=True)
        try:
            return lock.acquire()
        except FileNotFoundError:
            return False


def _busy(folder: Path) -> BusyError:
    return BusyError("another process works here", field=str(folder), fix="Let it finish, or stop it")
