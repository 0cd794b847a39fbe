"""sqlite-utils: its command line on both nodes: insert, upsert, transform, a full-text index."""

import json
import os
import sys

# This file has the name of the package.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.remove(HERE)
import sqlite_utils  # noqa: E402,F401

sys.path.append(HERE)
from importlib.metadata import version  # noqa: E402

from harness import Cluster, check, run, until  # noqa: E402


def utils(node, word, *words, **options):
    command = [sys.executable, "-m", "sqlite_utils", word, str(node.database), *words]
    return run(command, **options)


def insert(node, *words, **row):
    utils(node, "insert", "song", "-", "--pk", "id", *words, input=json.dumps(row))


def found(node, word):
    rows = json.loads(utils(node, "search", "song", word))
    return sorted(row["id"] for row in rows)


with Cluster(2) as cluster:
    one, two = cluster.nodes
    for node in cluster.nodes:
        utils(node, "create-table", "song", "id", "text", "title", "text", "year", "text",
              "--pk", "id")
        utils(node, "enable-wal")
        utils(node, "enable-fts", "song", "title", "--create-triggers")
        node.configure(node.database, node.inspect()["configuration"])
        node.start()
    insert(one, id="1", title="Help", year="1965")
    insert(two, id="2", title="Yesterday", year="1965")
    cluster.until_same()
    insert(two, "--replace", id="1", title="Help again", year="1966")
    for node in cluster.nodes:
        until("it is found", lambda: found(node, "help") == ["1"])
        until("it is found", lambda: found(node, "again") == ["1"])

    # A rebuild on each, and writes before and after, while the broker is away.
    with cluster.outage():
        for node in cluster.nodes:
            insert(node, id=f"b{node.number}", title="before", year="1967")
            utils(node, "transform", "song", "--type", "year", "integer", "--not-null", "title")
            utils(node, "enable-fts", "song", "title", "--create-triggers", "--replace")
            insert(node, id=f"a{node.number}", title="after", year=1968)
    cluster.until_equal("SELECT id, title, year FROM song ORDER BY id", 6)
    two.query("DELETE FROM song WHERE id = 'b1'")
    cluster.until_equal("SELECT typeof(year), * FROM song ORDER BY id", 5)
    rows = cluster.until_same()
    for node in cluster.nodes:
        until("found on both", lambda: found(node, "after") == ["a1", "a2"])
        until("found no more", lambda: found(node, "before") == ["b2"])
        check(found(node, "yesterday"), ["2"], "found")
    # `transform` drops the triggers with the old table, and enable-fts makes them again.
    cluster.stop("but the database has no such trigger")
    print(f"sqlite-utils {version('sqlite-utils')}, two nodes, {rows} rows, each found on both")
