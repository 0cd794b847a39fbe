//! Node ids as small numbers: versions name them by the million, and an id takes eight bytes.

use std::collections::HashMap;

use rusqlite::Connection;

use crate::database::DatabaseError;

/// `__harmonylite___sites`, kept in memory. The numbers mean nothing outside this file.
#[derive(Debug, Default)]
pub struct Sites {
    by_node: HashMap<u64, i64>,
    by_site: HashMap<i64, u64>,
}

impl Sites {
    pub fn load(conn: &Connection) -> rusqlite::Result<Self> {
        let mut sites = Sites::default();
        let mut statement = conn.prepare("SELECT site, node FROM __harmonylite___sites")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            sites.insert(row.get(0)?, row.get::<_, i64>(1)? as u64);
        }
        Ok(sites)
    }

    fn insert(&mut self, site: i64, node: u64) {
        self.by_node.insert(node, site);
        self.by_site.insert(site, node);
    }

    pub fn node(&self, site: i64) -> Result<u64, DatabaseError> {
        let unknown = || DatabaseError::Damaged(format!("site {site} is not in ___sites"));
        self.by_site.get(&site).copied().ok_or_else(unknown)
    }

    /// The number of a node, a new one if need be.
    pub fn site(&mut self, conn: &Connection, node: u64) -> rusqlite::Result<i64> {
        if let Some(site) = self.by_node.get(&node) {
            return Ok(*site);
        }
        conn.execute(
            "INSERT INTO __harmonylite___sites(node) VALUES (?1)",
            [node as i64],
        )?;
        let site = conn.last_insert_rowid();
        self.insert(site, node);
        Ok(site)
    }
}
