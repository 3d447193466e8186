"""When a search has had enough: trials, hours, epochs, patience. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from explorer.errors import UserError


@dataclass(frozen=True)
class Budget:
    """What a search may cost. None sets no limit.

    `trials`: different architectures that the study holds in the end. `max_hours`: of this run; nothing is begun that would
    not be done by then, by what steps cost so far. `epochs`: of proxy training, over all runs of the study. `patience`: the
    search ends when the hypervolume has not moved for so many architectures.
    """

    trials: int
    max_hours: float | None = None
    epochs: int | None = None
    patience: int | None = None

    def check(self) -> None:
        """Raises UserError for what is no budget."""
        for name, value in (("trials", self.trials), ("epochs_budget", self.epochs), ("patience", self.patience)):
            if value is not None and value < 1:
                raise UserError(f"{name}: {value} is not a whole number of at least 1")
        if self.max_hours is not None and not self.max_hours > 0:
            raise UserError(f"max_hours: {self.max_hours} is not a number above 0")

    def spent(self, *, hours: float, next_hours: float, epochs: int) -> str | None:
        """Why nothing more should be begun, None where something may.

        `hours`: since the run began; `next_hours`: what the next step is expected to take; `epochs`: trained so far.
        """
        if self.max_hours is not None and hours + next_hours > self.max_hours:
            expected = f"; the next step would take about {next_hours:.2g} h" if hours < self.max_hours else ""
            return f"stopped after {hours:.2g} of {self.max_hours:g} hours{expected}"
        if self.epochs is not None and epochs >= self.epochs:
            return f"stopped: {epochs} epochs trained, the budget was {self.epochs}"
        return None

    def plateau(self, still: int) -> str | None:
        """Why no new architecture should be asked for, when `still` were evaluated since the hypervolume moved."""
        if self.patience is not None and still >= self.patience:
            return f"stopped: the hypervolume has not moved for {still} architectures"
        return None
