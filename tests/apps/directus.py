"""Directus: two servers from one database, the same collection made on each; items by its API."""

import contextlib
import json
import os
import pathlib
import subprocess
import urllib.error
import urllib.request
import uuid

from harness import Cluster, free_port, npm_version, run, until

STORE = pathlib.Path(os.environ["APP_STORE"])
CLI = STORE / "node_modules/directus/cli.js"
LOGIN = {"email": "a@example.com", "password": "directus-secret"}

# Each node's own: what its server noted of the requests that it served, under counted ids.
LINES = ["[tables]", 'local = ["directus_activity", "directus_revisions"]']

COLLECTION = {
    "collection": "song", "meta": {}, "schema": {},
    "fields": [
        {"field": "id", "type": "uuid", "meta": {"special": ["uuid"]},
         "schema": {"is_primary_key": True, "length": 36, "has_auto_increment": False}},
        {"field": "title", "type": "string", "meta": {}, "schema": {}},
    ],
}
YEAR = {"field": "year", "type": "integer", "meta": {}, "schema": {"default_value": 1965}}


class Server:
    """Directus on a node."""

    def __init__(self, node):
        self.node = node
        self.port = free_port()
        self.process = None
        self.token = None

    def environment(self):
        return {
            **os.environ, "HOST": "127.0.0.1", "PORT": str(self.port), "DB_CLIENT": "sqlite3",
            "DB_FILENAME": str(self.node.database), "SECRET": "secret", "KEY": "key",
            "ADMIN_EMAIL": LOGIN["email"], "ADMIN_PASSWORD": LOGIN["password"],
            "TELEMETRY": "false", "LOG_LEVEL": "warn", "CACHE_ENABLED": "false",
            "STORAGE_LOCAL_ROOT": str(self.node.folder / "uploads"),
            "EXTENSIONS_PATH": str(self.node.folder / "extensions"),
        }

    def cli(self, *words):
        return run(["node", CLI, *words], env=self.environment(), cwd=self.node.folder)

    def start(self):
        with (self.node.folder / "directus.log").open("a") as log:
            self.process = subprocess.Popen(
                ["node", CLI, "start"], env=self.environment(), cwd=self.node.folder,
                stdout=log, stderr=log)
        until("Directus answers", lambda: self.ask("GET", "/server/ping", raw=True) == "pong")
        self.token = self.ask("POST", "/auth/login", LOGIN)["access_token"]

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait()

    def ask(self, method, path, body=None, raw=False):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, data, timeout=30) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error}: {error.read()[:500]}") from error
        return text if raw else json.loads(text)["data"] if text else None

    def add(self, title, **more):
        item = {"id": str(uuid.uuid4()), "title": title, **more}
        return self.ask("POST", "/items/song", item)["id"]

    def titles(self):
        return sorted(item["title"] for item in self.ask("GET", "/items/song?limit=-1"))


with Cluster(2) as cluster, contextlib.ExitStack() as stack:
    servers = [Server(node) for node in cluster.nodes]
    one, two = servers
    for server in servers:
        stack.callback(server.stop)
    one.cli("bootstrap")
    one.node.copy_to(two.node)
    for server in servers:
        server.node.configure(server.node.database, LINES)
        server.node.start()
        server.start()
    for server in servers:
        server.ask("POST", "/collections", COLLECTION)
    ids = [server.add(f"of {server.node.number}") for server in servers]
    for server in servers:
        until("both items", lambda: server.titles() == ["of 1", "of 2"])
    one.ask("PATCH", f"/items/song/{ids[1]}", {"title": "by one"})
    with cluster.outage():
        two.add("alone 2")
        one.ask("DELETE", f"/items/song/{ids[0]}")
        for server in servers:
            server.ask("POST", "/fields/song", YEAR)
        one.add("alone 1", year=2000)
    wanted = ["alone 1", "alone 2", "by one"]
    for server in servers:
        until(f"{wanted} on {server.node.number}", lambda: server.titles() == wanted)
    cluster.until_equal("SELECT * FROM song ORDER BY id", 3)
    one.ask("POST", "/users", {"email": "b@example.com", "password": "another-secret",
                               "first_name": "Ann"})
    until("the user is there", lambda: len(two.ask("GET", "/users")) == 2)
    rows = cluster.until_same()
    for server in servers:
        server.stop()
    cluster.stop()
    said = npm_version("directus")
    print(f"Directus {said}, two nodes, collections made on each, {rows} rows alike")
