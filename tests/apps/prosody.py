"""Prosody: accounts in a table without a primary key, made by prosodyctl on two nodes in turn."""

from harness import Cluster, check, run

CONFIG = """
run_as_root = true
pidfile = "{folder}/prosody.pid"
data_path = "{folder}"
modules_enabled = {{ "saslauth" }}
storage = "sql"
sql = {{ driver = "SQLite3", database = "{database}" }}
authentication = "internal_hashed"
VirtualHost "localhost"
"""


def prosodyctl(node, *words, **options):
    return run(["prosodyctl", "--config", str(node.folder / "prosody.cfg.lua"), *words], **options)


def users(node):
    rows = node.query('SELECT DISTINCT "user" FROM prosody WHERE store = ? ORDER BY 1', "accounts")
    return [user for (user,) in rows]


with Cluster(2) as cluster:
    one, two = cluster.nodes
    for node in cluster.nodes:
        text = CONFIG.format(folder=node.folder, database=node.database)
        (node.folder / "prosody.cfg.lua").write_text(text)
    prosodyctl(one, "register", "ann", "localhost", "prosody-secret")
    one.copy_to(two)
    danger = "without a primary key, rows go by rowid"
    check(any(danger in text for text in one.inspect()["dangers"]), True, danger)
    for node in cluster.nodes:
        node.start()
    for node, name in [(two, "bob"), (one, "cleo"), (two, "dan")]:
        prosodyctl(node, "register", name, "localhost", "prosody-secret")
        cluster.until_same()
    with cluster.outage():
        prosodyctl(one, "register", "ann", "localhost", "another-secret")
        prosodyctl(one, "unregister", "bob", "localhost")
    rows = cluster.until_same()
    for node in cluster.nodes:
        check(users(node), ["ann", "cleo", "dan"], "accounts")
    cluster.stop()
    said = next(word for word in run(["prosodyctl", "about"]).split() if word[0].isdigit())
    print(f"Prosody {said}, two nodes in turn, {rows} rows alike")
