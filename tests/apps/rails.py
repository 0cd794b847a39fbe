"""Rails' ActiveRecord: each node migrates by itself, up and down; schema.rb begins a database."""

from harness import Cluster, check, migrate_songs, run

MIGRATE = """
require "active_record"
ActiveRecord::Base.establish_connection(adapter: "sqlite3", database: ARGV[0], timeout: 20000)
ActiveRecord::Migration.verbose = false
class First < ActiveRecord::Migration[6.1]
  def change
    create_table(:song, id: :string) { |t| t.string :title }
  end
end
class Second < ActiveRecord::Migration[6.1]
  def change
    add_column :song, :year, :integer, default: 1965
  end
end
class Third < ActiveRecord::Migration[6.1]
  def up
    change_column_null :song, :title, false
    add_index :song, :title, unique: true
  end
  def down
    remove_index :song, :title
    change_column_null :song, :title, true
  end
end
all = [First, Second, Third].each_with_index.map do |migration, i|
  migration.new(migration.name, i + 1)
end
meta = ActiveRecord::SchemaMigration
ActiveRecord::InternalMetadata.create_table
meta.create_table
step = ARGV[1].to_i
way = meta.all_versions.length > step ? :down : :up
ActiveRecord::Migrator.new(way, all, meta, step).migrate
puts ActiveRecord.version
"""

DUMP = """
require "active_record"
ActiveRecord::Base.establish_connection(adapter: "sqlite3", database: ARGV[0], timeout: 20000)
ActiveRecord::SchemaDumper.dump(ActiveRecord::Base.connection, $stdout)
"""

LOAD = """
require "active_record"
ActiveRecord::Base.establish_connection(adapter: "sqlite3", database: ARGV[0], timeout: 20000)
ActiveRecord::Schema.verbose = false
load ARGV[1]
"""


def ruby(text, *words):
    return run(["ruby", "-W0", "-e", text, *words])


with Cluster(2) as cluster:
    said = []
    seen = migrate_songs(
        cluster, lambda node, step: said.append(ruby(MIGRATE, node.database, str(step)))
    )
    # schema.rb has our tables in it, which another node's daemon finds before its first start.
    one = cluster.nodes[0]
    for node in cluster.nodes:
        node.start()
    schema = one.folder / "schema.rb"
    schema.write_text(ruby(DUMP, one.database))
    three = cluster.add()
    ruby(LOAD, three.database, schema)
    three.start()
    rows = cluster.until_same()
    three.query("INSERT INTO song(id, title) VALUES ('by three', 'by three')")
    check(cluster.until_same(), rows + 1, "rows")
    cluster.stop()
    print(f"Rails' ActiveRecord {said[0].strip()}, {seen}; a third begins with schema.rb")
