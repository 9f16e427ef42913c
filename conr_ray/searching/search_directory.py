"""The files of a search, for running it and for reading its results.

space.yaml          the space as read, with the fields fixed by the command line
study.journal       the Optuna study; in a bucket, a folder of pieces
study.journal.sums  checksums of its entries
search.lock         held by the process that runs the search
trials/ID/          a run directory for each trial
trials.parquet      the table of trials
best.yaml           the config of the best trial; `train --config` runs it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from conr_ray.config import parse_yaml
from conr_ray.errors import FolderTaken, UserError, last_line
from conr_ray.searching.space import SearchSpace
from conr_ray.storage.files import Folder
from conr_ray.storage.locks import FileLocks

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage

_JOURNAL = "study.journal"


@dataclass(frozen=True)
class SearchDirectory:
    """The files of a search, on any file system; the study may be in a database instead."""

    files: Folder
    study_url: str | None = None

    @property
    def uri(self) -> str:
        """Where it is, a local path or a URI such as s3://bucket/folder."""
        return self.files.uri

    @property
    def name(self) -> str:
        """Name of the search: the study's, and the group in W&B."""
        return self.uri.rpartition("/")[2]

    def check(self, space: SearchSpace, *, resume: bool) -> None:
        """Check that `space` can be searched here.

        Raises:
            FolderTaken: the folder holds another search, or this one and `resume` is false.
            UserError: there is no search to resume, or `study_url` does not fit the search.
        """
        before = self.read_space()
        if before is None:
            if resume:
                raise UserError(f"{self.uri} holds no search to resume: check the folder and name")
            if self.study_url is not None and self.name in self._open_storage()[1]:
                raise UserError(
                    f"the study database has a search called {self.name} already: choose another "
                    "name"
                )
            return
        # The path of the images may have changed.
        old, new = map(_without_data_path, (as_tree(before), as_tree(space)))
        # More trials may be added, unless they are a population.
        free = () if space.exchanges else ("trials",)
        changed = [k for k in {**old, **new} if k not in free and old.get(k) != new.get(k)]
        if changed:
            differs = f"{changed[0]} differs"
            if changed[0] == "metric" and resume:
                # Of a space with metric: auto, labels that appear or vanish change it.
                differs = f"its metric is {old['metric']}, now {new['metric']}, as of metric: auto"
                differs += " if labels appear or vanish: set metric"
            raise FolderTaken(f"{self.uri} holds another search ({differs})")
        if not resume:
            raise FolderTaken(f"{self.uri} holds this search", same_run=True)
        has_journal = self.files.has(_JOURNAL)
        if self.study_url is None and self.files.has("trials") and not has_journal:
            raise UserError(f"{self.uri}: its study is in a database: give the study's URL")
        if self.study_url is not None and has_journal:
            raise UserError(
                f"the study of this search is {self.uri}/{_JOURNAL}: leave out the study's URL"
            )

    def claim(self, space: SearchSpace, *, resume: bool) -> None:
        """`check`, then write space.yaml.

        Raises:
            FolderTaken, UserError: as in `check`.
            StorageError: it cannot be written.
        """
        self.check(space, resume=resume)
        self.files.keep()
        self.files.write_text("space.yaml", yaml.safe_dump(as_tree(space), sort_keys=False))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from running this search; in a bucket, only the journal does so.

        Raises:
            UserError: another process runs it.
        """
        with FileLocks(self.uri)("search") if self.files.is_local else nullcontext() as lock:
            if lock is not None and not lock.acquired():
                raise UserError(f"{self.uri}: another process runs this search: stop it first")
            self.files.remove_parts(deep=False)
            yield

    def open_study(self, space: SearchSpace) -> optuna.Study:
        """The search's study, begun if there is none.

        Raises:
            UserError: it cannot be read, entries are missing, or all of it is.
        """
        # Samplers and their seeds need torch, which is not needed to read a study.
        from conr_ray.searching.study import open_study

        storage, names = self._open_storage()
        if not names and (known := len(self.files.folder_names("trials"))):
            raise UserError(
                f"{self.uri}: the study is empty, but trials/ holds {known}: restore "
                f"{self.study_url or _JOURNAL} from a copy, or choose another name"
            )
        return open_study(space, storage, self._study_name(names))

    def read_space(self) -> SearchSpace | None:
        """The space of the search, None if there is no search."""
        text = self.files.read_text("space.yaml")
        if text is None:
            return None
        source = f"{self.uri}/space.yaml"
        try:
            return SearchSpace.model_validate(parse_yaml(text, source))
        except ValidationError as error:
            raise UserError(
                f"{source} is not a space of this version ({error.errors()[0]['msg']}): use the "
                "version that wrote it"
            ) from None

    def read_study(self) -> optuna.Study | None:
        """The current study, for reading; None if no trial has been drawn yet.

        Nothing is written. The folder may have been renamed since the search.

        Raises:
            UserError: it is in a database whose URL is not given, or cannot be opened.
        """
        if self.study_url is None and not self.files.has(_JOURNAL):
            if self.files.has("trials"):
                raise UserError(f"{self.uri}: its study is in a database: give the study's URL")
            return None
        import optuna

        storage, names = self._open_storage()
        name = self._study_name(names)
        return optuna.load_study(study_name=name, storage=storage) if name in names else None

    def _open_storage(self) -> tuple[BaseStorage, list[str]]:
        """The storage of the study, which may not exist yet, and the names of the studies there."""
        # Optuna takes half a second to import, and a plan does not need it.
        import optuna

        from conr_ray.searching.study_storage import database, journal

        try:
            url = self.study_url
            storage = journal(self.files, _JOURNAL) if url is None else database(url)
            return storage, optuna.get_all_study_names(storage)
        except UserError:
            raise
        # Database drivers raise errors of many kinds, as does a damaged journal.
        except Exception as error:
            what = "the study database" if self.study_url is not None else f"{self.uri}: its study"
            raise UserError(f"{what} cannot be read: {last_line(error)}") from None

    def _study_name(self, names: list[str]) -> str:
        """Name of its study; in a journal, that is the name that the folder had at first."""
        return names[0] if self.study_url is None and len(names) == 1 else self.name


def as_tree(space: SearchSpace) -> Any:
    """The space as plain values, as written to space.yaml."""
    return space.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _without_data_path(tree: Mapping[str, Any]) -> dict[str, Any]:
    fixed = {k: v for k, v in (tree.get("fixed") or {}).items() if k != "data.path"}
    return {**tree, "fixed": fixed}
