"""dbmate: each node migrates by itself, up and down; its dump begins another database."""

import os
import pathlib
import stat

from harness import Cluster, check, run, until

DBMATE = pathlib.Path(os.environ["APP_STORE"]) / "bin/dbmate"
DBMATE.chmod(DBMATE.stat().st_mode | stat.S_IXUSR)

MIGRATIONS = {
    "1_songs": ("CREATE TABLE song(id TEXT PRIMARY KEY, title TEXT)", "DROP TABLE song"),
    "2_year": ("ALTER TABLE song ADD COLUMN year INTEGER DEFAULT 1965",
               "ALTER TABLE song DROP COLUMN year"),
    "3_key": ("CREATE TABLE tmp_song(id TEXT, part INTEGER NOT NULL DEFAULT 1, title TEXT NOT NULL,"
              " year INTEGER, PRIMARY KEY(id, part));\n"
              "INSERT INTO tmp_song(id, title, year) SELECT id, title, year FROM song;\n"
              "DROP TABLE song;\nALTER TABLE tmp_song RENAME TO song",
              "CREATE TABLE tmp_song(id TEXT PRIMARY KEY, title TEXT, year INTEGER);\n"
              "INSERT INTO tmp_song SELECT id, title, year FROM song;\n"
              "DROP TABLE song;\nALTER TABLE tmp_song RENAME TO song"),
}


def dbmate(node, *words):
    return run([DBMATE, "--no-dump-schema", "-u", f"sqlite:{node.database}",
                "-d", node.folder / "migrations", *words])


def give(node, name):
    up, down = MIGRATIONS[name]
    text = f"-- migrate:up\n{up};\n\n-- migrate:down\n{down};\n"
    (node.folder / "migrations" / f"{name}.sql").write_text(text)


def book(node):
    return [v for (v,) in node.query("SELECT version FROM schema_migrations ORDER BY 1")]


with Cluster(2) as cluster:
    one, two = cluster.nodes
    for node in cluster.nodes:
        (node.folder / "migrations").mkdir()
        give(node, "1_songs")
        node.query("PRAGMA journal_mode = WAL")
        dbmate(node, "up")
        node.start()
    one.query("INSERT INTO song VALUES ('1', 'Help')")
    two.query("INSERT INTO song VALUES ('2', 'Yesterday')")
    cluster.until_equal("SELECT * FROM song ORDER BY id", 2)

    give(one, "2_year")
    dbmate(one, "up")
    one.query("INSERT INTO song VALUES ('3', 'Michelle', 1966)")
    two.query("UPDATE song SET title = 'Help!' WHERE id = '1'")
    until("it is there", lambda: one.query("SELECT 1 FROM song WHERE title = 'Help!'"))
    check((book(one), book(two)), (["1", "2"], ["1"]), "books between the migrations")
    give(two, "2_year")
    dbmate(two, "up")
    cluster.until_equal("SELECT * FROM song ORDER BY id", 3)

    # Another key, while the broker is away, and a write on either side of it.
    with cluster.outage():
        for node in cluster.nodes:
            node.query("INSERT INTO song(id, title) VALUES (?, 'before')", f"b{node.number}")
            give(node, "3_key")
            dbmate(node, "up")
            node.query("INSERT INTO song(id, title) VALUES (?, 'after')", f"a{node.number}")
    cluster.until_equal("SELECT id, part, title, year FROM song ORDER BY id", 7)
    one.query("DELETE FROM song WHERE id = '2'")
    cluster.until_equal("SELECT id, part, title, year FROM song ORDER BY id", 6)
    for node in cluster.nodes:
        dbmate(node, "down")
        check(book(node), ["1", "2"], f"book of node {node.number}")
    cluster.until_equal("SELECT id, title, year FROM song ORDER BY id", 6)
    rows = cluster.until_same()
    cluster.stop()
    said = run([DBMATE, "--version"]).split()[-1]
    print(f"dbmate {said}, two nodes, up and down, another key over an outage, {rows} rows alike")
