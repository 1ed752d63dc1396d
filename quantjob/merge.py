"""From a file for each layer, which a kill costs at most, to files of the size that people publish.

Each piece is copied to its place in the file to be, which then reaches the disk, before the piece is removed: so a
merge takes the room of one piece more, and a kill at any instant loses nothing. `merge.json` holds the plan until it is
carried out.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plimsoll.checkpoint.complete import sync_folder, write_durably
from plimsoll.checkpoint.json_file import read_object
from plimsoll.checkpoint.quantized.manifest import hash_file
from plimsoll.checkpoint.safetensors_writer import header_bytes, shard_name
from plimsoll.quantjob.failures import damaged
from plimsoll.quantjob.shards import Shard, read_header

PLAN_NAME = "merge.json"
_CHUNK = 8 << 20


def merged(folder: Path, shards: Sequence[Shard], limit: int, proceed: Callable[[], None]) -> list[Shard]:
    """The shards of `folder/output` as files of at most `limit` bytes of tensors, in the same order; one shard that is
    larger stays a file of its own.

    Args:
        proceed: called before anything is written; raises where this process may not write any more.

    Raises:
        CheckpointError: a shard has gone or is not what was written.
        OSError: the disk is full or cannot be written.
    """
    path, output = folder / PLAN_NAME, folder / "output"
    if path.exists():
        plan = read_object(path)["files"]
    else:
        groups = list(_groups(shards, limit))
        names = [shard_name(place, len(groups)) for place in range(len(groups))]
        if [[shard.name for shard in group] for group in groups] == [[name] for name in names]:
            return list(shards)
        plan = [_planned(output, name, group) for name, group in zip(names, groups, strict=True)]
        write_durably(path, {"files": plan})
    for file in plan:
        proceed()
        _build(output, file, folder)
    return [_shard(output, file) for file in plan]


def forget_plan(folder: Path) -> None:
    """The merged shards are in the state: the plan has done its part."""
    (folder / PLAN_NAME).unlink(missing_ok=True)


def _groups(shards: Sequence[Shard], limit: int) -> Iterator[list[Shard]]:
    group: list[Shard] = []
    for shard in shards:
        if group and sum(sum(one.tensors.values()) for one in (*group, shard)) > limit:
            yield group
            group = []
        group.append(shard)
    if group:
        yield group


def _planned(output: Path, name: str, group: Sequence[Shard]) -> dict[str, Any]:
    """The header of the file to be, and where each piece goes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    pieces, at = [], 0
    for shard in group:
        found, start = read_header(output / shard.name)
        size = shard.bytes - start
        for tensor, entry in found.items():
            if tensor != "__metadata__":
                header[tensor] = {**entry, "data_offsets": [at + offset for offset in entry["data_offsets"]]}
        pieces.append({"name": shard.name, "sha256": shard.sha256, "start": start, "at": at, "bytes": size})
        at += size
    return {"name": name, "header": header, "pieces": pieces, "bytes": at}


def _build(output: Path, file: Mapping[str, Any], folder: Path) -> None:
    aside, final = output / f".{file['name']}.partial", output / file["name"]
    names = {piece["name"] for piece in file["pieces"]}
    if final.exists() and file["name"] not in names:
        return
    there = aside.exists()
    text = header_bytes(file["header"])
    with open(aside, "r+b" if there else "w+b") as target:
        target.write(text)
        for piece in file["pieces"]:
            source = output / piece["name"]
            if source.exists():
                _copy(source, piece, target, len(text), folder)
                source.unlink()
            elif not there:
                raise damaged(source, folder, "was written and has gone")
        target.flush()
        os.fsync(target.fileno())
    os.replace(aside, final)
    sync_folder(output)


def _copy(source: Path, piece: Mapping[str, Any], target: Any, start: int, folder: Path) -> None:
    """The data of a piece at its place, on the disk when this returns."""
    digest = hashlib.sha256()
    target.seek(start + piece["at"])
    with open(source, "rb") as data:
        digest.update(data.read(piece["start"]))
        while chunk := data.read(_CHUNK):
            digest.update(chunk)
            target.write(chunk)
    if digest.hexdigest() != piece["sha256"]:
        raise damaged(source, folder, "is not what was written")
    target.flush()
    os.fsync(target.fileno())


def _shard(output: Path, file: Mapping[str, Any]) -> Shard:
    found = hash_file(output / file["name"])
    sizes = {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in file["header"].items()
        if name != "__metadata__"
    }
    return Shard(file["name"], found.bytes, found.sha256, sizes)
