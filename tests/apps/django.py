"""Django: each node migrates by itself, forward and back; a new node begins with the books."""

import os
import sys

# This file has the name of the package.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.remove(HERE)
import django  # noqa: E402

sys.path.append(HERE)
from harness import Cluster, check, run, until  # noqa: E402

SETTINGS = """
SECRET_KEY = "x"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "library"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATABASE,
                         "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE",
                                     "init_command": "PRAGMA journal_mode=WAL"}}}
USE_TZ = True
"""

MODELS = """
import uuid
from django.db import models

class Author(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    name = models.CharField(max_length=100, unique=True)

class Book(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    title = models.CharField(max_length=100)
    author = models.ForeignKey(Author, on_delete=models.CASCADE)
"""

SECOND = """
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = [("library", "0001_initial")]
    operations = [
        migrations.AddField("book", "year", models.IntegerField(default=1965)),
        migrations.CreateModel(
            "Shelf", [("name", models.CharField(max_length=9, primary_key=True))]),
    ]
"""

WRITE = """
import django; django.setup()
from django.contrib.auth.models import User
from library.models import Author, Book
author = Author.objects.create(name=NAME)
Book.objects.create(title=NAME + "'s", author=author)
"""


def project(node):
    library = node.folder / "library"
    (library / "migrations").mkdir(parents=True)
    for package in (library, library / "migrations"):
        (package / "__init__.py").touch()
    (library / "models.py").write_text(MODELS)
    text = f"DATABASE = {str(node.database)!r}\n{SETTINGS}"
    (node.folder / "settings.py").write_text(text)


def options(node):
    path = f"{node.folder}{os.pathsep}{os.environ['PYTHONPATH']}"
    environment = {**os.environ, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "settings"}
    return {"env": environment, "cwd": node.folder}


def manage(node, *words):
    return run([sys.executable, "-m", "django", *words], **options(node))


def write(node, name):
    run([sys.executable, "-c", f"NAME = {name!r}\n{WRITE}"], **options(node))


def book(node):
    names = "SELECT name FROM django_migrations WHERE app = 'library' ORDER BY name"
    return [name for (name,) in node.query(names)]


FIRST, LATER = ["0001_initial"], ["0001_initial", "0002_second"]
BOOKS = "SELECT * FROM library_book ORDER BY id"

with Cluster(2) as cluster:
    one, two = cluster.nodes
    for node in cluster.nodes:
        project(node)
    manage(one, "makemigrations", "library", "-v0")
    initial = (one.folder / "library/migrations/0001_initial.py").read_text()
    (two.folder / "library/migrations/0001_initial.py").write_text(initial)
    for node in cluster.nodes:
        manage(node, "migrate", "-v0")
        node.start()
    write(one, "Herbert")
    write(two, "Lem")
    cluster.until_equal(BOOKS, 2)

    # One after the other, and the first writes in between.
    for node in cluster.nodes:
        (node.folder / "library/migrations/0002_second.py").write_text(SECOND)
    manage(one, "migrate", "-v0")
    one.query("UPDATE library_book SET year = 1961 WHERE title LIKE 'Lem%'")
    one.query("INSERT INTO library_shelf VALUES ('top')")
    two.query("INSERT INTO library_author VALUES ('b', 'Between')")
    until("the other has it", lambda: one.query("SELECT 1 FROM library_author WHERE id = 'b'"))
    check((book(one), book(two)), (LATER, FIRST), "books between the migrations")
    manage(two, "migrate", "-v0")
    cluster.until_equal(BOOKS, 2)
    cluster.until_equal("SELECT 1 FROM library_book WHERE year = 1961", 1)
    cluster.until_equal("SELECT * FROM library_shelf", 1)
    two.query("DELETE FROM library_shelf")
    cluster.until_equal("SELECT * FROM library_shelf", 0)

    # Back on both, and forward again.
    for target, expected in [("0001", FIRST), ("0002", LATER)]:
        for node in cluster.nodes:
            manage(node, "migrate", "-v0", "library", target)
            check(book(node), expected, f"books of node {node.number} at {target}")
            manage(node, "check")
        for node in cluster.nodes:
            name = f"{target}-{node.number}"
            node.query("INSERT INTO library_author VALUES (?, ?)", name, name)
        authors = f"SELECT * FROM library_author WHERE id LIKE '{target}-%' ORDER BY id"
        cluster.until_equal(authors, 2)
    cluster.until_equal("SELECT id, title, author_id FROM library_book ORDER BY id", 2)
    # Four of each model, of contenttypes, auth (3), library (2) and of the migrations (1).
    cluster.until_equal("SELECT * FROM auth_permission ORDER BY id", 28)

    # A node without a file begins with the books, and has nothing to migrate.
    one.save_snapshot()
    three = cluster.add()
    three.start()
    cluster.until_equal("SELECT id, title FROM library_book ORDER BY id", 2)
    project(three)
    for name, text in [("0001_initial", initial), ("0002_second", SECOND)]:
        (three.folder / f"library/migrations/{name}.py").write_text(text)
    manage(three, "migrate", "--check")
    three.query("INSERT INTO library_author VALUES ('c', 'Le Guin')")
    cluster.until_equal("SELECT id FROM library_author WHERE id = 'c'", 1)
    for node in cluster.nodes:
        check(node.query("PRAGMA foreign_key_check"), [], "dangling rows")
        check(node.query("PRAGMA integrity_check"), [("ok",)], "integrity")
        node.stop()
    named = "table django_migrations is local, not replicated: Django"
    check([named in node.said() for node in cluster.nodes], [True] * 3, named)
    print(f"Django {django.__version__}, three nodes, migrated forward, back and forward")
