"""Nodes around one nats-server, for applications that are run for real.

Each application is a file here that imports this one, prints one line of what it saw, and raises
(check, until) where that is wrong. The configuration of a node has what every node needs, and
nothing for the application.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

PATIENCE = 60


def until(what, attempt):
    """Tries until the result is true; returns it."""
    deadline = time.monotonic() + PATIENCE
    error = None
    while time.monotonic() < deadline:
        try:
            if result := attempt():
                return result
        except (sqlite3.Error, OSError) as e:
            error = e
        time.sleep(0.05)
    raise AssertionError(f"in vain: {what}" + (f": {error}" if error else ""))


def check(found, expected, what):
    if found != expected:
        raise AssertionError(f"{what}: {found!r}, not {expected!r}")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run(command, **options):
    """Runs a command to its end; what it said."""
    done = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **options
    )
    if done.returncode:
        raise AssertionError(f"{command} ends with {done.returncode}: {done.stdout[-3000:]}")
    return done.stdout


class Node:
    """A folder with a database, a configuration and, while it runs, the daemon."""

    def __init__(self, cluster, number):
        self.number = number
        self.port = cluster.port
        self.folder = cluster.folder / f"node-{number}"
        self.folder.mkdir()
        self.log = self.folder / "log"
        self.process = None
        self.configure(self.folder / "app.db")

    def configure(self, database, lines=()):
        """Where the application has its database, and lines of configuration for it."""
        self.database = database
        (self.folder / "config.toml").write_text(
            f"db_path = '{database}'\nnode_id = {self.number}\n"
            + "".join(f"{line}\n" for line in lines)
            + "[replication_log]\nmax_entries = 100000\n"
            f"[nats]\nurls = ['nats://127.0.0.1:{self.port}']\n"
        )

    def inspect(self):
        """What `harmonylite inspect` says of the database."""
        command = [os.environ["HARMONYLITE_BIN"], "inspect", "-json"]
        command += ["-config", self.folder / "config.toml"]
        with open(os.devnull, "wb") as nowhere:
            said = subprocess.run(command, stdout=subprocess.PIPE, stderr=nowhere, check=False)
        return json.loads(said.stdout)

    def replicated(self):
        tables = self.inspect()["tables"]
        return sorted(t["table"] for t in tables if t["part"] == "replicated")

    def copy_to(self, other):
        """The other begins with this one's database, as `.backup` makes it."""
        theirs, ours = sqlite3.connect(other.database), sqlite3.connect(self.database)
        ours.backup(theirs)
        theirs.close()
        ours.close()

    def start(self):
        command = [os.environ["HARMONYLITE_BIN"], "-config", self.folder / "config.toml"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def stop(self):
        if self.process:
            self.process.terminate()
            code = self.process.wait(PATIENCE)
            self.process = None
            check(code, 0, f"exit code of node {self.number}")

    def save_snapshot(self):
        before = self.said().count("because it was asked for")
        self.process.send_signal(signal.SIGUSR1)
        until("a snapshot is made", lambda: self.said().count("because it was asked for") > before)

    def query(self, sql, *values):
        # A daemon that looks for a snapshot to begin with must not find an empty file.
        mode = "rw" if self.process else "rwc"
        connection = sqlite3.connect(f"file:{self.database}?mode={mode}", timeout=10, uri=True)
        try:
            with connection:
                return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def said(self):
        return self.log.read_text() if self.log.exists() else ""


class Cluster:
    """To be used in a `with`: everything ends and goes with it."""

    def __init__(self, nodes):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="harmonylite-apps-"))
        self.port = free_port()
        self.start_broker()
        self.nodes = []
        for _ in range(nodes):
            self.add()

    def start_broker(self):
        server = [os.environ["HARMONYLITE_NATS_SERVER"], "-js", "-a", "127.0.0.1"]
        server += ["-p", str(self.port), "-sd", str(self.folder / "nats")]
        self.broker = subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @contextlib.contextmanager
    def outage(self):
        """The broker is away for the time of a `with`."""
        self.broker.kill()
        self.broker.wait()
        yield
        self.start_broker()

    def add(self):
        node = Node(self, len(self.nodes) + 1)
        self.nodes.append(node)
        return node

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for node in self.nodes:
            if error:
                print(f"--- log of {node.number}:\n{node.said()}", file=sys.stderr)
            if node.process:
                node.process.kill()
                node.process.wait()
        self.broker.kill()
        self.broker.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def until_equal(self, sql, count):
        """Waits until a query gives the same rows on all nodes, so many of them."""

        def equal():
            rows = [node.query(sql) for node in self.nodes]
            return len(rows[0]) == count and all(r == rows[0] for r in rows)

        until(f"{sql} gives the same {count} rows", equal)

    def until_same(self):
        """Waits until all that is replicated is the same on all nodes; how many rows that are."""
        tables = self.nodes[0].replicated()
        for node in self.nodes[1:]:
            check(node.replicated(), tables, f"tables of node {node.number} that are replicated")

        def rows(node, table):
            name = table.replace('"', '""')
            return sorted(map(repr, node.query(f'SELECT * FROM "{name}"')))

        def same():
            count = 0
            for table in tables:
                first, *others = [rows(node, table) for node in self.nodes]
                for other in others:
                    if other != first:
                        odd = set(first) ^ set(other)
                        raise OSError(f"{table} differs: {sorted(odd)[:4]}"[:900])
                count += len(first)
            return count

        return until("all tables are the same", same)

    def stop(self, known="\0"):
        """Stops all nodes: their files are whole, and no error was said but known ones."""
        for node in self.nodes:
            check(node.query("PRAGMA integrity_check"), [("ok",)], "integrity")
            check(node.query("PRAGMA foreign_key_check"), [], "dangling rows")
            node.stop()
            errors = [line for line in node.said().splitlines() if " ERROR " in line]
            errors = [line for line in errors if known not in line]
            check(errors, [], f"errors of node {node.number}")


def javascript(text, *words, **options):
    """Runs a program with the npm packages of the application."""
    store = os.environ["APP_STORE"]
    environment = {**os.environ, "NODE_PATH": f"{store}/node_modules", "NO_COLOR": "1"}
    return run(["node", "-e", text, *words], env=environment, **options)


def npm_version(package):
    store = pathlib.Path(os.environ["APP_STORE"])
    return json.loads((store / "node_modules" / package / "package.json").read_text())["version"]


def migrate_songs(cluster, migrate):
    """Each node is brought from step to step by a tool: `migrate(node, step)`, forward and back.

    1: song(id TEXT PRIMARY KEY, title TEXT); 2: also year INTEGER DEFAULT 1965; 3: title is NOT
    NULL and UNIQUE. Rows are written on either side all the time, and while the broker is away.
    """
    one, two = cluster.nodes
    insert = "INSERT INTO song(id, title) VALUES (?, ?)"
    for node in cluster.nodes:
        node.query("PRAGMA journal_mode = WAL")
        migrate(node, 1)
        node.start()
    for node in cluster.nodes:
        node.query(insert, f"{node.number}", f"Help {node.number}")
    cluster.until_equal("SELECT id, title FROM song ORDER BY id", 2)

    migrate(one, 2)
    one.query("INSERT INTO song(id, title, year) VALUES ('3', 'Michelle', 1966)")
    two.query("UPDATE song SET title = 'Help!' WHERE id = '1'")
    until("it is there", lambda: one.query("SELECT 1 FROM song WHERE title = 'Help!'"))
    migrate(two, 2)
    cluster.until_equal("SELECT id, title, year FROM song ORDER BY id", 3)

    with cluster.outage():
        for node in cluster.nodes:
            node.query(insert, f"b{node.number}", f"before {node.number}")
            migrate(node, 3)
            node.query(insert, f"c{node.number}", f"after {node.number}")
    two.query("DELETE FROM song WHERE id = '2'")
    cluster.until_equal("SELECT id, title, year FROM song ORDER BY id", 6)

    # Values of a column that is dropped and made again may differ, as the guide says.
    one.query("UPDATE song SET year = 1965")
    cluster.until_equal("SELECT id, title, year FROM song WHERE year = 1965 ORDER BY id", 6)
    for turn, step in enumerate([2, 1, 2, 3]):
        for node in cluster.nodes:
            migrate(node, step)
            name = f"{turn}-{node.number}"
            node.query(insert, name, name)
        cluster.until_equal("SELECT id, title FROM song ORDER BY id", 8 + 2 * turn)
    rows = cluster.until_same()
    cluster.stop()
    return f"two nodes, forward, back and forward, also over an outage, {rows} rows alike"
