"""Nodes around one nats-server, for applications that are run for real.

Each application is a file here that imports this one, prints one line of what it saw, and raises
(check, until) where that is wrong. The configuration of a node has what every node needs, and
nothing for the application.
"""

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
        self.folder = cluster.folder / f"node-{number}"
        self.folder.mkdir()
        self.database = self.folder / "app.db"
        self.log = self.folder / "log"
        self.process = None
        (self.folder / "config.toml").write_text(
            f"db_path = '{self.database}'\nnode_id = {number}\n"
            "[replication_log]\nmax_entries = 100000\n"
            f"[nats]\nurls = ['nats://127.0.0.1:{cluster.port}']\n"
        )

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
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        server = [os.environ["HARMONYLITE_NATS_SERVER"], "-js", "-a", "127.0.0.1"]
        server += ["-p", str(self.port), "-sd", str(self.folder / "nats")]
        self.broker = subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.nodes = []
        for _ in range(nodes):
            self.add()

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
