"""MLflow: two tracking stores; each node upgrades its own, runs and metrics are logged on both."""

import os
import sys

# This file has the name of the package.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.remove(HERE)
import mlflow  # noqa: E402
from mlflow import MlflowClient  # noqa: E402

sys.path.append(HERE)
from harness import Cluster, check, run, until  # noqa: E402

STEPS = 20


def uri(node):
    return f"sqlite:///{node.database}"


def client(node):
    return MlflowClient(tracking_uri=uri(node))


def log(node, experiment, name):
    """A run as training code logs it; its id."""
    of = client(node)
    identity = of.create_run(experiment, run_name=name, tags={"node": str(node.number)}).info.run_id
    of.log_param(identity, "rate", "0.1")
    for step in range(STEPS):
        of.log_metric(identity, "loss", 1.0 / (step + 1), step=step)
    of.set_terminated(identity)
    return identity


with Cluster(2) as cluster:
    one, two = cluster.nodes
    for node in cluster.nodes:
        node.query("PRAGMA journal_mode = WAL")
        run([sys.executable, "-m", "mlflow", "db", "upgrade", uri(node)])
        client(node).search_experiments()  # makes the first one
    for node in cluster.nodes:
        node.start()
    experiment = client(one).create_experiment("songs")
    until("the experiment is there", lambda: client(two).get_experiment_by_name("songs"))
    runs = [log(node, experiment, f"of {node.number}") for node in cluster.nodes]
    cluster.until_same()
    with cluster.outage():
        runs += [log(node, experiment, f"alone {node.number}") for node in cluster.nodes]
        client(one).set_tag(runs[1], "seen", "by one")
        client(two).delete_run(runs[0])
    rows = cluster.until_same()
    for node in cluster.nodes:
        of = client(node)
        check(len(of.search_runs([experiment])), 3, "runs that are not deleted")
        check(of.get_run(runs[1]).data.tags["seen"], "by one", "a tag from elsewhere")
        check(len(of.get_metric_history(runs[3], "loss")), STEPS, "metrics")
        run([sys.executable, "-m", "mlflow", "db", "upgrade", uri(node)])
    cluster.stop()
    print(f"MLflow {mlflow.__version__}, two nodes, {rows} rows alike, also over an outage")
