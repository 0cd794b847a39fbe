//! Tables in which known tools record facts about one file: which migrations it has had, who may
//! run them now, which tables it has. Each node runs its own migrations, so each node keeps its own
//! such tables.
//!
//! Only a table with both the name and the columns of the tool counts, because other applications
//! have tables called `migrations`, too.

use super::tables::matches;

/// A table of a tool.
struct Book {
    tool: &'static str,
    /// Glob on the table's name.
    name: &'static str,
    /// Columns that the table must have.
    columns: &'static [&'static str],
    /// Whether it must have no other columns.
    only: bool,
}

const fn has(tool: &'static str, name: &'static str, columns: &'static [&'static str]) -> Book {
    let only = false;
    Book {
        tool,
        name,
        columns,
        only,
    }
}

const fn is(tool: &'static str, name: &'static str, columns: &'static [&'static str]) -> Book {
    let only = true;
    Book {
        tool,
        name,
        columns,
        only,
    }
}

#[rustfmt::skip]
const BOOKS: &[Book] = &[
    has("Django", "django_migrations", &["app", "name", "applied"]),
    is("Alembic", "*alembic_version*", &["version_num"]),
    is("Rails or dbmate", "schema_migrations", &["version"]),
    is("golang-migrate", "schema_migrations", &["version", "dirty"]),
    is("Ecto", "schema_migrations", &["version", "inserted_at"]),
    is("Sequel", "schema_migrations", &["filename"]),
    is("Sequel", "schema_info", &["version"]),
    has("Rails", "ar_internal_metadata", &["key", "value", "created_at", "updated_at"]),
    has("Prisma", "_prisma_migrations", &["checksum", "migration_name", "finished_at"]),
    has("Drizzle", "__drizzle_migrations", &["hash", "created_at"]),
    is("Knex", "*knex_migrations*", &["id", "name", "batch", "migration_time"]),
    is("Knex", "*knex_migrations*_lock", &["index", "is_locked"]),
    has("Ghost", "migrations", &["id", "name", "version", "currentversion"]),
    has("Ghost", "migrations_lock", &["lock_key", "locked", "acquired_at", "released_at"]),
    is("Sequelize", "SequelizeMeta", &["name"]),
    has("Sequelize", "SequelizeMeta", &["name", "createdat", "updatedat"]),
    is("Strapi", "strapi_migrations*", &["id", "name", "time"]),
    is("TypeORM", "*migrations", &["id", "timestamp", "name"]),
    has("TypeORM", "typeorm_metadata", &["type", "database", "schema", "table", "name", "value"]),
    is("Nextcloud", "*migrations", &["app", "version"]),
    has("Authelia", "migrations", &["applied", "version_before", "version_after"]),
    is("gormigrate", "migrations", &["id"]),
    has("Payload", "payload_migrations", &["id", "name", "batch"]),
    is("Laravel", "*migrations", &["id", "migration", "batch"]),
    has("Directus", "directus_migrations", &["version", "name", "timestamp"]),
    has("Directus", "directus_collections", &["collection", "icon", "note", "singleton"]),
    has("Directus", "directus_fields", &["collection", "field", "special", "interface"]),
    has("Directus", "directus_relations", &["many_collection", "many_field", "one_collection"]),
    has("goose", "goose_db_version", &["version_id", "is_applied"]),
    has("Flyway", "flyway_schema_history", &["installed_rank", "version", "script", "checksum"]),
    has("Liquibase", "databasechangelog", &["id", "author", "filename", "orderexecuted"]),
    has("Liquibase", "databasechangeloglock", &["id", "locked", "lockgranted", "lockedby"]),
    has("SQLx", "_sqlx_migrations", &["version", "description", "success", "checksum"]),
    has("Refinery", "refinery_schema_history", &["version", "name", "applied_on", "checksum"]),
    has("Diesel", "__diesel_schema_migrations", &["version", "run_on"]),
    has("SeaORM", "seaql_migrations", &["version", "applied_at"]),
    has("Entity Framework", "__EFMigrationsHistory", &["migrationid", "productversion"]),
    has("Entity Framework", "__EFMigrationsLock", &["id", "timestamp"]),
    has("FluentMigrator", "VersionInfo", &["version", "appliedon"]),
    has("Grafana", "*migration_log", &["migration_id", "sql", "success", "error", "timestamp"]),
    has("Doctrine", "doctrine_migration_versions", &["version", "executed_at", "execution_time"]),
    has("Phinx", "*phinxlog", &["version", "migration_name", "start_time", "breakpoint"]),
    has("Yoyo", "_yoyo_*", &[]),
    has("Yoyo", "yoyo_lock", &["locked", "ctime", "pid"]),
    has("Peewee", "migratehistory", &["name", "migrated_at"]),
    has("Aerich", "aerich", &["version", "app", "content"]),
    is("Kysely", "kysely_migration", &["name", "timestamp"]),
    is("Kysely", "kysely_migration_lock", &["id", "is_locked"]),
    has("MikroORM", "mikro_orm_migrations", &["name", "executed_at"]),
    has("Bun", "bun_migrations", &["name", "group_id", "migrated_at"]),
    has("Bun", "bun_migration_locks", &["table_name"]),
    has("Atlas", "atlas_schema_revisions", &["version", "executed_at", "hash"]),
    has("D1", "d1_migrations", &["name", "applied_at"]),
    has("sqlite-migrate", "_sqlite_migrations", &["migration_set", "name", "applied_at"]),
    is("GRDB", "grdb_migrations", &["identifier"]),
    has("Room", "room_master_table", &["id", "identity_hash"]),
    has("PocketBase", "_migrations", &["file", "applied"]),
    has("PocketBase", "_collections", &["name", "type", "listrule", "viewrule"]),
    is("db-migrate", "migrations", &["id", "name", "run_on"]),
    is("sqlite of npm", "migrations", &["id", "name", "up", "down"]),
    has("Postgrator", "schemaversion", &["version", "name", "md5"]),
    is("Piccolo", "migration", &["id", "name", "app_name", "ran_on"]),
    has("SQLAlchemy-migrate", "migrate_version", &["repository_id", "repository_path", "version"]),
    is("Yii", "*migration", &["version", "apply_time"]),
    has("CodeIgniter", "*migrations", &["version", "class", "namespace", "batch"]),
    is("sql-migrate", "gorp_migrations", &["id", "applied_at"]),
    has("DbUp", "SchemaVersions", &["schemaversionid", "scriptname", "applied"]),
    is("Mojo", "mojo_migrations", &["name", "version"]),
    has("DBIx::Class", "dbix_class_schema_versions", &["version", "installed"]),
    has("Play", "play_evolutions", &["id", "hash", "applied_at", "apply_script", "state"]),
    is("Gitea", "version", &["id", "version"]),
    is("Forgejo", "forgejo_version", &["id", "version"]),
    is("ntfy", "schemaVersion", &["id", "version"]),
    is("Memos", "migration_history", &["version", "created_ts"]),
    has("Home Assistant", "schema_changes", &["change_id", "schema_version", "changed"]),
    has(LITESTREAM, "_litestream_*", &[]),
];

/// Litestream makes its tables in any database that it copies, even in an empty one.
const LITESTREAM: &str = "Litestream";

/// The tool that owns a table of this name with these columns.
pub fn tool_of(table: &str, columns: &[&str]) -> Option<&'static str> {
    let has = |column: &&str| columns.iter().any(|c| c.eq_ignore_ascii_case(column));
    let is_of = |book: &&Book| {
        matches(book.name, table)
            && book.columns.iter().all(&has)
            && (!book.only || columns.len() == book.columns.len())
    };
    BOOKS.iter().find(is_of).map(|book| book.tool)
}

/// Whether a table of that name belongs to a tool if it has the right columns.
pub fn may_be_a_book(table: &str) -> bool {
    BOOKS.iter().any(|book| matches(book.name, table))
}

/// Whether the table's presence does not show that an application has used the database.
pub fn is_of_a_companion(table: &str) -> bool {
    tool_of(table, &[]) == Some(LITESTREAM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_books_of_known_tools() {
        for (table, columns, tool) in [
            ("django_migrations", "id app name applied", "Django"),
            ("alembic_version", "version_num", "Alembic"),
            ("mlflow_alembic_version", "version_num", "Alembic"),
            ("schema_migrations", "version", "Rails or dbmate"),
            ("schema_migrations", "version dirty", "golang-migrate"),
            (
                "ar_internal_metadata",
                "key value created_at updated_at",
                "Rails",
            ),
            (
                "_prisma_migrations",
                "id checksum finished_at migration_name logs rolled_back_at started_at \
                 applied_steps_count",
                "Prisma",
            ),
            ("__drizzle_migrations", "id hash created_at", "Drizzle"),
            ("knex_migrations", "id name batch migration_time", "Knex"),
            ("knex_migrations_lock", "index is_locked", "Knex"),
            ("SequelizeMeta", "name", "Sequelize"),
            ("migrations", "id timestamp name", "TypeORM"),
            ("Migrations", "ID Migration Batch", "Laravel"),
            ("directus_migrations", "version name timestamp", "Directus"),
            (
                "directus_fields",
                "id collection field special interface options display",
                "Directus",
            ),
            (
                "goose_db_version",
                "id version_id is_applied tstamp",
                "goose",
            ),
            (
                "DATABASECHANGELOGLOCK",
                "ID LOCKED LOCKGRANTED LOCKEDBY",
                "Liquibase",
            ),
            (
                "__EFMigrationsHistory",
                "MigrationId ProductVersion",
                "Entity Framework",
            ),
            ("_migrations", "file applied", "PocketBase"),
            (
                "_collections",
                "id name type listRule viewRule fields",
                "PocketBase",
            ),
            ("_litestream_seq", "id seq", "Litestream"),
            ("_litestream_lock", "id", "Litestream"),
            ("migrations", "id name run_on", "db-migrate"),
            ("migrations", "id name up down", "sqlite of npm"),
            ("schemaversion", "version name md5 run_at", "Postgrator"),
            ("migration", "id name app_name ran_on", "Piccolo"),
            ("tbl_migration", "version apply_time", "Yii"),
            (
                "migrations",
                "id version class group namespace time batch",
                "CodeIgniter",
            ),
            (
                "SchemaVersions",
                "SchemaVersionID ScriptName Applied",
                "DbUp",
            ),
            ("version", "id version", "Gitea"),
            (
                "schema_changes",
                "change_id schema_version changed",
                "Home Assistant",
            ),
        ] {
            let columns: Vec<&str> = columns.split_whitespace().collect();
            assert_eq!(tool_of(table, &columns), Some(tool), "{table} {columns:?}");
        }
    }

    #[test]
    fn a_name_that_merely_looks_so() {
        for (table, columns) in [
            ("migrations", "id bird from_country to_country"),
            ("migrations", "id timestamp name species"),
            ("schema_migrations", "version note"),
            ("migration", "id name app_name ran_on distance_km"),
            ("version", "id version document"),
            ("schema_changes", "id changed"),
            ("django_migrations", "id bird"),
            ("_collections", "id name"),
            ("kysely_migration", "name"),
            ("litestream_seq", "id seq"),
            ("alembic_versions_of_beer", "id version_num"),
        ] {
            let columns: Vec<&str> = columns.split_whitespace().collect();
            assert_eq!(tool_of(table, &columns), None, "{table} {columns:?}");
        }
    }

    #[test]
    fn litestream_comes_before_the_application() {
        assert!(is_of_a_companion("_litestream_seq"));
        assert!(!is_of_a_companion("django_migrations"));
        assert!(!is_of_a_companion("_yoyo_version"));
    }
}
