"""Tables and migrations of the store. Table names avoid Optuna's (studies, study_*, trials, trial_*, version_info,
alembic_version); the schema's version stands in `explorer_version`, apart from Optuna's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

#: Characters of a study's name at most.
MAX_NAME: Final = 200
metadata = sa.MetaData()
version = sa.Table("explorer_version", metadata, sa.Column("version", sa.Integer, nullable=False))
architectures = sa.Table(
    "architectures",
    metadata,
    sa.Column("arch_id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("windows", sa.JSON, nullable=False),
    sa.Column("shifts", sa.JSON, nullable=False),
    sa.Column("br", sa.Boolean, nullable=False),
    sa.Column("depth3", sa.Integer, nullable=False),
    sa.Column("depths", sa.JSON, nullable=False),
    sa.Column("embed_dim", sa.Integer, nullable=False),
    sa.Column("params_trainable", sa.BigInteger, nullable=False),
    sa.Column("params_deployed", sa.BigInteger, nullable=False),
    sa.Column("flops", sa.BigInteger, nullable=False),
    sa.Column("fields", sa.JSON, nullable=False),
)
targets = sa.Table(
    "targets",
    metadata,
    sa.Column("target_id", sa.String(32), primary_key=True),
    sa.Column("fields", sa.JSON, nullable=False),
)
latencies = sa.Table(
    "latencies",
    metadata,
    sa.Column("arch_id", sa.ForeignKey("architectures.arch_id"), primary_key=True),
    sa.Column("target_id", sa.ForeignKey("targets.target_id"), primary_key=True),
    sa.Column("latency_ms", sa.Float, nullable=False),
    sa.Column("p95_ms", sa.Float, nullable=False),
    sa.Column("min_ms", sa.Float, nullable=False),
    sa.Column("cv", sa.Float, nullable=False),
    sa.Column("num_samples", sa.Integer, nullable=False),
    sa.Column("window_medians_ms", sa.JSON, nullable=False),
    sa.Column("is_stable", sa.Boolean, nullable=False),
    sa.Column("prepare_s", sa.Float, nullable=False),
    sa.Column("measure_s", sa.Float, nullable=False),
    sa.Column("environment", sa.JSON, nullable=False),
    sa.Column("measured_at", sa.String(32), nullable=False),
    sa.Column("invalid", sa.Text, nullable=False, server_default=""),
    sa.Column("details", sa.JSON, nullable=False, server_default="{}"),
)
recipes = sa.Table(
    "recipes",
    metadata,
    sa.Column("recipe_id", sa.String(32), primary_key=True),
    sa.Column("fields", sa.JSON, nullable=False),
)
scores = sa.Table(
    "scores",
    metadata,
    sa.Column("arch_id", sa.ForeignKey("architectures.arch_id"), primary_key=True),
    sa.Column("recipe_id", sa.ForeignKey("recipes.recipe_id"), primary_key=True),
    sa.Column("data_id", sa.String(32), primary_key=True),
    sa.Column("epochs", sa.Integer, primary_key=True),
    sa.Column("seed", sa.BigInteger, primary_key=True),
    sa.Column("accuracy", sa.Float, nullable=False),
    sa.Column("train_s", sa.Float, nullable=False),
    sa.Column("curve", sa.JSON, nullable=False),
    sa.Column("environment", sa.JSON, nullable=False),
    sa.Column("trained_at", sa.String(32), nullable=False),
)
failures = sa.Table(
    "failures",
    metadata,
    sa.Column("key", sa.String(160), primary_key=True),
    sa.Column("arch_id", sa.ForeignKey("architectures.arch_id"), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("failed_at", sa.String(32), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("1")),
    sa.Column("diverged_at", sa.Integer),
)
searches = sa.Table(
    "searches",
    metadata,
    sa.Column("name", sa.String(MAX_NAME), primary_key=True),
    sa.Column("identity", sa.JSON, nullable=False),
    sa.Column("target_id", sa.ForeignKey("targets.target_id"), nullable=False),
    sa.Column("recipe_id", sa.ForeignKey("recipes.recipe_id"), nullable=False),
    sa.Column("data_id", sa.String(32), nullable=False),
    sa.Column("base_id", sa.ForeignKey("architectures.arch_id"), nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("used_at", sa.String(32), nullable=False),
    sa.Column("settings", sa.JSON, nullable=False, server_default="{}"),
)
members = sa.Table(
    "members",
    metadata,
    sa.Column("study", sa.ForeignKey("searches.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("arch_id", sa.ForeignKey("architectures.arch_id"), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("proxy_id", sa.String(32), nullable=False),
    sa.Column("epochs", sa.Integer, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("failure_key", sa.String(160), nullable=True),
    sa.Column("seeds", sa.Integer, nullable=False, server_default=sa.text("1")),
    sa.Column("spent_epochs", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("spent_s", sa.Float, nullable=False, server_default=sa.text("0")),
    sa.Column("in_work", sa.String(160), nullable=False, server_default=""),
    sa.Index("members_in_order", "study", "position"),
)
fronts = sa.Table(
    "fronts",
    metadata,
    sa.Column("study", sa.ForeignKey("searches.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("num_trials", sa.Integer, primary_key=True),
    sa.Column("arch_ids", sa.JSON, nullable=False),
    sa.Column("hypervolume", sa.Float, nullable=False),
    sa.Column("reference_ms", sa.Float, nullable=False),
)
verifications = sa.Table(
    "verifications",
    metadata,
    sa.Column("study", sa.ForeignKey("searches.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("arch_id", sa.ForeignKey("architectures.arch_id"), primary_key=True),
    sa.Column("key", sa.String(160), primary_key=True),
    sa.Column("fields", sa.JSON, nullable=False),
    sa.Column("verified_at", sa.String(32), nullable=False),
)


def _latencies_have_details(connection: Connection) -> None:
    """2: why a latency is invalid, and everything measured beside the median."""
    connection.exec_driver_sql("ALTER TABLE latencies ADD COLUMN invalid TEXT DEFAULT '' NOT NULL")
    connection.exec_driver_sql("ALTER TABLE latencies ADD COLUMN details JSON DEFAULT '{}' NOT NULL")


def _members_have_seeds(connection: Connection) -> None:
    """3: attempts at what failed, seeds and cost of members, settings of studies, verifications."""
    for column in (
        "failures ADD COLUMN attempts INTEGER DEFAULT 1 NOT NULL",
        "searches ADD COLUMN settings JSON DEFAULT '{}' NOT NULL",
        "members ADD COLUMN seeds INTEGER DEFAULT 1 NOT NULL",
        "members ADD COLUMN spent_epochs INTEGER DEFAULT 0 NOT NULL",
        "members ADD COLUMN spent_s FLOAT DEFAULT 0 NOT NULL",
    ):
        connection.exec_driver_sql(f"ALTER TABLE {column}")
    connection.exec_driver_sql("CREATE INDEX members_in_order ON members (study, position)")
    connection.exec_driver_sql(
        "CREATE TABLE verifications (study VARCHAR(200) NOT NULL, arch_id VARCHAR(32) NOT NULL, "
        "key VARCHAR(160) NOT NULL, fields JSON NOT NULL, verified_at VARCHAR(32) NOT NULL, "
        "PRIMARY KEY (study, arch_id, key), FOREIGN KEY(study) REFERENCES searches (name) ON DELETE CASCADE, "
        "FOREIGN KEY(arch_id) REFERENCES architectures (arch_id))"
    )


def _members_may_be_in_work(connection: Connection) -> None:
    """4: the key of the score for which a process trains that nobody watches."""
    connection.exec_driver_sql("ALTER TABLE members ADD COLUMN in_work VARCHAR(160) DEFAULT '' NOT NULL")


def _divergences_have_a_step(connection: Connection) -> None:
    """5: the step at which a training diverged, which its message told."""
    connection.exec_driver_sql("ALTER TABLE failures ADD COLUMN diverged_at INTEGER")
    diverged = sa.select(failures.c.key, failures.c.message).filter_by(kind="diverged")
    for key, message in connection.execute(diverged).all():
        told = re.search(r" (?:at|after) step (\d+) \(epoch ", message)
        if told is not None:
            connection.execute(failures.update().where(failures.c.key == key).values(diverged_at=int(told[1])))


#: From version 1 to 2, from 2 to 3 and so on. A new database gets today's tables and none of these; an old one is brought
#: forward by those it has not seen, and tests/test_store.py holds both to the same tables.
UPGRADES: Final[tuple[Callable[[Connection], None], ...]] = (
    _latencies_have_details,
    _members_have_seeds,
    _members_may_be_in_work,
    _divergences_have_a_step,
)
VERSION: Final = len(UPGRADES) + 1
