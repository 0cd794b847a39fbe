"""Drizzle: `drizzle-kit generate` and `migrate` on each node by itself, forward alone."""

import os
import shutil

from harness import Cluster, check, npm_version, run, until

STORE = os.environ["APP_STORE"]
TABLES = {
    1: 'title: text("title")',
    2: 'title: text("title"), year: integer("year").default(1965)',
    3: 'title: text("title").notNull().unique(), year: integer("year").default(1965)',
}
SCHEMA = """
const {{ sqliteTable, text, integer }} = require("drizzle-orm/sqlite-core");
exports.song = sqliteTable("song", {{ id: text("id").primaryKey(), {columns} }});
"""
CONFIG = """
module.exports = {{ dialect: "sqlite", schema: "./schema.js", out: "./drizzle",
  tablesFilter: ["!__harmonylite__*"], dbCredentials: {{ url: "file:{database}" }} }};
"""


def kit(node, *words):
    environment = {**os.environ, "NODE_PATH": f"{STORE}/node_modules", "CI": "1"}
    command = ["node", f"{STORE}/node_modules/drizzle-kit/bin.cjs", *words]
    return run(command, env=environment, cwd=node.folder)


def generate(node, step):
    (node.folder / "schema.js").write_text(SCHEMA.format(columns=TABLES[step]))
    kit(node, "generate", "--name", f"step{step}")


def migrate(node):
    if node.number != 1:
        shutil.rmtree(node.folder / "drizzle", ignore_errors=True)
        shutil.copytree(cluster.nodes[0].folder / "drizzle", node.folder / "drizzle")
    kit(node, "migrate")


INSERT = "INSERT INTO song(id, title) VALUES (?, ?)"

with Cluster(2) as cluster:
    one, two = cluster.nodes
    for node in cluster.nodes:
        os.symlink(f"{STORE}/node_modules", node.folder / "node_modules")
        (node.folder / "drizzle.config.js").write_text(CONFIG.format(database=node.database))
        node.query("PRAGMA journal_mode = WAL")
    generate(one, 1)
    for node in cluster.nodes:
        migrate(node)
        node.start()
    for node in cluster.nodes:
        node.query(INSERT, f"{node.number}", f"Help {node.number}")
    cluster.until_equal("SELECT * FROM song ORDER BY id", 2)

    generate(one, 2)
    migrate(one)
    one.query(INSERT, "3", "Michelle")
    two.query("UPDATE song SET title = 'Help!' WHERE id = '1'")
    until("it is there", lambda: one.query("SELECT 1 FROM song WHERE title = 'Help!'"))
    migrate(two)
    cluster.until_equal("SELECT id, title, year FROM song ORDER BY id", 3)

    generate(one, 3)  # a rebuild
    with cluster.outage():
        for node in cluster.nodes:
            node.query(INSERT, f"b{node.number}", f"before {node.number}")
            migrate(node)
            node.query(INSERT, f"c{node.number}", f"after {node.number}")
    two.query("DELETE FROM song WHERE id = '2'")
    cluster.until_equal("SELECT * FROM song ORDER BY id", 6)

    # `push` compares with the database itself, and must leave alone what is ours.
    (one.folder / "schema.js").write_text(SCHEMA.format(columns=TABLES[2]))
    shutil.copy(one.folder / "schema.js", two.folder / "schema.js")
    for node in cluster.nodes:
        kit(node, "push", "--force")
        node.query(INSERT, f"d{node.number}", "pushed")
    cluster.until_equal("SELECT id, title, year FROM song ORDER BY id", 8)
    for node in cluster.nodes:
        check(node.query("SELECT count(*) FROM __drizzle_migrations"), [(3,)], "the book")
    rows = cluster.until_same()
    cluster.stop()
    said = npm_version("drizzle-kit")
    print(f"Drizzle's kit {said}, two nodes, generate, migrate and push, {rows} rows alike")
