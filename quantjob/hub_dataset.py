"""Which files of a dataset of the Hugging Face hub are read: by file, folder, configuration and split."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from plimsoll.api.dataset import Dataset
from plimsoll.api.errors import SpecError
from plimsoll.checkpoint import guard, hub
from plimsoll.checkpoint.sources import HubSource
from plimsoll.quantjob.documents import KINDS, is_data


def dataset_files(dataset: Dataset, field: str) -> tuple[str, Iterator[Path]]:
    """(the dataset at its commit, for people; its files, each downloaded when it is its turn).

    Raises:
        SpecError: downloads are off, or nothing of that name in it is of a kind that is read.
        CheckpointError: no such dataset or revision; no access; no connection. The files raise it too.
    """
    from huggingface_hub import constants

    wanted = HubSource(hub.DATASETS + dataset.name, dataset.revision or "main", dataset.path or None)
    if constants.HF_HUB_OFFLINE:
        raise SpecError(
            "lies on the hub, and downloads are off", field=field, value=str(wanted),
            fix="Give the path of a file that is here, or unset HF_HUB_OFFLINE",
        )  # fmt: skip
    guard.install()
    source, found = hub.look_up(wanted)
    listed = hub.listed_names(source, found)
    names = choose(listed, dataset.path)
    if not names:
        there = sorted(filter(is_data, listed))
        held = f"; it holds {', '.join(there[:6])}{' …' if len(there) > 6 else ''}" if there else ""
        what = f"has no file, folder or split {dataset.path}" if dataset.path else "has no file"
        raise SpecError(
            f"{what} of a kind that is read here{held}", field=field, value=str(dataset),
            fix=f"Name one that ends in {', '.join(KINDS)}",
        )  # fmt: skip
    return str(source), (hub.cached_file(source, name) for name in names)


def choose(listed: Sequence[str], path: str) -> list[str]:
    """Which of a dataset's files `path` means: a file, a folder, `CONFIG/SPLIT` or `SPLIT`; the training split, where
    there is one, if it is empty.

    A split is a file `SPLIT.*` or `SPLIT-00000-of-…`, or a folder of that name, in the configuration's folder or in
    `data/`.
    """
    data = sorted(filter(is_data, listed))
    if not path:
        return _split(data, "", "train") or _split(data, "data", "train") or data
    if path in data:
        return [path]
    below = [name for name in data if name.startswith(f"{path}/")]
    if below:
        return _split(below, path, "train") or below
    folder, _, split = path.rpartition("/")
    return _split(data, folder, split) or _split(data, f"{folder}/data".strip("/"), split)


def _split(names: Sequence[str], folder: str, split: str) -> list[str]:
    start = f"{folder}/{split}" if folder else split
    return [
        name
        for name in names
        if name.startswith(start) and name[len(start) : len(start) + 1] in (".", "-", "_", "/")
    ]  # fmt: skip
