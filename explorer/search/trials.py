"""A study's copy in Optuna's tables, for optuna-dashboard and Optuna's own tools.

One complete trial for every architecture whose evaluation has come to an end, a pruned one for those that the ladder had
stopped when the search ended; written in one transaction each, so that a killed search leaves none half done. The study
itself is the store's: its members are what a search goes on with, and what is missing here is added at the next start.
Optuna cannot change a finished trial: an architecture that goes on later (a higher latency limit, more seeds, a longer
ladder) gets a second one, and the last one counts.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from explorer.arch import Arch
from explorer.errors import StoreError
from explorer.records import Candidate
from explorer.search.sampling import DIRECTIONS, distributions
from explorer.space import Space
from explorer.store import Store

METRIC_NAMES = ["accuracy", "latency_ms"]
#: Values and constraints of a trial.
Told = tuple[tuple[float, float], dict[str, float]]


class Trials:
    """The study's trials in Optuna's tables. `told` says what stands there for a candidate."""

    def __init__(self, store: Store, name: str, space: Space, told: Callable[[Candidate], Told]) -> None:
        self.space, self.told, self.distributions = space, told, distributions(space)
        self.store = store
        with quiet_optuna(store):
            self.storage = storage_of(store)
            self.study = optuna.create_study(
                study_name=name,
                storage=self.storage,
                directions=DIRECTIONS,
                load_if_exists=True,
                sampler=RandomSampler(),
            )
            if self.study.metric_names is None:
                self.study.set_metric_names(METRIC_NAMES)
        self.study_id = self.storage.get_study_id_from_name(name)
        self.there: dict[str, str] = {}  # what the last trial of an architecture stands for

    def catch_up(self, candidates: dict[str, Candidate]) -> list[Arch]:
        """Adds what a killed search, or a merge, left out. Closes what an earlier version left running, and returns the
        architectures that were in work then and are not in the study.
        """
        unfinished = []
        with quiet_optuna(self.store):
            for trial in self.study.get_trials(deepcopy=False):
                if trial.state == TrialState.RUNNING:
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                    arch = self.space.arch(trial.params)
                    if arch.id not in candidates:
                        unfinished.append(arch)
                elif trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                    self.there[str(trial.user_attrs.get("arch_id"))] = str(trial.user_attrs.get("stands_for", ""))
        for candidate in candidates.values():
            # Trials of earlier versions do not say what they stand for, and stay.
            if is_settled(candidate) and self.there.get(candidate.arch.id, None) not in ("", _stands_for(candidate)):
                self.add(candidate)
        return unfinished

    def add_stopped(self, candidates: Iterable[Candidate]) -> None:
        """Pruned trials of those that the ladder had stopped, where there are none yet after so many epochs."""
        for candidate in candidates:
            if candidate.outcome == "stopped" and self.there.get(candidate.arch.id) != _stands_for(candidate):
                self.add(candidate)

    def add(self, candidate: Candidate) -> None:
        """One finished trial: complete, or pruned where the ladder stopped the candidate."""
        point = self.space.point(candidate.arch)
        if point is None:
            return
        values, constraints = self.told(candidate)
        is_stopped = candidate.outcome == "stopped"
        trial = create_trial(
            state=TrialState.PRUNED if is_stopped else TrialState.COMPLETE,
            values=None if is_stopped else values,
            params=dict(point),
            distributions=self.distributions,
            user_attrs=self._attributes(candidate),
            constraints=constraints if any(value > 0 for value in constraints.values()) else None,
        )
        with quiet_optuna(self.store):
            self.storage.create_new_trial(self.study_id, template_trial=trial)
        self.there[candidate.arch.id] = _stands_for(candidate)

    def close(self) -> None:
        """Lets go of the database."""
        _let_go(self.storage)

    def _attributes(self, candidate: Candidate) -> dict[str, Any]:
        attributes: dict[str, Any] = {"arch_id": candidate.arch.id, "stands_for": _stands_for(candidate)}
        if candidate.outcome == "stopped":
            attributes |= {"epochs": candidate.epochs, "accuracy": candidate.accuracy}
        return attributes


def _stands_for(candidate: Candidate) -> str:
    """What a trial says of a candidate, in short: another of these needs another trial."""
    return sys.intern(f"{candidate.outcome} {candidate.epochs or 0} epochs {len(candidate.scores)} seeds")


def is_settled(candidate: Candidate) -> bool:
    """Whether nothing more is to be done for a candidate by the search as it stands."""
    if candidate.outcome == "failed":
        return candidate.failure is None or not candidate.failure.is_passing
    is_valid = candidate.latency is not None and not candidate.latency.invalid
    return candidate.outcome in ("complete", "gated") and is_valid


def storage_of(store: Store) -> RDBStorage:
    """Optuna's view of the store's database."""
    return RDBStorage(store.url, engine_kwargs=store.engine_options)


@contextmanager
def opened(store: Store) -> Iterator[RDBStorage]:
    """Optuna's view for a moment: no connection stays. Raises StoreError for what it raises."""
    with quiet_optuna(store):
        storage = storage_of(store)
        try:
            yield storage
        finally:
            _let_go(storage)


def is_ours(storage: RDBStorage, name: str) -> bool:
    """Whether Optuna's tables hold a study of this name that a search wrote: its objectives, and architectures in all trials."""
    if name not in optuna.get_all_study_names(storage):
        return False
    study = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler())
    if [direction.name.lower() for direction in study.directions] != list(DIRECTIONS):
        return False
    if study.metric_names not in (None, METRIC_NAMES):  # None where a search was killed before it named them
        return False
    return all("arch_id" in trial.user_attrs for trial in study.get_trials(deepcopy=False))


def _let_go(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


@contextmanager
def quiet_optuna(store: Store) -> Iterator[None]:
    """Optuna's own log lines would break the live display; named metrics are marked experimental. Raises StoreError for
    what its storage raises.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    except (StorageInternalError, sa.exc.SQLAlchemyError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", cause)).strip().partition("\n")[0]
        raise StoreError(f"storage: {store.place}: Optuna's tables: {reason}; everything finished is kept") from error
    except RuntimeError as error:
        if "optuna storage upgrade" not in str(error) and "version" not in str(error):
            raise
        raise StoreError(
            f"storage: {store.place}: Optuna's tables are of another version of Optuna than {optuna.__version__}: {error}"
        ) from error
