"""PowerDNS: two servers with the sqlite3 backend; zones and records by pdnsutil, in turn."""

import subprocess

from harness import Cluster, check, free_port, run, until

SCHEMA = "/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql"


def options(node):
    return [f"--config-dir={node.folder}", "--config-name=none"]


def pdnsutil(node, *words):
    return run(["pdnsutil", *options(node), *words])


def records(node, zone):
    lines = pdnsutil(node, "list-zone", zone).splitlines()
    return sorted(line for line in lines if not line.startswith("$") and "SOA" not in line)


with Cluster(2) as cluster:
    one, two = cluster.nodes
    with open(SCHEMA, encoding="utf-8") as file:
        schema = file.read()
    for node in cluster.nodes:
        node.query("PRAGMA journal_mode = WAL")
        run(["sqlite3", node.database], input=schema)
        (node.folder / "pdns-none.conf").write_text(
            f"launch=gsqlite3\ngsqlite3-database={node.database}\n"
            f"gsqlite3-pragma-foreign-keys=yes\ngsqlite3-dnssec=yes\nlocal-address=127.0.0.1\n"
            f"local-port={free_port()}\nsocket-dir={node.folder}\nsecurity-poll-suffix=\n")
        node.start()
    pdnsutil(one, "create-zone", "example.org", "ns1.example.org")
    cluster.until_same()
    pdnsutil(two, "add-record", "example.org", "www", "A", "192.0.2.1")
    cluster.until_same()
    pdnsutil(one, "add-record", "example.org", "www", "A", "192.0.2.2")
    cluster.until_same()
    with cluster.outage():
        pdnsutil(one, "replace-rrset", "example.org", "www", "A", "192.0.2.9")
        pdnsutil(one, "set-meta", "example.org", "ALLOW-AXFR-FROM", "AUTO-NS")
        pdnsutil(one, "secure-zone", "example.org")
    rows = cluster.until_same()
    wanted = records(one, "example.org")
    check(any("192.0.2.9" in line for line in wanted), True, f"the new record in {wanted}")
    check(records(two, "example.org"), wanted, "records of node 2")
    for node in cluster.nodes:
        pdnsutil(node, "check-zone", "example.org")
    pdnsutil(two, "delete-zone", "example.org")
    until("the zone is gone", lambda: "example.org" not in pdnsutil(one, "list-all-zones"))
    cluster.until_equal("SELECT * FROM records", 0)
    cluster.stop()
    version = subprocess.run(["pdnsutil", "--version"], capture_output=True, text=True, check=False)
    said = (version.stdout + version.stderr).split()[-1].strip("()")
    print(f"PowerDNS {said}, two nodes in turn, {rows} rows alike, a zone made, signed and deleted")
