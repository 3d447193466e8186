"""Facts and studies in SQLite or PostgreSQL, in the same database as Optuna's tables. The only package with SQL.

Facts (architectures, latencies, scores, failures) are keyed by what they are facts of, inserted if absent and never
changed, but for an invalid latency and a failure of the machine, which a later one replaces; studies point at them. Table
names avoid Optuna's (studies, study_*, trials, trial_*, version_info, alembic_version); the schema's version stands in
`explorer_version`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from explorer.arch import Arch
from explorer.errors import StoreError
from explorer.records import (
    DEFAULT_STORAGE,
    Candidate,
    Failure,
    FrontRecord,
    Latency,
    Score,
    ScoreKey,
    StudyRecord,
    Target,
    Verification,
)
from explorer.store import facts, schema, studies
from explorer.store.database import BUSY_TIMEOUT_S, Database, engine_options, exists, storage_url

__all__ = ["BUSY_TIMEOUT_S", "Store", "exists", "storage_url"]


class Store:
    """One database. Open it with `Store.open`; every method is one short transaction.

    `url` is SQLAlchemy's, with the password; `place` is what messages may show. Methods raise StoreError when the database
    cannot be read or written (locked, full, read-only, damaged, gone).
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.url, self.place = database.url, database.place

    @staticmethod
    def open(storage: str = DEFAULT_STORAGE, *, create: bool = False) -> Store:
        """Opens the database at `storage` (URL or path), brings its schema forward; makes it where `create`.

        A file is made with its folders; a PostgreSQL database is there already, and gets our tables where `create`.
        Raises StoreError, having written nothing, when there is none, when it is no database or another program's, when
        a server cannot be reached or refuses, or when a newer swinexplore wrote it.
        """
        return Store(Database.open(storage, create=create))

    def close(self) -> None:
        """Closes all connections."""
        self.database.close()

    @property
    def engine_options(self) -> dict[str, Any]:
        """What SQLAlchemy's `create_engine` is to be given beside `url`, as Optuna's `engine_kwargs`."""
        return engine_options(self.url)

    def alone(self, study: str) -> AbstractContextManager[None]:
        """Holds a study against other processes while the context lasts; raises StoreError while another has it.

        The lock goes with the process. It holds among the processes of one machine and temporary folder for a file, among
        all machines for PostgreSQL.
        """
        return self.database.alone(study)

    # -- facts ---------------------------------------------------------------------------------------------------------

    def latency(self, arch_id: str, target_id: str) -> Latency | None:
        """The latency of an architecture on a target, if measured."""
        with self.database.reading() as connection:
            return facts.find_latency(connection, arch_id, target_id)

    def score(self, key: ScoreKey) -> Score | None:
        """The score under `key`, if trained; also from a longer training with that recipe which was evaluated then."""
        with self.database.reading() as connection:
            return facts.find_score(connection, key)

    def epochs_kept(self, key: ScoreKey) -> int:
        """The most epochs below the key's after which the same training has a score; 0 where it has none."""
        with self.database.reading() as connection:
            return facts.find_epochs(connection, key)

    def failure(self, key: str) -> Failure | None:
        """Why the fact under `key` is missing, if a step failed."""
        with self.database.reading() as connection:
            return facts.find_failure(connection, key)

    def divergence(self, key: ScoreKey) -> Failure | None:
        """That the training under `key` diverged, after as many epochs or fewer."""
        with self.database.reading() as connection:
            return facts.find_divergence(connection, key)

    def failures(self, study: str | None = None) -> list[tuple[Arch, Failure]]:
        """The failures of a study's members in their order, or all by their time, each with its architecture."""
        with self.database.reading() as connection:
            return facts.failures(connection, study)

    def arch(self, arch_id: str) -> Arch:
        """The architecture with this id, or with the only id that starts so. Raises StoreError otherwise."""
        with self.database.reading() as connection:
            return facts.find_arch(connection, arch_id)

    def target(self, target_id: str) -> Target:
        """A target by its id; it is there for every latency and study. Raises StoreError otherwise."""
        with self.database.reading() as connection:
            return facts.find_target(connection, target_id)

    def recipe(self, recipe_id: str) -> dict[str, Any]:
        """The fields of a recipe by its id; it is there for every score and study. Raises StoreError otherwise."""
        with self.database.reading() as connection:
            return facts.find_recipe(connection, recipe_id)

    def measured(self, target_id: str) -> list[tuple[Arch, float]]:
        """Every architecture with a valid latency on a target, and that latency in milliseconds."""
        with self.database.reading() as connection:
            return facts.measured(connection, target_id)

    def scored(self, recipe_id: str, data_id: str, seed: int, epochs: int) -> set[str]:
        """Ids of the proxy architectures for which `score` would find one."""
        with self.database.reading() as connection:
            return facts.scored(connection, ScoreKey("", recipe_id, data_id, epochs, seed))

    def mean_seconds(self, target_id: str, recipe_id: str) -> tuple[float | None, float | None]:
        """Mean seconds of a latency step on this target and of one epoch with this recipe, None where none is kept."""
        with self.database.reading() as connection:
            return facts.mean_seconds(connection, target_id, recipe_id)

    def add_latency(self, arch: Arch, target: Target, latency: Latency) -> None:
        """Keeps a latency with its architecture and target; what is there already stays, unless it is invalid.

        A valid one ends the failure to measure it: members of any study that failed so are `pending` from now on.
        """
        with self.database.writing() as connection:
            facts.add_arch(connection, arch)
            facts.add_target(connection, target)
            facts.add_latency(connection, latency)

    def add_score(self, proxy: Arch, recipe_fields: dict[str, Any], score: Score) -> None:
        """Keeps a score with its proxy architecture and recipe; what is there already stays.

        It ends failures to train so far: members of any study that failed so are `pending` from now on.
        """
        with self.database.writing() as connection:
            facts.add_arch(connection, proxy)
            facts.add_recipe(connection, score.recipe_id, recipe_fields)
            facts.add_score(connection, score)

    def add_failure(self, arch: Arch, failure: Failure) -> Failure:
        """Keeps why a fact is missing, and returns what is kept.

        The first failure under a key counts as one attempt. A later one replaces it and counts one more where it may have
        been the machine's fault; a lasting failure stays as it is.
        """
        with self.database.writing() as connection:
            facts.add_arch(connection, arch)
            return facts.add_failure(connection, failure)

    def forget_failures(self, keys: Iterable[str]) -> int:
        """Forgets failures, attempts included; members that failed so are `pending`. Returns how many there were."""
        with self.database.writing() as connection:
            return facts.drop_failures(connection, keys)

    # -- studies -------------------------------------------------------------------------------------------------------

    def add_study(self, study: StudyRecord, base: Arch, target: Target, recipe_fields: dict[str, Any]) -> None:
        """Keeps a new study; an existing one of that name is left as it is but counts as the latest from now on.

        Of an existing study only the settings are replaced, where `study` has any.
        """
        with self.database.writing() as connection:
            facts.add_arch(connection, base)
            facts.add_target(connection, target)
            facts.add_recipe(connection, study.recipe_id, recipe_fields)
            studies.add_study(connection, study)

    def studies(self) -> list[StudyRecord]:
        """All studies, the latest used first."""
        with self.database.reading() as connection:
            return studies.all_studies(connection)

    def study(self, name: str | None = None) -> StudyRecord:
        """The study of this name, or the latest. Raises StoreError that lists the names."""
        known = self.studies()
        if name is None and known:
            return known[0]
        for study in known:
            if study.name == name:
                return study
        names = ", ".join(study.name for study in known) or "none yet"
        raise StoreError(f"study: {name or 'no study'!r} is not in this database; there are: {names}")

    def add_member(
        self, study: str, candidate: Candidate, key: ScoreKey, *, spent_epochs: int = 0, spent_s: float = 0.0
    ) -> None:
        """Notes that a study holds a candidate and what became of it; `key` says which scores are its own.

        `key.epochs`: how many were reached; `key.seed`: the first of as many seeds as the candidate has scores. A
        candidate evaluated anew keeps its position, and what it cost is added to what it has cost before.
        """
        with self.database.writing() as connection:
            facts.add_arch(connection, candidate.arch)
            studies.add_member(connection, study, candidate, key, spent_epochs=spent_epochs, spent_s=spent_s)

    def set_in_work(self, study: str, arch_id: str, key: ScoreKey | None) -> None:
        """Notes for which score a member is being trained by a process that nobody watches; None: no more.

        `add_member` ends it too.
        """
        with self.database.writing() as connection:
            studies.set_in_work(connection, study, arch_id, "" if key is None else str(key))

    def count_deaths(self, study: str, message: str, at: str) -> list[Failure]:
        """Trainings that were noted and are not any more: a `crash` more for each whose score is missing. Returns these."""
        with self.database.writing() as connection:
            return [
                facts.add_failure(connection, Failure(arch_id, key, "crash", message, at))
                for arch_id, key in studies.take_in_work(connection, study)
                if not facts.is_known(connection, key)
            ]

    def candidates(self, study: StudyRecord) -> list[Candidate]:
        """All candidates of a study with their facts, in the order they were first taken up."""
        with self.database.reading() as connection:
            return studies.candidates(connection, study)

    def add_front(self, front: FrontRecord) -> None:
        """Keeps the front of a study after so many architectures; the last one at that number counts."""
        with self.database.writing() as connection:
            studies.add_front(connection, front)

    def fronts(self, study: str) -> list[FrontRecord]:
        """The history of a study's front, one record for every change."""
        with self.database.reading() as connection:
            return studies.fronts(connection, study)

    def add_verification(self, verification: Verification) -> None:
        """Keeps a verification of a study's member; a later one under the same key replaces it."""
        with self.database.writing() as connection:
            studies.add_verification(connection, verification)

    def verifications(self, study: str) -> list[Verification]:
        """Everything verified of a study, the oldest first."""
        with self.database.reading() as connection:
            return studies.verifications(connection, study)

    def delete_study(self, name: str) -> None:
        """Forgets a study, its members, fronts and verifications; the facts stay for others."""
        with self.database.writing() as connection:
            connection.execute(schema.searches.delete().where(schema.searches.c.name == name))
