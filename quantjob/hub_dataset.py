"""The files of a dataset of the Hugging Face hub, or of a mirror of it, fetched one by one as they are wanted."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from plimsoll.api.dataset import Dataset
from plimsoll.api.errors import CheckpointError, SpecError
from plimsoll.checkpoint import guard, hub_session
from plimsoll.checkpoint.sources import HubSource, hub_error
from plimsoll.quantjob.documents import KINDS, is_data


class HubDataset:
    """See module. `HF_ENDPOINT`, the token (`HF_TOKEN`) and the cache (`HF_HOME`) work as in huggingface_hub.

    Attributes:
        names: the files to read, in order.
    """

    def __init__(self, dataset: Dataset, field: str) -> None:
        """Resolve the revision to a commit and choose files.

        Raises:
            SpecError: nothing of that name in it is of a kind that is read.
            CheckpointError: no such dataset or revision; no access; no connection.
        """
        self.field = field
        self._hub = HubSource(f"datasets/{dataset.name}", dataset.revision or "main", dataset.path or None)
        guard.install()
        listed = self._ask()
        self.names = choose(listed, dataset.path)
        if not self.names:
            there = sorted(filter(is_data, listed))
            held = f"; it holds {', '.join(there[:6])}{' …' if len(there) > 6 else ''}" if there else ""
            what = f"has no file, folder or split {dataset.path}" if dataset.path else "has no file"
            raise SpecError(
                f"{what} of a kind that is read here{held}", field=field, value=str(dataset),
                fix=f"Name one that ends in {', '.join(KINDS)}",
            )  # fmt: skip

    def __str__(self) -> str:
        return str(self._hub)

    def files(self) -> Iterator[Path]:
        """Each file on this machine. Raises CheckpointError when one cannot be had."""
        from huggingface_hub import hf_hub_download

        hub_session.session()
        for name in self.names:
            try:
                here = hf_hub_download(self._name, name, repo_type="dataset", revision=self._hub.revision)
            except Exception as error:
                raise self._explained(error) from None
            yield Path(here)

    @property
    def _name(self) -> str:
        return self._hub.repo.removeprefix("datasets/")

    def _ask(self) -> list[str]:
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise SpecError(
                "lies on the hub, and downloads are off", field=self.field, value=str(self._hub),
                fix="Give the path of a file that is here, or unset HF_HUB_OFFLINE",
            )  # fmt: skip
        guard.check_url(constants.ENDPOINT)
        try:
            url = f"{constants.ENDPOINT}/api/{self._hub.repo}/revision/{quote(self._hub.revision, safe='')}"
            found = next(hub_session.pages(url, str(self._hub)))
            commit = hub_session.commit_of(found, str(self._hub))
            self._hub = HubSource(self._hub.repo, commit, self._hub.file)
            siblings = hub_session.list_of(found.get("siblings") or [], str(self._hub))
            names = [entry.get("rfilename") for entry in siblings if isinstance(entry, dict)]
            return [name for name in names if isinstance(name, str) and ".." not in name.split("/")]
        except CheckpointError:
            raise
        except Exception as error:
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> Exception:
        return guard.refusal(str(self._hub)) or hub_error(error, self._hub)


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
