//! Maps node ids to small numbers: millions of versions name a node, and an id takes eight bytes.

use std::collections::{BTreeSet, HashMap};

use rusqlite::Connection;

use crate::database::DatabaseError;

/// The most nodes that a database knows. A cluster has fewer in all its life, but a login that may
/// publish may invent any number.
pub const MAX_NODES: usize = 1 << 14;

/// The table `__harmonylite___sites` in memory. The numbers have no meaning outside this file.
#[derive(Debug, Default)]
pub struct Sites {
    by_node: HashMap<u64, i64>,
    by_site: HashMap<i64, u64>,
}

impl Sites {
    /// Reads the table.
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

    /// Whether there is room for those of these nodes that are not known yet.
    pub fn has_room_for(&self, nodes: &[u64]) -> bool {
        let unknown = nodes.iter().filter(|n| !self.by_node.contains_key(n));
        match nodes.len() + self.by_node.len() <= MAX_NODES {
            true => true,
            false => self.by_node.len() + unknown.collect::<BTreeSet<_>>().len() <= MAX_NODES,
        }
    }

    /// Number of nodes.
    pub fn count(&self) -> usize {
        self.by_node.len()
    }

    /// The node with this number. Fails with [`DatabaseError::Damaged`] if the table lacks it.
    pub fn node(&self, site: i64) -> Result<u64, DatabaseError> {
        let unknown = || DatabaseError::Damaged(format!("site {site} is not in ___sites"));
        self.by_site.get(&site).copied().ok_or_else(unknown)
    }

    /// The number of a node. A node without one gets the next, which is stored.
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
