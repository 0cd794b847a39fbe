"""Litestream beside HarmonyLite, on both nodes: what it restores is equal, the WAL stays small."""

import glob
import os
import pathlib
import sqlite3
import stat
import subprocess
import time

from harness import Cluster, check, run, until

STORE = os.environ["APP_STORE"]
LITESTREAM = pathlib.Path(glob.glob(f"{STORE}/bin/litestream")[0])
LITESTREAM.chmod(LITESTREAM.stat().st_mode | stat.S_IXUSR)

WRITES = 200
WAL_LIMIT = 16 << 20
ITEMS = "SELECT * FROM item ORDER BY id"


def replica(node):
    return f"file://{node.folder}/replica"


with Cluster(2) as cluster:
    started = []
    try:
        for node in cluster.nodes:
            node.query("PRAGMA journal_mode = WAL")
            node.query("CREATE TABLE item(id TEXT PRIMARY KEY, v)")
            node.start()
            command = [LITESTREAM, "replicate", node.database, replica(node)]
            with (node.folder / "litestream.log").open("w") as log:
                started.append(subprocess.Popen(command, stdout=log, stderr=log))
        # One reader never ends.
        reader = sqlite3.connect(cluster.nodes[0].database)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM item").fetchone()
        for i in range(WRITES):
            writer = cluster.nodes[i % 4 == 3]
            writer.query("INSERT INTO item VALUES (?, hex(randomblob(200)))", f"{i:04}")
            time.sleep(0.02)
        cluster.until_equal(ITEMS, WRITES)
        wal = max(os.path.getsize(f"{node.database}-wal") for node in cluster.nodes)
        check(wal < WAL_LIMIT, True, f"a WAL of {wal} bytes is below {WAL_LIMIT}")
        reader.close()

        def restored(node):
            to = node.folder / "restored.db"
            for end in ("", "-wal", "-shm", "-txid"):
                pathlib.Path(f"{to}{end}").unlink(missing_ok=True)
            run([LITESTREAM, "restore", "-o", to, replica(node)])
            connection = sqlite3.connect(to)
            check(connection.execute("PRAGMA integrity_check").fetchall(), [("ok",)], "restored")
            rows = connection.execute(ITEMS).fetchall()
            connection.close()
            return rows

        for node in cluster.nodes:
            until("the replica has it all", lambda: restored(node) == node.query(ITEMS))
        for node in cluster.nodes:
            names = "SELECT name FROM sqlite_schema WHERE name GLOB '_litestream_*' ORDER BY 1"
            for (table,) in node.query(names):
                named = f"table {table} is local, not replicated: Litestream"
                until(named, lambda: named in node.said())
            check("WARN" in node.said(), False, "warnings")
            ours = ("SELECT count(*) FROM sqlite_schema"
                    " WHERE name GLOB '__harmonylite___litestream*'")
            check(node.query(ours), [(0,)], "what we have of Litestream's tables")
            node.stop()
    finally:
        for process in started:
            process.terminate()
            process.wait()
    count = len(cluster.nodes[0].query(names))
    said = run([LITESTREAM, "version"]).strip()
    print(f"Litestream {said}, {count} tables of its own, {WRITES} writes, a WAL of {wal >> 10} KB")
