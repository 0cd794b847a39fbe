#!/usr/bin/env python3
"""Many nodes on one machine around one nats-server; prints a row of scripts/fleet.sh's table."""

import os
import pathlib
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

from local_nats import start_server, until

DAEMON, SERVER, COUNT, WRITES = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
TICK = os.sysconf("SC_CLK_TCK")


class Node:
    def __init__(self, folder, number, address):
        self.folder = folder / str(number)
        self.folder.mkdir()
        self.database = self.folder / "app.db"
        config = self.folder / "config.toml"
        config.write_text(
            f"db_path = '{self.database}'\nnode_id = {number}\n"
            f"[nats]\nurls = ['nats://{address}']\n[replication_log]\nmax_entries = 100000\n"
        )
        self.arguments = [DAEMON, "-config", str(config)]
        self.process = self.connection = None

    def start(self):
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(self.arguments, stdout=log, stderr=log)

    def open(self):
        self.connection = sqlite3.connect(self.database, timeout=30, isolation_level=None)

    def has(self, row):
        try:
            found = self.connection.execute("SELECT 1 FROM item WHERE id = ?", (row,))
            return found.fetchone() is not None
        except sqlite3.OperationalError:
            return False  # the table is not there yet

    def cpu_seconds(self):
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text()
        fields = stat.rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def rss_mb(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0


def arrives(nodes, row):
    """Seconds until the row is on all of the nodes, from now."""
    began, left = time.monotonic(), list(nodes)

    def is_everywhere():
        left[:] = [node for node in left if not node.has(row)]
        return not left

    until(is_everywhere, f"row {row} on {len(left)} node(s)")
    return time.monotonic() - began


def measure(folder, nodes):
    first = nodes[0]
    first.open()
    first.connection.execute("PRAGMA journal_mode = WAL")
    first.connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value)")
    first.connection.execute("INSERT INTO item VALUES (0, 'a')")
    first.start()
    until(lambda: "made, because" in (first.folder / "log").read_text(), "the first snapshot")
    joining = []
    for node in nodes[1:]:
        began = time.monotonic()
        node.start()
        until(node.database.exists, "a database")
        node.open()
        until(lambda: node.has(0), "the first row")
        joining.append(time.monotonic() - began)
    arrives(nodes, 0)
    for row in range(1, 1 + len(nodes)):  # the first of each node
        nodes[row % len(nodes)].connection.execute("INSERT INTO item VALUES (?, 'a')", (row,))
        arrives(nodes, row)
    before, times = sum(node.cpu_seconds() for node in nodes), []
    for row in range(1000, 1000 + WRITES):
        nodes[row % len(nodes)].connection.execute("INSERT INTO item VALUES (?, 'a')", (row,))
        times.append(arrives(nodes, row) * 1000)
        time.sleep(0.02)
    cpu = (sum(node.cpu_seconds() for node in nodes) - before) * 1000 / WRITES / len(nodes)
    rss = statistics.mean(node.rss_mb() for node in nodes)
    times.sort()
    p99 = times[min(len(times) - 1, len(times) * 99 // 100)]
    print(f"| {len(nodes)} | {statistics.median(times):.1f} | {p99:.1f} "
          f"| {statistics.median(joining):.2f} | {max(joining):.2f} | {cpu:.2f} | {rss:.1f} |",
          flush=True)


def main():
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        folder = pathlib.Path(name)
        server, address = start_server(SERVER, folder)
        nodes = [Node(folder, number, address) for number in range(1, 1 + COUNT)]
        try:
            measure(folder, nodes)
        finally:
            running = [node.process for node in nodes if node.process]
            for process in running:
                process.send_signal(signal.SIGTERM)
            for process in running:
                process.wait()
            server.terminate()
            server.wait()


main()
