"""TypeORM: each node migrates by itself, forward and back."""

from harness import Cluster, javascript, migrate_songs, npm_version

MIGRATE = """
const { DataSource, Table, TableColumn, TableUnique } = require("typeorm");
class First1700000000001 {
  async up(q) {
    await q.createTable(new Table({ name: "song", columns: [
      { name: "id", type: "varchar", isPrimary: true },
      { name: "title", type: "varchar", isNullable: true }] }));
  }
  async down(q) { await q.dropTable("song"); }
}
class Second1700000000002 {
  async up(q) {
    await q.addColumn("song", new TableColumn(
      { name: "year", type: "integer", isNullable: true, default: 1965 }));
  }
  async down(q) { await q.dropColumn("song", "year"); }
}
class Third1700000000003 {
  async up(q) {
    await q.changeColumn("song", "title", new TableColumn({ name: "title", type: "varchar" }));
    await q.createUniqueConstraint("song",
      new TableUnique({ name: "song_title", columnNames: ["title"] }));
  }
  async down(q) {
    await q.dropUniqueConstraint("song", "song_title");
    await q.changeColumn("song", "title",
      new TableColumn({ name: "title", type: "varchar", isNullable: true }));
  }
}
const step = Number(process.argv[2]);
(async () => {
  const all = [First1700000000001, Second1700000000002, Third1700000000003];
  const open = migrations => new DataSource({
    type: "better-sqlite3", database: process.argv[1], migrations }).initialize();
  let source = await open(all.slice(0, step));
  await source.runMigrations();
  let count = async () => (await source.query("SELECT count(*) AS n FROM migrations"))[0].n;
  if (await count() > step) {
    await source.destroy();
    source = await open(all);
    while (await count() > step) await source.undoLastMigration();
  }
  await source.destroy();
})().catch(e => { console.error(e); process.exit(1); });
"""

with Cluster(2) as cluster:
    seen = migrate_songs(
        cluster, lambda node, step: javascript(MIGRATE, node.database, str(step))
    )
    print(f"TypeORM {npm_version('typeorm')}, {seen}")
