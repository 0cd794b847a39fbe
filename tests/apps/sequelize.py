"""Sequelize: each node migrates by itself, forward and back, statement by statement."""

from harness import Cluster, javascript, migrate_songs, npm_version

MIGRATE = """
const { Sequelize, DataTypes } = require("sequelize");
const { Umzug, SequelizeStorage } = require("umzug");
const sequelize = new Sequelize({
  dialect: "sqlite", storage: process.argv[1], logging: false, retry: { max: 5 } });
const { STRING, INTEGER } = DataTypes;
const all = [
  { name: "a", up: q => q.createTable("song",
      { id: { type: STRING, primaryKey: true }, title: STRING }),
    down: q => q.dropTable("song") },
  { name: "b", up: q => q.addColumn("song", "year", { type: INTEGER, defaultValue: 1965 }),
    down: q => q.removeColumn("song", "year") },
  { name: "c", up: async q => {
      await q.changeColumn("song", "title", { type: STRING, allowNull: false });
      await q.addIndex("song", ["title"], { unique: true, name: "song_title" }); },
    down: async q => {
      await q.removeIndex("song", "song_title");
      await q.changeColumn("song", "title", { type: STRING, allowNull: true }); } },
];
const q = sequelize.getQueryInterface();
const step = Number(process.argv[2]);
(async () => {
  const umzug = new Umzug({
    migrations: all.map(m => ({ name: m.name, up: () => m.up(q), down: () => m.down(q) })),
    storage: new SequelizeStorage({ sequelize }), logger: undefined });
  for (;;) {
    const done = (await umzug.executed()).length;
    if (done === step) break;
    await (done < step ? umzug.up({ step: 1 }) : umzug.down());
  }
  await sequelize.close();
})().catch(e => { console.error(e); process.exit(1); });
"""

with Cluster(2) as cluster:
    seen = migrate_songs(
        cluster, lambda node, step: javascript(MIGRATE, node.database, str(step))
    )
    print(f"Sequelize {npm_version('sequelize')}, {seen}")
