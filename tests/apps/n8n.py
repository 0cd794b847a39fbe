"""n8n: two nodes from one database; workflows and credentials by its command line."""

import json
import os
import pathlib

from harness import Cluster, check, npm_version, run

STORE = pathlib.Path(os.environ["APP_STORE"])
CLI = STORE / "node_modules/n8n/bin/n8n"


def n8n(node, *words):
    environment = {
        **os.environ, "N8N_USER_FOLDER": str(node.folder), "DB_TYPE": "sqlite",
        "DB_SQLITE_DATABASE": node.database.name, "DB_SQLITE_ENABLE_WAL": "true",
        "DB_SQLITE_POOL_SIZE": "2", "N8N_ENCRYPTION_KEY": "the same on all nodes",
        "N8N_DIAGNOSTICS_ENABLED": "false", "N8N_RUNNERS_ENABLED": "false",
        "N8N_ENFORCE_SETTINGS_FILE_PERMISSIONS": "false", "N8N_EXPRESSION_ENGINE": "legacy",
    }
    return run(["node", CLI, *words], env=environment, cwd=node.folder)


def add(node, identity, name):
    flow = {"id": identity, "name": name, "active": False, "connections": {}, "settings": {},
            "nodes": [{"id": f"n-{identity}", "name": "Begin", "position": [0, 0],
                       "type": "n8n-nodes-base.manualTrigger", "typeVersion": 1,
                       "parameters": {}}]}
    file = node.folder / f"{identity}.json"
    file.write_text(json.dumps([flow]))
    n8n(node, "import:workflow", f"--input={file}")


def add_credential(node, identity):
    file = node.folder / f"c-{identity}.json"
    file.write_text(json.dumps([{"id": identity, "name": identity, "type": "httpBasicAuth",
                                 "data": {"user": "a", "password": "n8n-secret"}}]))
    n8n(node, "import:credentials", f"--input={file}")


def names(node):
    n8n(node, "export:workflow", "--all", f"--output={node.folder}/out.json")
    flows = json.loads((node.folder / "out.json").read_text())
    return sorted(flow["name"] for flow in flows)


with Cluster(2) as cluster:
    one, two = cluster.nodes
    for node in cluster.nodes:
        (node.folder / ".n8n").mkdir()
        node.configure(node.folder / ".n8n" / "database.sqlite")
    n8n(one, "list:workflow")  # migrates
    one.copy_to(two)
    for node in cluster.nodes:
        node.start()
    for node in cluster.nodes:
        add(node, f"w{node.number}", f"flow {node.number}")
        add_credential(node, f"k{node.number}")
    cluster.until_same()
    with cluster.outage():
        add(one, "w2", "flow 2, changed on one")
        add(two, "w3", "flow 3")
    rows = cluster.until_same()
    for node in cluster.nodes:
        check(names(node), ["flow 1", "flow 2, changed on one", "flow 3"], "workflows")
        n8n(node, "export:credentials", "--all", "--decrypted", f"--output={node.folder}/c.json")
        found = json.loads((node.folder / "c.json").read_text())
        check(sorted(c["id"] for c in found), ["k1", "k2"], "credentials")
    cluster.stop()
    print(f"n8n {npm_version('n8n')}, two nodes, workflows and credentials, {rows} rows alike")
