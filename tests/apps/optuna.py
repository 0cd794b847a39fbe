"""Optuna: a study on two nodes, each adds trials in turn."""

import os
import sys

# This file has the name of the package.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.remove(HERE)
import optuna  # noqa: E402

sys.path.append(HERE)
from harness import Cluster, check, until  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.ERROR)
TRIALS = 5


def url(node):
    return f"sqlite:///{node.database}?timeout=20"


def optimize(node):
    study = optuna.load_study(study_name="song", storage=url(node))
    study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=TRIALS)


with Cluster(2) as cluster:
    one, two = cluster.nodes
    for node in cluster.nodes:
        node.query("PRAGMA journal_mode = WAL")
        optuna.storages.RDBStorage(url(node))
        node.start()
    optuna.create_study(study_name="song", storage=url(one))
    until("the study is there", lambda: optuna.get_all_study_names(storage=url(two)) == ["song"])
    # SQLite numbers the trials, so that nodes take turns.
    for node in [one, two, one]:
        optimize(node)
        cluster.until_same()
    with cluster.outage():
        optimize(two)
    rows = cluster.until_same()
    for node in cluster.nodes:
        study = optuna.load_study(study_name="song", storage=url(node))
        check([t.number for t in study.trials], list(range(4 * TRIALS)), "trials")
    best = {optuna.load_study(study_name="song", storage=url(n)).best_value for n in cluster.nodes}
    check(len(best), 1, "best values")
    cluster.stop()
    print(f"Optuna {optuna.__version__}, two nodes in turn, {rows} rows alike")
