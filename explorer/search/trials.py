"""A study's trials in Optuna's tables, which the sampler's record and optuna-dashboard are read from."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from explorer.arch import Arch
from explorer.records import Candidate
from explorer.search.sampling import DIRECTIONS, Proposal, distributions
from explorer.space import Space
from explorer.store import BUSY_TIMEOUT_S, Store

METRIC_NAMES = ["accuracy", "latency_ms"]
#: Values and constraints of a trial.
Told = tuple[tuple[float, float], dict[str, float]]


class Trials:
    """The study's trials in Optuna's tables: one for every architecture that is or was in work."""

    def __init__(self, store: Store, name: str, space: Space) -> None:
        self.space = space
        with quiet_optuna():
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

    def close_stale(self, members: dict[str, Candidate], told: Callable[[Candidate], Told]) -> list[Arch]:
        """Closes the trials that a killed search left running: complete where the study holds the candidate already,
        failed otherwise. Returns the architectures in work then and not evaluated since.
        """
        unfinished: dict[str, Arch] = {}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.FAIL)):
            arch = self.space.arch(trial.params)
            if arch.id not in members:
                unfinished[arch.id] = arch
            if trial.state == TrialState.RUNNING and arch.id in members:
                self._finish(trial._trial_id, *told(members[arch.id]))
            elif trial.state == TrialState.RUNNING:
                self.study.tell(trial.number, state=TrialState.FAIL)
        return list(unfinished.values())

    @contextmanager
    def running(self, proposal: Proposal) -> Iterator[Callable[[tuple[float, float], dict[str, float]], None]]:
        """A RUNNING trial while the body evaluates; the body calls what it is given with values and constraints."""
        template = create_trial(
            state=TrialState.RUNNING,
            params=proposal.point,
            distributions=distributions(self.space),
            user_attrs={"arch_id": proposal.arch.id},
        )
        trial_id = self.storage.create_new_trial(self.study_id, template_trial=template)

        try:
            yield lambda values, constraints: self._finish(trial_id, values, constraints)
        except BaseException:
            with contextlib.suppress(UpdateFinishedTrialError):  # interrupted just after it was finished
                self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
            raise

    def _finish(self, trial_id: int, values: tuple[float, float], constraints: dict[str, float]) -> None:
        if any(value > 0 for value in constraints.values()):
            trial = optuna.Trial(self.study, trial_id)
            for name, value in constraints.items():
                trial.set_constraint(name, value)
        self.storage.set_trial_state_values(trial_id, TrialState.COMPLETE, values)


def storage_of(store: Store) -> RDBStorage:
    """Optuna's view of the store's database."""
    return RDBStorage(store.url, engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT_S}})


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna's own log lines would break the live display; named metrics are marked experimental."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
