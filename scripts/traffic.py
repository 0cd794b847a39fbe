#!/usr/bin/env python3
"""Counts the bytes of nodes at proxies before one nats-server; prints tables.

scripts/traffic.sh runs it.
"""

import pathlib
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

from local_nats import start_server, until

DAEMON, SERVER, MINUTES, PACE = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
DAY = 86400

# Keys of the configuration besides the default, per row of the first table.
IDLE = {
    "the default": "",
    "`status_interval = 0`": "status_interval = 0\n",
    "`[edge] heartbeat = 60000`": "[edge]\nheartbeat = 60000\n",
    "`[edge] heartbeat = 240000`": "[edge]\nheartbeat = 240000\n",
}


class Proxy:
    """Passes connections on to the server, or closes them if there is none, and counts."""

    def __init__(self, server):
        self.server, self.up, self.down, self.connections = server, 0, 0, 0
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            self.connections += 1
            if self.server is None:
                client.close()
                continue
            server = socket.create_connection(self.server.rsplit(":", 1))
            for source, sink, way in ((client, server, "up"), (server, client, "down")):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self.copy, args=(source, sink, way), daemon=True).start()

    def copy(self, source, sink, way):
        try:
            while data := source.recv(65536):
                with self.lock:
                    setattr(self, way, getattr(self, way) + len(data))
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def bytes(self):
        with self.lock:
            return self.up, self.down


class Node:
    def __init__(self, folder, name, number, proxy, cluster, keys=""):
        self.folder = folder / name
        self.folder.mkdir()
        self.proxy = proxy
        self.database = sqlite3.connect(
            self.folder / "app.db", timeout=30, isolation_level=None, check_same_thread=False)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value)")
        config = self.folder / "config.toml"
        top, _, sections = keys.partition("[")
        config.write_text(
            f"db_path = '{self.folder / 'app.db'}'\nnode_id = {number}\n{top}"
            + (f"[{sections}" if sections else "")
            + f"[nats]\nurls = ['nats://{proxy.address}']\n"
            f"stream_prefix = '{cluster}'\nsubject_prefix = '{cluster}-log'\n"
        )
        with open(self.folder / "log", "wb") as log:
            command = [DAEMON, "-config", str(config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def log(self):
        return (self.folder / "log").read_text()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.database.close()


def idle(folder, server, running):
    nodes = {}
    for number, (what, keys) in enumerate(IDLE.items(), 1):
        nodes[what] = Node(folder, f"idle-{number}", number, Proxy(server), f"c{number}", keys)
        running.append(nodes[what])
    away = Node(folder, "away", 9, Proxy(None), "c9")
    running.append(away)
    for node in nodes.values():
        until(lambda: "made, because" in node.log(), "the first snapshot")
    time.sleep(30)  # the first entry of the status, and the last words about the snapshot
    before = {what: node.proxy.bytes() for what, node in nodes.items()}
    tried = away.proxy.connections
    time.sleep(MINUTES * 60)
    print(f"| idle for {MINUTES:g} minutes, scaled to a day "
          "| sent KB | received KB | together MB |")
    print("|---|---|---|---|")
    for what, node in nodes.items():
        up, down = (now - then for now, then in zip(node.proxy.bytes(), before[what]))
        up, down = (count * DAY / (MINUTES * 60) / 1000 for count in (up, down))
        print(f"| {what} | {up:.0f} | {down:.0f} | {(up + down) / 1000:.2f} |")
    tried = away.proxy.connections - tried
    print(f"\nA broker that is away: {tried} connections in {MINUTES:g} minutes.\n", flush=True)


def rows(folder, server, running):
    pair = [Node(folder, f"row-{n}", n, Proxy(server), "rows") for n in (1, 2)]
    running.extend(pair)
    for node in pair:
        until(lambda: "connected to NATS, publishing" in node.log(), "a connection")
    writer, reader = (node.database for node in pair)
    value = random.Random(1)  # what compresses as little as names and numbers do

    def has(database, row):
        return database.execute("SELECT 1 FROM item WHERE id = ?", (row,)).fetchone() is not None

    def write(first, count, at_once):
        for row in range(first, first + count, at_once):
            values = [(row + i, f"{value.getrandbits(400):0100x}") for i in range(at_once)]
            writer.execute("BEGIN IMMEDIATE")
            writer.executemany("INSERT INTO item VALUES (?, ?)", values)
            writer.execute("COMMIT")
            time.sleep(PACE)
        until(lambda: has(reader, first + count - 1), f"row {first + count - 1}")

    write(0, 1, 1)
    print("| 100-byte rows | writer sends | writer receives | reader sends | reader receives |")
    print("|---|---|---|---|---|")
    for what, first, count, at_once in (
        ("one a transaction", 1000, 400, 1), ("100 a transaction", 2000, 10000, 100)
    ):
        before = [node.proxy.bytes() for node in pair]
        write(first, count, at_once)
        time.sleep(1)
        cells = [
            f"{(now - then) / count:.0f}"
            for node, start in zip(pair, before) for now, then in zip(node.proxy.bytes(), start)
        ]
        print(f"| {what}, bytes a row | {' | '.join(cells)} |", flush=True)


def main():
    running = []
    with tempfile.TemporaryDirectory(prefix="traffic-") as name:
        folder = pathlib.Path(name)
        server, address = start_server(SERVER, folder)
        try:
            rows(folder, address, running)
            if MINUTES > 0:
                print()
                idle(folder, address, running)
        finally:
            for node in running:
                node.stop()
            server.terminate()
            server.wait()


main()
