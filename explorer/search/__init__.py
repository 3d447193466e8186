"""The search: proposes architectures, has them evaluated, keeps the study. The only package that imports Optuna.

Optuna's tables hold one trial per different architecture, for the sampler's record and for optuna-dashboard; the facts
and the study's members are the store's. A killed search leaves at most one RUNNING trial: the next start closes it and
takes its architecture up first.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout

from explorer import pareto
from explorer.arch import Arch
from explorer.errors import StoreError, TrialError, UserError
from explorer.evaluate import Evaluator, Plan, Step
from explorer.records import Candidate, Epoch, FrontRecord, StudyRecord, digest
from explorer.search.sampling import SAMPLERS, Proposal, Proposer, told_constraints
from explorer.search.trials import Trials, quiet_optuna, storage_of
from explorer.space import Space
from explorer.store import Store

logger = logging.getLogger(__name__)

MAX_NAME = 200
#: The front's hypervolume is counted up to this multiple of the base model's latency.
REFERENCE_FACTOR = 2.0

__all__ = ["SAMPLERS", "Progress", "check_run", "delete", "describe_identity", "run", "study_name"]


ProgressKind = Literal["start", "step", "detail", "epoch", "trial", "end", "interrupted"]


@dataclass(frozen=True)
class Progress:
    """What a search reports. `trial` events carry the candidate, `step`, `detail` and `epoch` events the architecture in work.

    `message`: of `detail`, what a measurement is doing; of `end`, what a reader should know.

    `num_done` of `num_asked` architectures are in the study; `front` holds the ids on the front; `seconds_left` is None
    until something has been timed.
    """

    kind: ProgressKind
    study: str
    num_done: int
    num_asked: int
    arch: Arch | None = None
    step: Step | None = None
    epoch: Epoch | None = None
    candidate: Candidate | None = None
    best_accuracy: float | None = None
    best_latency_ms: float | None = None
    front: tuple[str, ...] = ()
    seconds_left: float | None = None
    message: str = ""


def describe_identity(space: Space, plan: Plan) -> dict[str, Any]:
    """What makes a study this study and no other, as JSON-ready values: space, proxy, target, recipe and data."""
    identity = {"space": {"base": space.base.name, **space.describe()}, **plan.identity()}
    copy: dict[str, Any] = json.loads(json.dumps(identity))
    return copy


def study_name(space: Space, plan: Plan) -> str:
    """The name that a study gets by itself: the same for the same identity, another for another."""
    fingerprint = digest("", describe_identity(space, plan))[1:7]
    return f"{space.name}-{plan.target.backend}-{plan.target.precision}-b{plan.target.batch}-{fingerprint}"


def check_run(
    space: Space, plan: Plan, store: Store | None, *, trials: int, sampler: str, study: str | None
) -> StudyRecord:
    """The record of the study that `run` would make or take up; `store` is None where there is no database yet.

    Writes nothing. Raises UserError for bad numbers and names, StoreError when the study was made with another identity.
    """
    if trials < 1:
        raise UserError(f"trials: {trials} is not a whole number of at least 1")
    if sampler not in SAMPLERS:
        raise UserError(f"sampler: {sampler!r} is not known; allowed: {', '.join(SAMPLERS)}")
    if study is not None and not 0 < len(study.strip()) <= MAX_NAME:
        raise UserError(f"study: {study!r} is no name; give 1 to {MAX_NAME} characters")
    record = StudyRecord(
        name=study or study_name(space, plan),
        identity=describe_identity(space, plan),
        target_id=plan.target.id,
        recipe_id=plan.recipe.id,
        data_id=plan.data.id,
        base_id=space.base.id,
        seed=plan.seed,
    )
    if store is not None:
        require_same_identity(store, record)
    return record


def run(
    space: Space,
    evaluator: Evaluator,
    store: Store,
    *,
    trials: int,
    sampler: str = "tpe",
    study: str | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> StudyRecord:
    """Evaluates architectures until the study holds `trials` different ones, or the whole space.

    Takes up an existing study of the same name; raises what `check_run` raises, and DataError before anything is written.
    KeyboardInterrupt ends it cleanly and goes through: everything finished is kept.
    """
    plan = evaluator.plan
    record = check_run(space, plan, store, trials=trials, sampler=sampler, study=study)
    evaluator.prepare(space.base)
    with _alone(store, record.name):
        _require_not_foreign(store, record.name)
        store.add_study(record, space.base, plan.target, plan.recipe.model_dump())
        _Search(space, evaluator, store, record, min(trials, space.architectures), sampler, on_progress).run()
    return record


def require_same_identity(store: Store, record: StudyRecord) -> None:
    """Raises StoreError that names the differences where a study of that name was made with another identity."""
    known = [study for study in store.studies() if study.name == record.name]
    differences = list(_differences(known[0].identity, record.identity)) if known else []
    if differences:
        raise StoreError(
            f"study: {record.name!r} was made with another setting: {'; '.join(differences)}; give another --study, or the "
            "same space, target, recipe and data"
        )


def delete(store: Store, name: str) -> None:
    """Forgets a study in Optuna's tables and ours; its facts stay.

    Raises StoreError when there is none, or while another process searches it.
    """
    store.study(name)
    with _alone(store, name), quiet_optuna():
        storage = storage_of(store)
        if name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        store.delete_study(name)


@contextmanager
def _alone(store: Store, name: str) -> Iterator[None]:
    """Holds the study against other processes of this machine; raises StoreError while one has it.

    A second search would take the first one's trial in work for a stale one. The lock goes with the process.
    """
    database = str(Path(store.url.removeprefix("sqlite:///")).resolve())
    path = Path(tempfile.gettempdir()) / f"swinexplore-{digest('study', {'database': database, 'study': name})}.lock"
    lock = FileLock(path, mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StoreError(f"study: {name!r} is being searched by another process; wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()


def _require_not_foreign(store: Store, name: str) -> None:
    """Raises StoreError where Optuna's tables hold a study of this name that is not ours."""
    if name in [study.name for study in store.studies()]:
        return
    with quiet_optuna():
        if name in optuna.get_all_study_names(storage_of(store)):
            raise StoreError(
                f"study: {name!r} is another program's Optuna study in this database; give another --study"
            )


class _Search:
    """One run of one study."""

    def __init__(
        self,
        space: Space,
        evaluator: Evaluator,
        store: Store,
        record: StudyRecord,
        num_asked: int,
        sampler: str,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.space, self.evaluator, self.store, self.record = space, evaluator, store, record
        self.num_asked, self.sampler, self.on_progress = num_asked, sampler, on_progress
        self.trials = Trials(store, record.name, space)
        self.candidates = {candidate.arch.id: candidate for candidate in store.candidates(record)}
        fronts = store.fronts(record.name)
        self.front: tuple[str, ...] = fronts[-1].arch_ids if fronts else ()
        self.seconds: list[float] = []

    def run(self) -> None:
        self.keep_front()
        self.report("start")
        try:
            self.proposer = Proposer(
                self.space,
                self.sampler,
                self.evaluator.plan.seed,
                [c for c in self.candidates.values() if not self.is_open(c)],
                self.evaluator.plan.max_latency_ms,
            )
            unfinished = self.trials.close_stale(self.candidates, self.told)
            if self.space.point(self.space.base) is None:
                self.measure_base()
            for arch in self.first(unfinished):
                proposal = self.proposer.given(arch)
                if proposal is not None and (arch.id in self.candidates or len(self.candidates) < self.num_asked):
                    self.evaluate(proposal)
            while len(self.candidates) < self.num_asked and (proposal := self.proposer.propose()) is not None:
                self.evaluate(proposal)
        except KeyboardInterrupt:
            self.report("interrupted")
            raise
        self.report("end", message="; ".join(self.last_words()))

    def last_words(self) -> list[str]:
        """What a reader should know in the end."""
        words = []
        if len(self.candidates) >= self.space.architectures:
            words.append("every architecture of the space has been evaluated")
        invalid = [c.latency.invalid for c in self.candidates.values() if c.latency is not None and c.latency.invalid]
        if invalid:
            words.append(
                f"invalid and not on the front: {len(invalid)} latenc{'y' if len(invalid) == 1 else 'ies'} (the last: "
                f"{invalid[-1]}); the same command measures them again"
            )
        return words

    def is_open(self, candidate: Candidate) -> bool:
        """Whether a candidate was stopped by a latency limit that no longer stops it, or its latency is to be measured again."""
        limit, latency_ms = self.evaluator.plan.max_latency_ms, candidate.latency_ms
        if candidate.failure is not None:
            return candidate.failure.is_passing
        if candidate.latency is not None and candidate.latency.invalid:
            return True
        return candidate.outcome == "gated" and (limit is None or (latency_ms is not None and latency_ms <= limit))

    def first(self, unfinished: list[Arch]) -> list[Arch]:
        """What comes before the sampler's proposals: work in flight when the search ended, then the known networks."""
        reopened = [candidate.arch for candidate in self.candidates.values() if self.is_open(candidate)]
        new = [arch for arch in (*unfinished, *self.space.known_networks()) if arch.id not in self.candidates]
        return list({arch.id: arch for arch in (*reopened, *new)}.values())

    def measure_base(self) -> None:
        """The base model's latency, which others are compared with, where the space itself does not hold the base."""
        try:
            self.evaluator.latency(
                self.space.base,
                self.store,
                lambda step: self.report("step", arch=self.space.base, step=step),
                lambda text: self.report("detail", arch=self.space.base, step="measuring", message=text),
            )
        except TrialError as error:
            logger.warning("the base model %s has no latency: %s", self.space.base.name, error)

    def evaluate(self, proposal: Proposal) -> None:
        arch, start = proposal.arch, time.perf_counter()
        with self.trials.running(proposal) as finish:
            candidate = self.evaluator.evaluate(
                arch,
                self.store,
                lambda step: self.report("step", arch=arch, step=step),
                lambda epoch: self.report("epoch", arch=arch, step="training", epoch=epoch),
                lambda text: self.report("detail", arch=arch, step="measuring", message=text),
            )
            self.store.add_member(self.record.name, candidate, self.evaluator.plan.score_key(arch))
            self.candidates[arch.id] = candidate
            self.proposer.learn(candidate)
            finish(*self.told(candidate))
        if candidate.reused < 2:
            self.seconds.append(time.perf_counter() - start)
        self.keep_front()
        self.report("trial", arch=arch, candidate=candidate)

    def told(self, candidate: Candidate) -> tuple[tuple[float, float], dict[str, float]]:
        """Values and constraints of a candidate's trial."""
        limit = self.evaluator.plan.max_latency_ms
        return self.proposer.told_values(candidate), told_constraints(candidate, limit)

    def keep_front(self) -> None:
        """Stores the front where it has changed."""
        complete = self.complete()
        accuracies, latencies = [c.accuracy or 0.0 for c in complete], [c.latency_ms or 0.0 for c in complete]
        front = tuple(complete[index].arch.id for index in pareto.front(accuracies, latencies))
        if front and front != self.front:
            base = self.store.latency(self.record.base_id, self.record.target_id)
            is_known = base is not None and not base.invalid
            reference_ms = REFERENCE_FACTOR * (base.latency_ms if base is not None and is_known else latencies[0])
            volume = pareto.hypervolume(accuracies, latencies, reference_ms=reference_ms)
            self.store.add_front(FrontRecord(self.record.name, len(self.candidates), front, volume, reference_ms))
            self.front = front

    def complete(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates.values() if candidate.may_stand_on_front]

    def report(self, kind: ProgressKind, **details: Any) -> None:
        complete = self.complete()
        left = self.num_asked - len(self.candidates)
        seconds_left = max(0, left) * sum(self.seconds) / len(self.seconds) if self.seconds else None
        progress = Progress(
            kind="start",
            study=self.record.name,
            num_done=len(self.candidates),
            num_asked=self.num_asked,
            best_accuracy=max((c.accuracy for c in complete if c.accuracy is not None), default=None),
            best_latency_ms=min((c.latency_ms for c in complete if c.latency_ms is not None), default=None),
            front=self.front,
            seconds_left=seconds_left,
        )
        self.on_progress(replace(progress, kind=kind, **details))


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """`space.depth3: [10, 12] there, [10] here` for every leaf that differs."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            yield from _differences(there.get(key), here.get(key), f"{path}.{key}" if path else key)
    elif there != here:
        yield f"{path}: {there!r} there, {here!r} here"
