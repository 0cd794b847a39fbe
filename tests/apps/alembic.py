"""Alembic: each node upgrades by itself, and back; what rebuilds a table does so on each."""

import os
import sys

# This file has the name of the package.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.remove(HERE)
import alembic  # noqa: E402
from alembic import command  # noqa: E402
from alembic.config import Config  # noqa: E402

sys.path.append(HERE)
from harness import Cluster, check, until  # noqa: E402

ENV = """
from alembic import context
from sqlalchemy import create_engine
engine = create_engine(context.config.get_main_option("sqlalchemy.url"),
                       connect_args={"timeout": 20})
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""

REVISION = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = {revision!r}, {down!r}

def upgrade():
{up}

def downgrade():
{back}
"""

REVISIONS = [
    ("a1", None,
     "    op.create_table('song', sa.Column('id', sa.String, primary_key=True),\n"
     "                    sa.Column('title', sa.String))",
     "    op.drop_table('song')"),
    ("b2", "a1",
     "    op.add_column('song', sa.Column('year', sa.Integer, server_default='1965'))",
     "    op.drop_column('song', 'year')"),
    ("c3", "b2",
     "    with op.batch_alter_table('song') as table:\n"
     "        table.alter_column('title', nullable=False)\n"
     "        table.create_unique_constraint('song_title', ['title'])",
     "    with op.batch_alter_table('song') as table:\n"
     "        table.drop_constraint('song_title')\n"
     "        table.alter_column('title', nullable=True)"),
]


def project(node):
    versions = node.folder / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions.parent / "env.py").write_text(ENV)
    for revision, down, up, back in REVISIONS:
        text = REVISION.format(revision=revision, down=down, up=up, back=back)
        (versions / f"{revision}.py").write_text(text)
    config = Config()
    config.set_main_option("script_location", str(versions.parent))
    config.set_main_option("sqlalchemy.url", f"sqlite:///{node.database}")
    return config


def version(node):
    return [revision for (revision,) in node.query("SELECT version_num FROM alembic_version")]


SONGS = "SELECT id, title FROM song ORDER BY id"

with Cluster(2) as cluster:
    configs = {node: project(node) for node in cluster.nodes}
    one, two = cluster.nodes
    for node in cluster.nodes:
        node.query("PRAGMA journal_mode = WAL")
        command.upgrade(configs[node], "a1")
        node.start()
    one.query("INSERT INTO song VALUES ('1', 'Help')")
    two.query("INSERT INTO song VALUES ('2', 'Yesterday')")
    cluster.until_equal(SONGS, 2)

    command.upgrade(configs[one], "b2")
    one.query("INSERT INTO song VALUES ('3', 'Michelle', 1966)")
    two.query("INSERT INTO song VALUES ('4', 'Girl')")
    until("the other has it", lambda: one.query("SELECT 1 FROM song WHERE id = '4'"))
    check((version(one), version(two)), (["b2"], ["a1"]), "books between the migrations")
    command.upgrade(configs[two], "b2")
    cluster.until_equal("SELECT * FROM song ORDER BY id", 4)

    for number, target in enumerate(["c3", "b2", "a1", "c3"]):
        for node in cluster.nodes:
            move = command.downgrade if target < version(node)[0] else command.upgrade
            move(configs[node], target)
            check(version(node), [target], f"book of node {node.number}")
        for node in cluster.nodes:
            name = f"{number}-{target}-{node.number}"
            node.query("INSERT INTO song(id, title) VALUES (?, ?)", name, name)
        cluster.until_equal(SONGS, 6 + 2 * number)
    cluster.until_equal("SELECT * FROM song ORDER BY id", 12)
    for node in cluster.nodes:
        tables = "SELECT name FROM sqlite_schema WHERE name GLOB '_alembic_tmp_*'"
        check(node.query(tables), [], "what is left of a rebuild")
        check(node.query("PRAGMA integrity_check"), [("ok",)], "integrity")
        node.stop()
    named = "table alembic_version is local, not replicated: Alembic"
    check([named in node.said() for node in cluster.nodes], [True] * 2, named)
    print(f"Alembic {alembic.__version__}, two nodes, upgraded, downgraded and upgraded")
