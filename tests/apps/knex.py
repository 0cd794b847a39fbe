"""Knex: each node migrates by itself, forward and back."""

from harness import Cluster, javascript, migrate_songs, npm_version

MIGRATE = """
const knex = require("knex")({
  client: "better-sqlite3", useNullAsDefault: true, connection: { filename: process.argv[1] },
});
const all = {
  a: { up: k => k.schema.createTable("song", t => { t.string("id").primary(); t.string("title"); }),
       down: k => k.schema.dropTable("song") },
  b: { up: k => k.schema.alterTable("song", t => { t.integer("year").defaultTo(1965); }),
       down: k => k.schema.alterTable("song", t => { t.dropColumn("year"); }) },
  c: { up: k => k.schema.alterTable("song", t => {
         t.string("title").notNullable().alter(); t.unique(["title"]); }),
       down: k => k.schema.alterTable("song", t => {
         t.dropUnique(["title"]); t.string("title").nullable().alter(); }) },
};
const migrationSource = {
  getMigrations: async () => Object.keys(all), getMigrationName: n => n, getMigration: n => all[n],
};
const step = Number(process.argv[2]);
(async () => {
  for (;;) {
    const [done] = await knex.migrate.list({ migrationSource });
    if (done.length === step) break;
    await knex.migrate[done.length < step ? "up" : "down"]({ migrationSource });
  }
  await knex.destroy();
})().catch(e => { console.error(e); process.exit(1); });
"""

with Cluster(2) as cluster:
    seen = migrate_songs(
        cluster, lambda node, step: javascript(MIGRATE, node.database, str(step))
    )
    print(f"Knex {npm_version('knex')}, {seen}")
