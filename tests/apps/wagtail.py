"""Wagtail: two nodes from one database; pages, and their search index, on both."""

import os
import sys

# This file has the name of the package.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.remove(HERE)
import wagtail  # noqa: E402

sys.path.append(HERE)
from harness import Cluster, check, run, until  # noqa: E402

SETTINGS = """
from {package}.settings.base import *
SECRET_KEY = "x"
ALLOWED_HOSTS = ["*"]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {database!r},
                         "OPTIONS": {{"timeout": 20, "init_command": "PRAGMA journal_mode=WAL"}}}}}}
"""

PAGE = """
import django; django.setup()
from home.models import HomePage
home = HomePage.objects.get(slug="home")
page = home.add_child(instance=HomePage(title=TITLE, slug=TITLE.lower()))
page.title = TITLE + " revised"
page.save_revision().publish()
"""

FIND = """
import django; django.setup()
from wagtail.models import Page
print(sorted(page.title for page in Page.objects.live().search(WORD)))
"""


def options(node):
    path = f"{node.folder}/site{os.pathsep}{os.environ['PYTHONPATH']}"
    return {
        "env": {**os.environ, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "local"},
        "cwd": f"{node.folder}/site",
    }


def project(node):
    site = node.folder / "site"
    site.mkdir()
    run([sys.executable, "-c", "from wagtail.bin.wagtail import main; main()",
         "start", "mysite", site])
    text = SETTINGS.format(package="mysite", database=str(node.database))
    (site / "local.py").write_text(text)


def python(node, text, **names):
    text = "".join(f"{name} = {value!r}\n" for name, value in names.items()) + text
    return run([sys.executable, "-W", "ignore", "-c", text], **options(node)).strip()


def manage(node, *words):
    return run([sys.executable, "-W", "ignore", "-m", "django", *words], **options(node))


def found(node, word):
    return python(node, FIND, WORD=word)


with Cluster(2) as cluster:
    one, two = cluster.nodes
    for node in cluster.nodes:
        project(node)
    manage(one, "migrate", "-v0")
    one.copy_to(two)
    # Its search index is an FTS5 table that triggers feed: inspect gives the line for them.
    lines = one.inspect()["configuration"]
    check(lines[0].startswith("apply_triggers = ["), True, "the line that inspect gives")
    for node in cluster.nodes:
        node.configure(node.database, lines)
        node.start()

    titles = []
    for node, title in [(one, "Dune"), (two, "Solaris"), (one, "Emma")]:
        python(node, PAGE, TITLE=title)
        titles.append(f"{title} revised")
        cluster.until_same()
    with cluster.outage():
        python(two, PAGE, TITLE="Utopia")
        titles.append("Utopia revised")
    rows = cluster.until_same()
    for node in cluster.nodes:
        for title in titles:
            until(f"{title} is found", lambda: found(node, title.split()[0]) == f"[{title!r}]")
        check(found(node, "revised"), str(sorted(titles)), "pages that are found")
        manage(node, "migrate", "--check")
        manage(node, "check")
        manage(node, "fixtree")
    cluster.until_same()
    cluster.stop()
    version = ".".join(map(str, wagtail.VERSION[:3]))
    print(f"Wagtail {version}, two nodes, {rows} rows alike, pages are found on both")
